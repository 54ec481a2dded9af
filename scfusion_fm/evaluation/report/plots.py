"""Figures of a run: losses, embedding, confusions and predicted proteins.

`draw_*` draw into axes that are given. `plot_*` return a `matplotlib.figure.Figure` that belongs to no window and to no
global state.

Shapes: n cells, P proteins, D embedding width.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scfusion_fm.evaluation.metrics.labels import confusion_table
from scfusion_fm.evaluation.metrics.umap import compute_umap

# Okabe and Ito's colours, told apart by the colour-blind; without the yellow, which is too pale on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P")
GREY = "#B8B8B8"
LOSSES = {"loss": "Total loss", "rna_loss": "RNA loss", "adt_loss": "Protein loss"}
MAX_NAME_LENGTH = 28
MAX_UMAP_CELLS = 20_000
MAX_NAMED_BARS = 70
MANY_POINTS = 60


def plot_losses(metrics: pd.DataFrame) -> Figure:
    """Plot training and validation loss over the steps, in total and per modality.

    Parameters
    ----------
    metrics
        One row per record with `step`, `split` ("train" or "val"), `loss`, and `rna_loss` and `adt_loss`
        (missing values where the batch had no such modality). A loss without any value gets no panel.

    Raises
    ------
    ValueError
        If a column is missing or there is no loss at all.
    """
    missing = [name for name in ("step", "split", *LOSSES) if name not in metrics]
    if missing:
        raise ValueError(f"`metrics` must have the column {missing[0]!r}, got {list(metrics)}; add it.")
    panels = [name for name in LOSSES if metrics[name].notna().any()]
    if not panels:
        raise ValueError("`metrics` must hold at least one loss, got none; log a step first.")
    figure = Figure(figsize=(4.2 * len(panels), 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_losses(axes, metrics, name)
    figure.axes[0].set_ylabel("loss")
    figure.axes[0].legend(frameon=False)
    return figure


def draw_losses(axes: Axes, metrics: pd.DataFrame, name: str) -> None:
    """Draw training and validation loss over the steps; `name` is the column, see `plot_losses`."""
    for split, colour, label in (("train", COLOURS[0], "training"), ("val", COLOURS[3], "validation")):
        rows = metrics.loc[metrics["split"] == split, ["step", name]].dropna().astype(float)
        draw_curve(axes, rows.sort_values("step").to_numpy(), Curve(colour, label, dots=split == "val"))
    axes.set(title=LOSSES[name], xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    tidy(axes)


def plot_umap(embedding: np.ndarray, labels: np.ndarray, title: str, coloured: np.ndarray | None = None) -> Figure:
    """Plot the UMAP of an embedding with one colour and marker per cell type.

    Parameters
    ----------
    embedding
        (n, D), one row per cell; above 20,000 cells a random sample is shown.
    labels
        (n,), cell types.
    title
        Title of the figure.
    coloured
        (n,), bool: cells to colour, e.g. the test cells; the others are laid out with them and drawn grey.

    Raises
    ------
    ValueError
        If lengths differ or there are fewer than 4 cells.
    """
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    axes = figure.subplots()
    n_columns = draw_umap(axes, embedding, labels, coloured)
    axes.set_title(title)
    figure.set_figwidth(6.0 + 3.0 * n_columns)
    return figure


def draw_umap(axes: Axes, embedding: np.ndarray, labels: np.ndarray, coloured: np.ndarray | None = None) -> int:
    """Draw the UMAP of an embedding, see `plot_umap`; return the number of columns of the legend beside it."""
    labels = np.asarray(labels).astype(str)
    coloured = np.ones(len(labels), bool) if coloured is None else np.asarray(coloured, bool)
    if not len(embedding) == len(labels) == len(coloured):
        raise ValueError(
            f"`embedding`, `labels` and `coloured` must be of one length, got {len(embedding)}, "
            f"{len(labels)} and {len(coloured)}; select the same cells."
        )
    chosen = choose_cells(len(labels))
    labels, coloured, positions = labels[chosen], coloured[chosen], lay_out(embedding[chosen])
    size = _size_of_dots(coloured.sum())
    if not coloured.all():
        rest = positions[~coloured]
        axes.scatter(*rest.T, s=size * 0.4, c=GREY, linewidths=0, label=f"other cells ({len(rest)})")
    _draw_cell_types(axes, positions[coloured], labels[coloured], size)
    _tidy_umap(axes)
    n_columns = 1 + (len(axes.get_legend_handles_labels()[0]) - 1) // 22
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        markerscale=(45 / size) ** 0.5,
        ncols=n_columns,
    )
    return n_columns


def draw_values(axes: Axes, embedding: np.ndarray, values: np.ndarray, name: str) -> None:
    """Draw the UMAP of an embedding, coloured by numbers, (n,); cells without one are grey and below."""
    chosen = choose_cells(len(values))
    values, positions = np.asarray(values, float)[chosen], lay_out(embedding[chosen])
    known = np.isfinite(values)
    size = _size_of_dots(known.sum())
    axes.scatter(*positions[~known].T, s=size * 0.4, c=GREY, linewidths=0)
    image = axes.scatter(*positions[known].T, s=size, c=values[known], cmap="viridis", linewidths=0)
    axes.figure.colorbar(image, ax=axes, label=shorten(name), fraction=0.04, pad=0.02)
    _tidy_umap(axes)


def choose_cells(number: int) -> np.ndarray:
    """Choose the cells of a UMAP: all, or a random sample of many."""
    if number <= MAX_UMAP_CELLS:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).choice(number, MAX_UMAP_CELLS, replace=False))


def lay_out(embedding: np.ndarray) -> np.ndarray:
    """Give places in the plane, (n, 2); those of an embedding that is a layout stay."""
    return embedding if embedding.shape[1] == 2 else compute_umap(embedding)


def _size_of_dots(number: int) -> float:
    return float(np.clip(8000 / max(number, 1), 4, 26))


def _tidy_umap(axes: Axes) -> None:
    axes.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    tidy(axes, grid=False)


def plot_confusion(labels: np.ndarray, predicted: np.ndarray) -> Figure:
    """Plot which cell types are taken for which: colour by share of the true type, counts in the cells.

    Parameters
    ----------
    labels
        (n,), true cell types: the rows.
    predicted
        (n,), predicted cell types: the columns.

    Raises
    ------
    ValueError
        If the arrays are empty or differ in length.
    """
    table = tabulate_confusions(labels, predicted)
    figure = Figure(figsize=size_of_confusions(table), layout="constrained")
    axes = figure.subplots()
    draw_confusion(axes, table)
    axes.set(ylabel="true (test cells)", title="Confusions on the test cells")
    return figure


def tabulate_confusions(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Count pairs of true (rows) and predicted (columns) types; a type that was only predicted has no row."""
    table = confusion_table(labels, predicted)
    return table.loc[table.sum(axis=1) > 0]


