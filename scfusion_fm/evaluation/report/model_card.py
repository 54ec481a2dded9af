"""Parts of the card of a model that comes with the package, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

WATTS, GRAMS_PER_KWH = 65, 475
"""Assumed: the power of a machine with two busy cores, and the world's mean of a kilowatt hour, in CO2e."""


def write_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(escape(str(cell), quote=False).replace("|", "/") for cell in line) + " |" for line in lines
    )


def write_data(sources: Iterable[Mapping[str, Any]]) -> str:
    """Write the data sets of an atlas, with their licences."""
    rows = [(s["name"], f"{s['cells']:,}", s["licence"], s["reference"]) for s in sources]
    return write_table(("data set", "cells", "licence", "from"), rows)


def write_cost(seconds: Mapping[str, float]) -> str:
    """Write how long the steps took, and an estimate of energy and carbon from it."""
    rows = [(step, f"{taken / 60:.1f}") for step, taken in seconds.items()]
    hours = sum(seconds.values()) / 3600
    energy = hours * WATTS / 1000
    told = (
        f"Measured: {60 * hours:.0f} minutes in all. Estimated, not measured: {energy:.2f} kWh and "
        f"{energy * GRAMS_PER_KWH:.0f} g CO2e, if the machine drew {WATTS} W and a kilowatt hour stands for "
        f"{GRAMS_PER_KWH} g. What led to these settings is not counted."
    )
    return f"{write_table(('step', 'minutes'), rows)}\n\n{told}"


def write_figures(figures: Iterable[Any], metrics: Mapping[str, str]) -> str:
    """
    Write scores by study: a table for each task, a study in each row, the model first and then the best baselines.

    Parameters
    ----------
    figures
        With `task`, `study`, `method`, `kind`, `cells`, `mean`, `low` and `high`.
    metrics
        What is scored, by task.
    """
    figures, parts = list(figures), []
    for task, metric in metrics.items():
        of_task = [figure for figure in figures if figure.task == task]
        methods = sorted({(f.kind != "model", f.method) for f in of_task})
        rows = []
        for study in dict.fromkeys(f.study for f in of_task):
            found = {f.method: f for f in of_task if f.study == study}
            cells = next(iter(found.values())).cells
            scores = [_show(found[name]) if name in found else "" for _, name in methods]
            rows.append((f"{study} ({cells:,} cells)", *scores))
        if rows:
            parts.append(f"{metric}:\n\n{write_table(('study', *(name for _, name in methods)), rows)}")
    return "\n\n".join(parts) or "None were measured."


def _show(figure: Any) -> str:
    return f"{figure.mean:.3f} ({figure.low:.3f} to {figure.high:.3f})"
