"""What is installed is enough: for models on files without any extra, and with an extra for what it is for."""

import ast
import re
import sys
import tomllib

import pytest
from launch import ROOT

import scfusion_fm
from scfusion_fm.config.command import run_command
from scfusion_fm.extras import EXTRAS, MissingPackageError, explain_missing

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Those whose names differ when they are imported.
IMPORTED = {"scikit-learn": "sklearn", "umap-learn": "umap", "pyyaml": "yaml", "mlflow-skinny": "mlflow"}
# What a base install may lack, beside the packages of `EXTRAS`: each place says how to get it, or goes on without.
OPTIONAL = {
    "distributed",
    "harmonypy",
    "hdf5plugin",
    "llvmlite",
    "peft",
    "scib_metrics",
    "scvi",
    "tiledbsoma",
    "triton",
}


def name_of(requirement):
    name = re.match(r"[\w.-]+", requirement)[0].lower()
    return IMPORTED.get(name, name.replace("-", "_"))


BASE = {name_of(found) for found in PROJECT["dependencies"]}


def read_imports():
    """Give what each module imports, as (module, whether it does when it is loaded itself)."""
    found = {}
    for path in (ROOT / "scfusion_fm").rglob("*.py"):
        place = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(place[:-1] if place[-1] == "__init__" else place)
        package = ".".join(place[:-1])
        found[module] = [*find_imports(ast.parse(path.read_text()), package, is_first=True)]
    return found


def find_imports(node, package, is_first):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, is_first) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) - child.level + 1]) if child.level else ""
            place = ".".join(filter(None, (start, child.module)))
            yield from ((f"{place}.{alias.name}", is_first) for alias in child.names)
        else:
            yield from find_imports(child, package, is_first and not isinstance(child, ast.FunctionDef))


IMPORTS = read_imports()


def packages_behind(*rooms):
    """Give the packages that are loaded with all modules of some rooms, and the module that does so."""
    todo = [name for name in IMPORTS if name.startswith(tuple(f"scfusion_fm.{room}" for room in rooms))]
    assert todo
    seen, packages = set(), {}
    while todo:
        module = todo.pop()
        while module not in IMPORTS:  # a name in it
            module = module.rpartition(".")[0]
        if module in seen:
            continue
        seen.add(module)
        for name, is_first in IMPORTS[module]:
            if name.startswith("scfusion_fm"):
                todo += [name] * is_first
            elif is_first:
                packages.setdefault(name.partition(".")[0], module)
    return packages


@pytest.mark.parametrize(
    ("rooms", "extras"),
    [
        (("cli", "config", "inference", "planning", "model", "data.files", "data.inspect", "data.prepare"), set()),
        (("data.atlas", "data.fetch", "data.fingerprints", "data.stream.loader", "training.settings"), set()),
        (("explorer",), set()),
        (("pretraining", "training"), {"pretrain"}),
        (("data.stream",), {"pretrain"}),
        (("comparison", "evaluation", "finetune", "pl", "tasks"), {"eval"}),
    ],
)
def test_rooms_load_no_package_of_other_extras(rooms, extras):
    loaded = packages_behind(*rooms)
    assert {name: at for name, at in loaded.items() if EXTRAS.get(name, "base") not in {*extras, "base"}} == {}


def test_lists_of_dependencies_are_honest():
    imported = {name.partition(".")[0] for found in IMPORTS.values() for name, _ in found}
    imported -= {*sys.stdlib_module_names, "scfusion_fm", ""}
    assert imported - BASE == {*EXTRAS, *OPTIONAL} - {"accelerate", "tensorboard"}  # which others load
    assert BASE - imported == set()
    extras = PROJECT["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert package in {name_of(found) for found in extras[extra]}, package
    assert set(EXTRAS.values()) <= set(extras)
    (whole,) = (found for found in extras["dev"] if found.startswith("scfusion-fm["))
    assert set(EXTRAS.values()) <= set(re.findall(r"\w+", whole))


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_names_its_extra(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    told = (
        rf"`{package}` must be installed for this, got no such package; pip install 'scfusion-fm\[{EXTRAS[package]}\]'"
    )
    with pytest.raises(MissingPackageError, match=told) as raised, explain_missing():
        __import__(package)
    assert isinstance(raised.value, ImportError)

    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: __import__(package))
    assert re.search(told, capsys.readouterr().err)


def test_other_missing_packages_stay_what_they_are(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'") as raised, explain_missing():
        __import__("no_such_package.inside")
    assert not isinstance(raised.value, MissingPackageError)


def test_public_modules_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "scfusion_fm.pl", raising=False)
    monkeypatch.delitem(vars(scfusion_fm), "pl", raising=False)
    with pytest.raises(MissingPackageError, match=r"scfusion-fm\[eval\]"):
        _ = scfusion_fm.pl