def size_of_confusions(table: pd.DataFrame) -> tuple[float, float]:
    """Give the size of a figure in which the numbers of a table have room, in inches."""
    return 3.4 + 0.5 * table.shape[1], 2.4 + 0.42 * table.shape[0]


def draw_confusion(axes: Axes, table: pd.DataFrame) -> None:
    """Draw which types are taken for which, see `plot_confusion`; the table is that of `tabulate_confusions`."""
    totals = table.sum(axis=1)
    shares = table.div(totals, axis=0).to_numpy()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(table.to_numpy()):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(table.shape[1]), [shorten(name) for name in table.columns], rotation=45, ha="right")
    axes.set_yticks(range(len(table)), [f"{shorten(name)} ({totals[name]})" for name in table.index])
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(np.arange(0.5, table.shape[1] - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(table) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, label="share of the true type", fraction=0.04, pad=0.02)


def plot_proteins(
    measured: np.ndarray,
    predicted: np.ndarray,
    names: list[str],
    scores: pd.DataFrame,
    baseline: pd.Series | None = None,
) -> Figure:
    """Plot predicted against measured abundance for some proteins, and the correlation of all.

    Parameters
    ----------
    measured
        (n, P), normalised abundance; NaN where not observed.
    predicted
        (n, P), in the same unit.
    names
        (P,), names of the proteins.
    scores
        Index: position of the protein; column `pearson`. NaN where it is undefined.
    baseline
        Correlations of a baseline, same index; its `name` goes into the legend.

    Raises
    ------
    ValueError
        If shapes do not fit or no protein has a correlation.
    """
    if np.shape(measured) != np.shape(predicted) or np.shape(measured)[1:] != (len(names),):
        raise ValueError(
            f"`measured` and `predicted` must be (cells, {len(names)} proteins), got "
            f"{np.shape(measured)} and {np.shape(predicted)}; select the same cells and proteins."
        )
    ranking = scores["pearson"].dropna().sort_values(ascending=False, kind="stable")
    if ranking.empty:
        raise ValueError("`scores` must hold a Pearson correlation, got none; pass proteins that vary.")
    chosen = choose_best_middle_worst(ranking.index.to_numpy())
    figure = Figure(figsize=(11.0, 10.0), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.75, 1])
    for axes, (position, rank) in zip(upper.subplots(2, 3).flat, _pad(chosen, 6), strict=True):
        if position is None:
            axes.set_axis_off()
            continue
        draw_protein(axes, np.asarray(measured)[:, position], np.asarray(predicted)[:, position])
        axes.set_title(f"{shorten(names[position])}   ({rank}, r = {ranking[position]:.2f})", fontsize=11)
    upper.supxlabel("measured")
    upper.supylabel("predicted")
    draw_correlations(lower.subplots(), ranking, names, baseline)
    return figure


