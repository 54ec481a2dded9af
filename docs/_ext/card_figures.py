"""A directive that shows the figures in the card of a model of the package: what is shipped is what is shown."""

import json
from statistics import mean

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from scfusion_fm.inference.model_files import find_model


class CardFigures(SphinxDirective):
    """A table of methods and studies, from `figures.json` of a model."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the file of today."""
        path = find_model(self.arguments[0]) / "figures.json"
        self.env.note_dependency(str(path))
        figures = json.loads(path.read_text())
        studies = list(dict.fromkeys(figure["study"] for figure in figures))
        scores = {(f["method"], f["study"]): _show(f) for f in figures}
        methods = sorted({f["method"]: mean(f["scores"]) for f in figures}.items(), key=lambda pair: -pair[1])
        rows = [[method, *(scores.get((method, study), "") for study in studies)] for method, _ in methods]
        return [_build_table(["method", *studies], rows)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("card-figures", CardFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _build_table(head: list[str], rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup("", *[nodes.colspec(colwidth=1) for _ in head], cols=len(head))
    group += nodes.thead("", _build_row(head))
    group += nodes.tbody("", *map(_build_row, rows))
    return nodes.table("", group)


def _build_row(cells: list[str]) -> nodes.row:
    return nodes.row("", *[nodes.entry("", nodes.paragraph("", cell)) for cell in cells])


def _show(figure: dict) -> str:
    return f"{mean(figure['scores']):.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
