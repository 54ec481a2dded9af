"""The site tells of everything public, and figures that were measured. Building it (`make docs`) tests the rest."""

import re
import runpy

from launch import ROOT

import scfusion_fm
from scfusion_fm import finetune, pl


def test_every_public_name_is_on_the_page_of_the_python_reference():
    told = re.findall(r"^   ([\w.]+)$", (ROOT / "docs" / "api.rst").read_text(), re.M)
    public = {name for name in scfusion_fm.__all__ if name not in scfusion_fm._MODULES}
    public |= {f"{module.__name__.rpartition('.')[2]}.{name}" for module in (finetune, pl) for name in module.__all__}
    assert sorted(told) == sorted(public)


def test_figures_that_help_to_choose_are_those_of_the_experiments():
    quoted = re.findall(r"(?<![\d.])0\.\d{3}(?!\d)", (ROOT / "docs" / "choosing.md").read_text())
    measured = (ROOT / "docs" / "experiments.md").read_text()
    assert len(quoted) > 10
    assert [figure for figure in quoted if figure not in measured] == []


def test_tables_of_pages_are_those_that_were_measured():
    script = runpy.run_path(str(ROOT / "scripts" / "run_benchmarks.py"))
    texts = {page: page.read_text() for page in script["PAGES"]}
    assert {name for text in texts.values() for _, name, _ in script["PLACE"].findall(text)} == set(script["TABLES"])
    assert [page.name for page, text in texts.items() if script["render_page"](text) != text] == []
