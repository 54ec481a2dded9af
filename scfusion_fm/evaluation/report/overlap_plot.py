"""A picture of what the panels of data sets share.

Letters: E data sets.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from scfusion_fm.evaluation.report.plots import MAX_NAME_LENGTH, shorten

MAX_NAMED = 40  # data sets whose names are readable beside a heat map
MAX_NUMBERED = 14


def plot_overlap(names: Sequence[str], shared_genes: ArrayLike, shared_proteins: ArrayLike) -> Figure:
    """
    Plot which share of its panel each data set has in common with the others, for genes and for proteins.

    Parameters
    ----------
    names
        E data sets.
    shared_genes, shared_proteins
        (E, E), number of features that both measure; a panel with itself on the diagonal.

    Raises
    ------
    ValueError
        If the shapes do not belong to the names.
    """
    size = len(names)
    for name, shared in (("shared_genes", shared_genes), ("shared_proteins", shared_proteins)):
        if np.shape(shared) != (size, size):
            raise ValueError(f"`{name}` must have the shape {(size, size)}, got {np.shape(shared)}.")
    side = float(np.clip(0.42 * size, 2.4, 9))
    longest = min(max(map(len, names)), MAX_NAME_LENGTH)
    figure = Figure(figsize=(2 * side + 0.075 * longest + 1.6, side + 0.075 * longest + 0.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    image = None
    for axes, title, shared in zip(panels, ("Genes", "Proteins"), (shared_genes, shared_proteins), strict=True):
        image = draw_overlap(axes, names, np.asarray(shared))
        axes.set_title(title)
    figure.colorbar(image, ax=panels, label="share of the row's panel", shrink=0.8, pad=0.01)
    return figure


def draw_overlap(axes: Axes, names: Sequence[str], shared: NDArray) -> AxesImage:
    """Draw which share of its panel each data set has in common with the others, see `plot_overlap`."""
    sizes = np.diag(shared).astype(float)
    measured = (sizes > 0)[:, None] & (sizes > 0)
    share = np.divide(shared, sizes[:, None], out=np.full(shared.shape, np.nan), where=measured)
    image = axes.imshow(share, cmap="viridis", vmin=0, vmax=1)
    axes.set_facecolor("#EEEEEE")  # of a data set without the modality
    ticks = range(len(names)) if len(names) <= MAX_NAMED else ()
    labels = [shorten(name) for name in names][: len(ticks)]
    axes.set_xticks(ticks, labels, rotation=90, fontsize=8)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if len(names) <= MAX_NUMBERED:
        for row, column in np.argwhere(~np.isnan(share)):
            colour = "black" if share[row, column] > 0.55 else "white"
            text = _short_number(int(shared[row, column]))
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=6.5)
    return image


def _short_number(number: int) -> str:
    return f"{number}" if number < 1000 else f"{number / 1000:.1f}k" if number < 10_000 else f"{number / 1000:.0f}k"
