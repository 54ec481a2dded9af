"""What other packagers read says what pyproject.toml says: conda's files, the image, the citation."""

import re
import tomllib

import pytest
import yaml
from launch import ROOT

import scfusion_fm
from scfusion_fm.extras import EXTRAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_CONDA = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}
WHOLE = sorted({*EXTRAS.values()})


def in_conda(requirements):
    parts = [re.match(r"([\w.-]+)(.*)", requirement) for requirement in requirements]
    return {f"{IN_CONDA.get(part[1], part[1])} {part[2]}".strip() for part in parts}


BASE = in_conda(PROJECT["dependencies"])
OF_EXTRAS = in_conda({requirement for extra in WHOLE for requirement in PROJECT["optional-dependencies"][extra]})
PYTHON = f"python {PROJECT['requires-python']}"


def test_conda_environment_lists_what_pyproject_does():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {entry for entry in listed if isinstance(entry, str)} == BASE | OF_EXTRAS | {PYTHON, "pip"}


def test_conda_recipe_lists_what_pyproject_does():
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text())
    assert recipe["context"]["version"] == PROJECT["version"]
    assert set(recipe["requirements"]["run"]) == BASE | {PYTHON}
    assert set(recipe["requirements"]["run_constraints"]) == OF_EXTRAS
    (entry,) = PROJECT["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(entry)]


def test_image_installs_the_pinned_versions():
    text = (ROOT / "Dockerfile").read_text()
    assert f"torch=={pinned('torch')}" in text
    assert f"torch=={pinned('torch')}" in (ROOT / "Makefile").read_text()
    (extras,) = re.findall(r'"/src\[(.*?)\]"', text)
    assert set(WHOLE) <= set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "Not built by us" in text


def pinned(package):
    return re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)[1]


@pytest.mark.parametrize("extra", WHOLE)
def test_what_is_pinned_is_what_is_allowed(extra):
    from packaging.requirements import Requirement

    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned(rf"(?i:{requirement.name.replace('-', '[-_]')})")), text


def test_versions_are_one():
    assert scfusion_fm.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
