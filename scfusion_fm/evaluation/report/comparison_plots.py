"""Pictures of an evaluation: scores per class or protein, and scores against the number of labels."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scfusion_fm.evaluation.report.plots import COLOURS, MARKERS, shorten, tidy

MAX_ROWS = 70


@dataclass(frozen=True)
class Series:
    """The scores of a method.

    Attributes
    ----------
    name
        The method.
    values
        `mean`, `low` and `high` by class, protein or gene; or `mean` and `sd` by number of labels.
    is_model
        Whether it is a model of ours.
    """

    name: str
    values: pd.DataFrame
    is_model: bool


def plot_parts(series: list[Series], score: str, title: str) -> Figure:
    """Plot the score of every class or protein as dots with their range over folds, the best on top.

    Parameters
    ----------
    series
        The methods; the first one's mean orders the rows.
    score
        Name of the score.
    title
        What is shown.

    Notes
    -----
    Of more than 70 parts, the first method is plotted against the last, a dot each; or, alone, on the best 70.
    """
    first = series[0].values["mean"].sort_values(na_position="first")
    if len(first) > MAX_ROWS and len(series) > 1:
        return _plot_against(series[0], series[-1], score, title)
    if len(first) > MAX_ROWS:
        title = f"{title}: the best {MAX_ROWS} of {len(first):,}"
        first = first.tail(MAX_ROWS)
    figure = Figure(figsize=(7.4, 1.4 + 0.24 * len(first)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(first))
    for i, one in enumerate(series):
        values = one.values.reindex(first.index)
        shift = 0.22 * ((len(series) - 1) / 2 - i)
        reach = np.maximum([values["mean"] - values["low"], values["high"] - values["mean"]], 0)
        axes.errorbar(
            values["mean"], places + shift, xerr=reach, fmt=MARKERS[i % len(MARKERS)], markersize=5,
            color=COLOURS[i % len(COLOURS)], elinewidth=1, label=f"{one.name} (mean {values['mean'].mean():.2f})",
        )  # fmt: skip
    axes.set_yticks(places, [shorten(str(name)) for name in first.index], fontsize=8)
    axes.set(xlabel=score, title=title, ylim=(-0.8, len(first) - 0.2))
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=min(len(series), 2), frameon=False)
    return figure


def _plot_against(own: Series, other: Series, score: str, title: str) -> Figure:
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    pairs = pd.concat([other.values["mean"], own.values["mean"]], axis=1, keys=["x", "y"]).dropna()
    axes.scatter(pairs["x"], pairs["y"], s=9, alpha=0.5, color=COLOURS[0], linewidths=0)
    ends = [pairs.min().min(), pairs.max().max()]
    axes.plot(ends, ends, color="#666666", linewidth=1, linestyle="--")
    above = (pairs["y"] > pairs["x"]).mean()
    axes.set(xlabel=f"{score}, {other.name}", ylabel=f"{score}, {own.name}")
    axes.set_title(f"{title}: {len(pairs)}, of which {above:.0%} above the line", fontsize=10)
    tidy(axes)
    return figure


def plot_budgets(panels: dict[str, list[Series]], score: str) -> Figure:
    """Plot scores against the number of labelled cells, a panel for each input.

    Parameters
    ----------
    panels
        Methods by input; their values are indexed by the number of labels.
    score
        Name of the score.
    """
    figure = Figure(figsize=(4.0 * len(panels) + 0.6, 4.3), layout="constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (inputs, series) in zip(drawn, panels.items(), strict=True):
        _draw_budgets(axes, series)
        axes.set(title=f"from {inputs}", xlabel="labelled cells", xscale="log")
        budgets = sorted({int(n) for one in series for n in one.values.index})
        axes.set_xticks(budgets, [f"{n:,}" for n in budgets], fontsize=8)
        axes.minorticks_off()
        tidy(axes)
    drawn[0].set_ylabel(score)
    figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_budgets(axes: Axes, series: list[Series]) -> None:
    for i, one in enumerate(series):
        values = one.values.sort_index()
        axes.errorbar(
            values.index, values["mean"], yerr=values["sd"].fillna(0), color=COLOURS[i % len(COLOURS)], capsize=2,
            marker=MARKERS[i % len(MARKERS)], markersize=5, linewidth=2 if one.is_model else 1.2,
            linestyle="-" if one.is_model else "--", label=one.name,
        )  # fmt: skip
