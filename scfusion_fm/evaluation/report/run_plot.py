"""A picture of pretraining runs while they run and afterwards: losses, optimiser, speed, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from scfusion_fm.evaluation.report.plots import COLOURS, LOSSES, Curve, draw_curve, shorten, tidy
from scfusion_fm.evaluation.report.run_files import read_metrics

COLUMNS = 3
TRAIN_COLOUR, VAL_COLOUR, SKIPPED_COLOUR = COLOURS[0], COLOURS[3], "#B00020"


@dataclass(frozen=True)
class Panel:
    """One quantity of the records; the axis of one that is not a loss or on a log scale starts at 0.

    Attributes
    ----------
    column
        Its name in the records.
    title
        What it is, with its unit.
    scale
        What to multiply it by for that unit.
    log
        Whether the axis is logarithmic.
    average
        "mean" or "median": what is drawn over many records, or None.
    """

    column: str
    title: str
    scale: float = 1.0
    log: bool = False
    average: str | None = "mean"


LOSS_PANELS = tuple(Panel(column, title) for column, title in LOSSES.items())
PANELS = (
    *LOSS_PANELS,
    Panel("lr", "Learning rate", average=None),
    Panel("grad_norm", "Gradient norm", log=True, average="median"),
    Panel("cells_per_s", "Cells per second"),
    Panel("data_stall", "Waiting for data (% of time)", scale=100),
    Panel("memory_gib", "Peak memory (GiB)", average=None),
    Panel("mfu", "Model FLOP utilisation (%)", scale=100),
)


def write_run_plot(runs: Sequence[Path], output: Path) -> None:
    """Draw runs into a file, replacing one that is there.

    Parameters
    ----------
    runs
        Directories of pretraining runs.
    output
        Picture to write; its name ends in `.png`.

    Raises
    ------
    ValueError
        If there is no place for the picture, two runs are one, or a run has no readable records.
    """
    places = [run.resolve() for run in runs]
    twice = [str(run) for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ValueError(f"`runs` must differ, got {twice}; name each once.")
    names = name_runs(places)
    figure = plot_runs({name: read_metrics(run / "metrics.jsonl") for name, run in zip(names, runs, strict=True)})
    if output.suffix != ".png" or not output.absolute().parent.is_dir():
        raise ValueError(f"`--output` must be a .png file in a directory that exists, got {str(output)!r}.")
    scratch = output.with_suffix(".tmp.png")
    figure.savefig(scratch, dpi=150)
    scratch.replace(output)


def name_runs(paths: Sequence[Path]) -> list[str]:
    """Name directories by as many of their last parts as tell them apart.

    Parameters
    ----------
    paths
        Different absolute paths.
    """
    for length in range(1, max(len(path.parts) for path in paths)):
        names = [str(Path(*path.parts[-length:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def plot_runs(runs: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot what runs recorded: one run over its steps, several over the cells that they have seen.

    Cells and not steps, since runs with other global batches are to be compared.

    Parameters
    ----------
    runs
        Records of each run, as `read_metrics` gives them. A quantity without any finite value gets no panel;
        `skipped_steps` counts from the start of the run.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    tables = {name: _make_finite(table) for name, table in runs.items()}
    panels = [p for p in PANELS if any(p.column in t and t[p.column].notna().any() for t in tables.values())]
    if not panels:
        raise ValueError(f"`runs` must have records with numbers, got none for {list(runs)}; log a step first.")
    place = "step" if len(tables) == 1 else "cells"
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4.4 * COLUMNS, 2.75 * rows + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        for number, table in enumerate(tables.values()):
            _draw_run(axes, panel, table, place, None if len(tables) == 1 else COLOURS[number % len(COLOURS)])
        _finish(axes, panel, place)
    for axes in grid.flat[max(len(panels) - COLUMNS, 0) : len(panels)]:
        axes.set_xlabel("step" if place == "step" else "training cells seen")
    _add_legend(figure, tables)
    return figure


def _make_finite(table: pd.DataFrame) -> pd.DataFrame:
    """Make missing of what is no finite number, as in the records of a loss that overflowed."""
    numbers = [c for c in table if c != "split"]
    finite = table[numbers].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    return finite.assign(split=table["split"])


def _draw_run(axes: Axes, panel: Panel, table: pd.DataFrame, place: str, colour: str | None) -> None:
    """Draw a quantity of one run; without a colour of the run, the two splits get theirs."""
    if panel.column not in table:
        return
    for split, own, style in (("train", TRAIN_COLOUR, "-"), ("val", VAL_COLOUR, "-" if colour is None else "--")):
        points = _points(table[table["split"] == split], place, panel.column, panel.scale)
        draw_curve(axes, points, Curve(colour or own, split, style, split == "val", panel.average))
    if panel.column == "grad_norm":
        where = find_skipped(table)
        axes.plot(
            table.loc[where, place],
            np.full(where.sum(), 0.02),
            linestyle="",
            marker="|",
            markersize=9,
            color=colour or SKIPPED_COLOUR,
            transform=axes.get_xaxis_transform(),
        )


def _points(rows: pd.DataFrame, place: str, column: str, scale: float) -> NDArray:
    return rows[[place, column]].dropna().to_numpy(float) * (1.0, scale)


def find_skipped(table: pd.DataFrame) -> pd.Series:
    """Mark the records since whose predecessor a step was skipped.

    Parameters
    ----------
    table
        Records by step, with or without `skipped_steps`, counted from the start of the run.

    Returns
    -------
    Bool per record.
    """
    if "skipped_steps" not in table:
        return pd.Series(False, table.index)
    counted = table["skipped_steps"].dropna()
    return (counted.diff().fillna(counted) > 0).reindex(table.index, fill_value=False)


def _finish(axes: Axes, panel: Panel, place: str) -> None:
    axes.set_title(panel.title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep="" if place == "step" else " "))
    tidy(axes)
    if panel.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < 100 * low else NullFormatter())
        return
    axes.ticklabel_format(axis="y", scilimits=(-2, 5))
    if panel not in LOSS_PANELS:
        axes.set_ylim(bottom=0)


def _add_legend(figure: Figure, tables: Mapping[str, pd.DataFrame]) -> None:
    """Say above the panels what the lines are, and how far each run came."""
    names = [f"{shorten(name, 40)}: {describe_progress(table)}" for name, table in tables.items()]
    train, val, skipped = (TRAIN_COLOUR, VAL_COLOUR, SKIPPED_COLOUR) if len(names) == 1 else ("#555555",) * 3
    kinds = {"training": Line2D([], [], color=train)}
    if any((table["split"] == "val").any() for table in tables.values()):
        style = "-" if len(names) == 1 else "--"
        kinds["held-out cells"] = Line2D([], [], color=val, linestyle=style, marker="o", markersize=4)
    if any(find_skipped(table).any() for table in tables.values()):
        kinds["skipped steps"] = Line2D([], [], color=skipped, linestyle="", marker="|", markersize=9)
    figure.legend(kinds.values(), kinds.keys(), loc="outside upper right", frameon=False, ncols=len(kinds))
    # Names of runs on the left, with their colours where there are several.
    width = 0.0 if len(names) == 1 else 2.5
    lines = [Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=width) for i in range(len(names))]
    figure.legend(
        lines, names, loc="outside upper left", frameon=False, handlelength=1.6 if width else 0, handletextpad=0.6
    )


def describe_progress(table: pd.DataFrame) -> str:
    """Say in a line how far a run came and what its lowest held-out loss was.

    Parameters
    ----------
    table
        Records with `step`, `cells`, `seconds`, `split` and `loss`.
    """
    facts = [f"step {int(table['step'].max()):,}", f"{EngFormatter(places=1)(table['cells'].max()).strip()} cells"]
    seconds = table["seconds"].max()
    facts.append(f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h")
    held_out = table.loc[table["split"] == "val"].dropna(subset="loss")
    if len(held_out):
        best = held_out.loc[held_out["loss"].idxmin()]
        facts.append(f"lowest held-out loss {best['loss']:.4g} at step {int(best['step']):,}")
    return ", ".join(facts)
