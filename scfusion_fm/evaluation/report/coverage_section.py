"""The part of an evaluation's page on intervals of predicted proteins."""

from html import escape

import pandas as pd

from scfusion_fm.evaluation.report.page import Spread, render_table
from scfusion_fm.evaluation.report.section import Section
from scfusion_fm.evaluation.report.text import MODEL_NAME, name_method

SHOWN_LEVEL = 0.9
NOTE = (
    "Intervals around the predictions of each fold, as wide as the errors in the other folds say; the share of "
    "measured values that they hold, mean over proteins, then over folds, ± standard deviation over folds. It should "
    "be the level; of two methods that reach it, the one with narrower intervals says more. Widths are in units of the "
    "centred log ratio. Where folds are groups, such as laboratories, intervals are made for a new group: each group "
    "weighs the same, and few groups widen them."
)
DEVIATIONS_NOTE = (
    "The same for how far a cell lies from the mean of its group, in deviations of the protein over the cells of the "
    "group: what RNA tells of a new group where it does not tell the level."
)
UNITS = {"CLR": ("Intervals", NOTE), "deviations": ("Intervals of deviations within a group", DEVIATIONS_NOTE)}
BY_METHOD = ["kind", "method"]


def add_coverage(section: Section, coverage: pd.DataFrame) -> None:
    """
    Add how often intervals hold, by method, fold and protein, and a sentence for the summary.

    Parameters
    ----------
    section
        The experiment's part of the page.
    coverage
        One row per `unit`, `kind`, `method`, `seed`, `fold`, `level` and `protein`: `coverage`, `width` and `n`.
    """
    for unit, part in coverage.groupby("unit", sort=False):
        _add_unit(section, *UNITS[unit], part)


def _add_unit(section: Section, heading: str, note: str, coverage: pd.DataFrame) -> None:
    by_fold = coverage.groupby([*BY_METHOD, "level", "seed", "fold"], sort=False)
    folds = by_fold[["coverage", "width"]].mean().reset_index()
    rows = [_describe_method(kind, method, part) for (kind, method), part in folds.groupby(BY_METHOD, sort=False)]
    levels = sorted(folds["level"].unique())
    headings = {"method": "method"} | {f"at {x:g}": f"held at {x:.0%}" for x in levels}
    headings |= {"lowest": f"lowest fold at {SHOWN_LEVEL:.0%}", "width": f"width at {SHOWN_LEVEL:.0%}"}
    table = render_table(rows, headings, model=MODEL_NAME)
    section.add(f"<h3>{heading}</h3>", f'<p class="note">{escape(note)}</p>', table)
    shown = folds[folds["level"] == SHOWN_LEVEL]
    for (kind, method), part in shown.groupby(BY_METHOD, sort=False):
        if kind == "model":
            title = f"{section.title}, {name_method(kind, method)}"
            section.findings.append(("", _describe_coverage(title, heading.lower(), part)))
    own = coverage[(coverage["level"] == SHOWN_LEVEL) & (coverage["kind"] == "model")]
    for key in ("fold", "protein"):
        table = _render_parts(own, key)
        section.add(f"<details><summary>At {SHOWN_LEVEL:.0%}, by {key}</summary>{table}</details>")


def _describe_method(kind: str, method: str, folds: pd.DataFrame) -> dict:
    """Give a row of the table."""
    row: dict = {"method": name_method(kind, method)}
    for level, part in folds.groupby("level"):
        row[f"at {level:g}"] = Spread(part["coverage"].mean(), part["coverage"].std())
    shown = folds[folds["level"] == SHOWN_LEVEL]
    return row | {
        "lowest": float(shown["coverage"].min()),
        "width": Spread(shown["width"].mean(), shown["width"].std()),
    }


def _describe_coverage(title: str, what: str, folds: pd.DataFrame) -> str:
    lowest = folds.loc[folds["coverage"].idxmin()]
    return (
        f"{title}: {what} meant to hold {SHOWN_LEVEL:.0%} hold {folds['coverage'].mean():.1%}, mean over "
        f"folds; the least in {lowest['fold']}, {lowest['coverage']:.1%}."
    )


def _render_parts(own: pd.DataFrame, key: str) -> str:
    """Render coverage by fold (over proteins) or by protein (over folds)."""
    rows = []
    for (kind, method, name), part in own.groupby([*BY_METHOD, key], sort=False):
        held, width = (Spread(part[x].mean(), part[x].std()) for x in ("coverage", "width"))
        rows.append({"part": str(name), "method": name_method(kind, method), "held": held, "width": width})
        rows[-1]["n"] = int(part["n"].sum())
    return render_table(rows, {"part": key, "method": "method", "held": "held", "width": "width", "n": "values"})
