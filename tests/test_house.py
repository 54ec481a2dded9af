"""The README tells the truth, and the code stays readable."""

import ast
import re
import shlex
import sys
import warnings

import mudata
import pytest
from launch import ROOT, run

SOURCES = [p for d in ("scfusion_fm", "pretrain", "finetune", "scripts") for p in (ROOT / d).rglob("*.py")]
PYTHON = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
BASH = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
COMMANDS = [line for block in BASH for line in block.strip().splitlines()]
DEMO_DATA = "data/demo_teaseq_pbmc.h5mu"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ").replace("$(DEMO)", "runs/demo")

SMALL = {
    "pretrain/run.py": "optim.epochs=0.1 model.hidden_size=16 model.intermediate_size=16 model.num_hidden_layers=1",
    "finetune/cell_type_annotation.py": "optim.epochs=1 optim.threads=1 report=false",
    "finetune/cross_modal_prediction.py": "optim.epochs=1 optim.threads=1",
}


def normal(command):
    """Compare commands whatever their spaces and make's name for the target."""
    return shlex.split(command.replace("$@", "TARGET"))


def test_make_demo_runs_the_commands_of_the_readme():
    recipes = [normal(line) for line in MAKEFILE.splitlines() if line.startswith("\t")]
    for command in COMMANDS:
        words = normal(command)
        assert any(
            len(r) == len(words) and all(b in (a, "TARGET") for a, b in zip(words, r, strict=True)) for r in recipes
        ), command


def write_part(source, target):
    """Write every third cell and every fourth gene of a file."""
    with warnings.catch_warnings(action="ignore"):
        part = mudata.read_h5mu(source)[::3].copy()
        part.mod["rna"] = part["rna"][:, ::4].copy()
        part.update()
        part.write(target)


def test_readme_commands_run_in_order(tmp_path):
    for name in ("configs", "finetune", "pretrain"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    write_part(ROOT / DEMO_DATA, tmp_path / DEMO_DATA)
    for number, command in enumerate(COMMANDS):
        words = shlex.split(command)
        small = next((v.split() for k, v in SMALL.items() if k in words), [])
        # Of `scfusion`, the first is cold. All scripts are, since `python` is not known to be that of the tests.
        run(*words, *small, cwd=tmp_path, cold=number == 0)
    ends = "\nassert mdata.obsm['X_scfusion_ttt'].shape[0] == len(mdata.obs['cell_type_pred'].dropna()) > 0"
    run(sys.executable, "-W", "ignore", "-c", PYTHON + ends, cwd=tmp_path)
    page = (tmp_path / "runs/demo/report.html").read_text()
    assert "scFusionTTT" in page
    assert "PCA + logistic regression" in page


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def depth(node, level=0):
    """Nesting of control flow in a function; an elif is not nested in its if."""
    blocks = (ast.If, ast.For, ast.While, ast.With, ast.Try)
    chained = node.orelse if isinstance(node, ast.If) and len(node.orelse) == 1 else []
    inner = [
        depth(child, level + (isinstance(child, blocks) and child not in chained))
        for child in ast.iter_child_nodes(node)
    ]
    return max([level, *inner])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 500
    for node in functions(path):
        told = node.body[0] if ast.get_docstring(node) else None  # what is told of a function may be as long as needed
        assert node.end_lineno - node.lineno - (told.end_lineno - told.lineno + 1 if told else 0) < 70, node.name
        arguments = node.args
        names = [a.arg for a in arguments.posonlyargs + arguments.args if a.arg != "self"]
        assert len(names) <= 8, node.name
        assert len(names + arguments.kwonlyargs) <= 16, node.name  # verbs have settings that are given by name alone
        assert depth(node) <= 4, node.name


def test_every_file_says_what_it_is():
    assert [p for p in SOURCES if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_tree_of_the_readme_names_every_room_and_no_other():
    table = re.findall(r"^\| (`.*?`) *\|", (ROOT / "README.md").read_text(), re.M)
    named = {p.rstrip("/") for cell in table for p in re.findall(r"`([^`]+)`", cell)}
    rooms = {p.parent for p in (ROOT / "scfusion_fm").rglob("*.py")} - {ROOT / "scfusion_fm"}
    rooms = {str(room.relative_to(ROOT)) for room in rooms if not any(inner.parent == room for inner in rooms)}
    scripts = {p.parent.name for p in ROOT.glob("*/*.py")} - {"scfusion_fm"}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert {room for room in rooms | scripts if not any(room.startswith(name) for name in named)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