def choose_best_middle_worst(ranked: np.ndarray) -> list[tuple[int, str]]:
    """Pick the two first, two middle and two last of a ranking, each once.

    Parameters
    ----------
    ranked
        (P,), positions, the best first.

    Returns
    -------
    Up to six pairs of position and "best", "middle" or "worst".
    """
    middle = max(len(ranked) // 2 - 1, 0)
    groups = (("best", ranked[:2]), ("worst", ranked[2:][-2:]), ("middle", ranked[middle : middle + 2]))
    chosen: dict[int, str] = {}
    for rank, positions in groups:
        for position in positions:
            chosen.setdefault(int(position), rank)
    order = {int(position): place for place, position in enumerate(ranked)}
    return sorted(chosen.items(), key=lambda item: order[item[0]])


@dataclass(frozen=True)
class Curve:
    """How to draw a curve.

    Attributes
    ----------
    colour, label, style
        As matplotlib has them.
    dots
        Whether to mark the points of a curve that has few.
    average
        "mean" or "median": what runs over a curve that has many; None leaves it as it is.
    """

    colour: str
    label: str
    style: str = "-"
    dots: bool = False
    average: str | None = "mean"


def draw_curve(axes: Axes, points: np.ndarray, curve: Curve) -> None:
    """Draw one curve; where it has many points, faintly, under its running average.

    Parameters
    ----------
    axes
        Where to draw.
    points
        (n, 2), places and values; nothing is drawn where there are none.
    curve
        How to draw it.
    """
    if not len(points):
        return
    if len(points) < MANY_POINTS or curve.average is None:
        marker = "o" if (curve.dots and len(points) < MANY_POINTS) or len(points) < 3 else None
        axes.plot(*points.T, color=curve.colour, marker=marker, markersize=4, linestyle=curve.style, label=curve.label)
        return
    window = max(len(points) // 30, 3)
    axes.plot(*points.T, color=curve.colour, alpha=0.25, linewidth=0.8)
    smooth = pd.Series(points[:, 1]).rolling(window, min_periods=1, center=True).agg(curve.average)
    label = f"{curve.label} ({curve.average} of {window} records)"
    axes.plot(points[:, 0], smooth, color=curve.colour, linestyle=curve.style, label=label)


def tidy(axes: Axes, grid: bool = True) -> None:
    """Take away the frame's upper and right side and put a faint grid behind the data.

    Parameters
    ----------
    axes
        What to tidy.
    grid
        Whether to draw the grid.
    """
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color="#E4E4E4", linewidth=0.7)
        axes.set_axisbelow(True)


def shorten(name: str, length: int = MAX_NAME_LENGTH) -> str:
    """Cut a long name and keep matplotlib from reading dollar signs as mathematics.

    Parameters
    ----------
    name
        The name.
    length
        Characters that it may have.
    """
    if len(name) > length:  # in the middle, since names of subtypes differ at the end
        tail = length // 2 - 1
        name = f"{name[: length - tail - 1]}…{name[-tail:]}"
    return name.replace("$", r"\$")


def _pad(chosen: list[tuple[int, str]], length: int) -> list[tuple[int | None, str]]:
    """Fill up with empty panels."""
    return [*chosen, *[(None, "")] * (length - len(chosen))]


def _draw_cell_types(axes: Axes, positions: np.ndarray, labels: np.ndarray, size: float) -> None:
    """Draw one group of points per cell type, the most frequent first and so at the bottom."""
    counts = pd.Series(labels).value_counts()
    styles = [(colour, marker) for marker in MARKERS for colour in COLOURS]
    own, rest = counts.index[: len(styles)], counts.index[len(styles) :]
    for name, (colour, marker) in zip(own, styles, strict=False):
        points = positions[labels == name]
        axes.scatter(
            *points.T, s=size, c=colour, marker=marker, linewidths=0, alpha=0.85,
            label=f"{shorten(name)} ({counts[name]})",
        )  # fmt: skip
    if len(rest):
        points = positions[np.isin(labels, rest)]
        axes.scatter(*points.T, s=size, c=GREY, marker="x", label=f"{len(rest)} rarer types ({len(points)})")


def draw_protein(axes: Axes, measured: np.ndarray, predicted: np.ndarray) -> None:
    """Draw one protein's cells and the line on which prediction and measurement agree."""
    seen = np.isfinite(measured) & np.isfinite(predicted)
    measured, predicted = measured[seen], predicted[seen]
    axes.scatter(measured, predicted, s=float(np.clip(4000 / len(measured), 3, 14)), c=COLOURS[0], alpha=0.5, lw=0)
    ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axes.plot(ends, ends, color="#666666", linewidth=1, linestyle="--")
    tidy(axes)


def draw_correlations(axes: Axes, ranking: pd.Series, names: list[str], baseline: pd.Series | None = None) -> None:
    """Draw the correlation of every protein, the best first, and the baseline's as points; see `plot_proteins`."""
    places = np.arange(len(ranking))
    axes.bar(places, ranking, color=COLOURS[0], width=0.75, label=f"scFusionTTT (mean {ranking.mean():.2f})")
    if baseline is not None:
        values = baseline.reindex(ranking.index)
        label = f"{baseline.name} (mean {values.mean():.2f})"
        axes.scatter(places, values, color=COLOURS[1], edgecolor="black", lw=0.6, s=26, zorder=3, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel="Pearson r over test cells", xlim=(-0.8, len(ranking) - 0.2))
    if len(ranking) <= MAX_NAMED_BARS:
        labels = [shorten(names[position], 18) for position in ranking.index]
        axes.set_xticks(places, labels, rotation=90, fontsize=min(9, 540 / len(ranking)))
    else:
        axes.set_xlabel(f"{len(ranking)} proteins, best first")
    tidy(axes)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
