"""Draw the figures of docs/concepts.md: python scripts/draw_concepts.py docs/pictures."""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from scfusion_fm.config.pretrain import LoaderConfig
from scfusion_fm.data.stream.order import CellOrder, rank_slots

RNA, ADT, GREY, DARK, RED = "#3b78b5", "#d9822b", "#d4d7dc", "#333333", "#c0392b"
STYLE = {"svg.hashsalt": "concepts", "font.size": 9, "font.family": "DejaVu Sans", "hatch.linewidth": 0.6}


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where the SVG files go")
    directory = parser.parse_args().directory
    matplotlib.use("Agg")
    with plt.rc_context(STYLE):
        for name, draw in (("tokens", draw_tokens), ("ttt", draw_ttt), ("stages", draw_stages), ("order", draw_order)):
            figure = draw()
            figure.savefig(directory / f"concept_{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)


def draw_tokens() -> plt.Figure:
    """Draw the way from the counts of a cell to its tokens."""
    figure, ax = _start(9.5, 2.7, (0, 24), (4.2, 10.6))
    counts = [3, 0, 1, 0, 7, None, 0, 2, 0, None, None, None, 5, 1, 0, 4]
    ax.annotate("", (16.6, 9.2), (0, 9.2), arrowprops={"arrowstyle": "->", "color": DARK})
    _write(ax, 0, 10.1, "RNA: genes in the order of the genome", RNA, ha="left", weight="bold")
    for i, count in enumerate(counts):
        ax.plot([i + 0.5] * 2, [9.05, 9.35], color=DARK, linewidth=1)
        _cell(ax, i, 7.6, count, RNA)
    _write(ax, 17.2, 10.1, "proteins: in the order of their genes", ADT, ha="left", weight="bold")
    for i, count in enumerate([12, 0, None, 31, None, 4]):
        _cell(ax, 17.5 + i, 7.6, count, ADT)
        if count is not None:
            _arrow(ax, (18 + i, 7.4), (18 + i, 5.6))
            _box(ax, 17.6 + i, 4.4, 0.8, 1.1, "abcdef"[i], ADT)
    for patch in range(4):
        _bracket(ax, 4 * patch + 0.1, 4 * patch + 3.9, 7.3)
        _arrow(ax, (4 * patch + 2, 6.9), (4 * patch + 2, 5.6))
        _box(ax, 4 * patch + 1, 4.4, 2, 1.1, f"token {patch + 1}", RNA)
        if patch == 3:
            _mask(ax, 4 * patch + 1, 4.4, 2, 1.1)
    return figure


def draw_ttt() -> plt.Figure:
    """Draw fast weights that learn while the tokens of a cell come by, and how their error falls."""
    figure, (ax, curve) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(2.4, 1), layout="constrained")
    ax.set(xlim=(0, 15.5), ylim=(0, 7))
    ax.axis("off")
    for i in range(4):
        x = 0.4 + 3.7 * i
        _box(ax, x + 0.2, 0.3, 1.6, 1, f"token {i + 1}", RNA)
        _box(ax, x, 2.7, 2, 1.2, f"$W_{i}$", "#6b4fa0")
        _box(ax, x + 0.2, 5.3, 1.6, 1, f"output {i + 1}", GREY, DARK)
        _arrow(ax, (x + 1, 1.35), (x + 1, 2.65))
        _arrow(ax, (x + 1, 3.95), (x + 1, 5.25))
        if i < 3:
            _arrow(ax, (x + 2.05, 3.3), (x + 3.65, 3.3), RED)
            _write(ax, x + 2.85, 3.75, "learn", RED)
    rule = "predict one view of the token from another,  v ≈ W k;  one step down the error;  read out W q"
    _write(ax, 0.4, 6.8, rule, DARK, ha="left")
    rng = np.random.default_rng(0)
    errors = np.mean([_read_online(rng) for _ in range(40)], axis=0)
    curve.plot(errors, color="#6b4fa0")
    curve.set(xlabel="tokens read", ylabel="error of the inner prediction", ylim=(0, None), yticks=[0])
    curve.spines[["top", "right"]].set_visible(False)
    return figure


def _read_online(rng: np.random.Generator, width: int = 16, length: int = 120) -> np.ndarray:
    """Give the errors of a linear map that takes one step of gradient descent for each token of a made-up cell."""
    truth = rng.normal(size=(width, width)) / np.sqrt(width)  # the rule by which this cell's views belong together
    weights, errors = np.zeros((width, width)), []
    for key in rng.normal(size=(length, width)) / np.sqrt(width):
        error = weights @ key - truth @ key
        errors.append(float(error @ error))
        weights -= 0.6 * np.outer(error, key)
    return np.convolve(errors, np.ones(8) / 8, mode="valid")


def draw_stages() -> plt.Figure:
    """Draw the three stages, and which parts learn in each."""
    figure, ax = _start(10, 3.9, (0, 30), (0, 10.4))
    titles = ("1. Pretrain", "2. Fine-tune", "3. RNA alone")
    told = (
        "without labels: fill in\nwhat was hidden",
        "with labels, or with\nproteins to predict",
        "labels of paired cells,\nused on RNA alone",
    )
    for stage in range(3):
        x = 10.2 * stage
        _write(ax, x + 4.7, 10, titles[stage], DARK, weight="bold", size=11)
        _write(ax, x + 4.7, 0.5, told[stage], DARK)
        _box(ax, x + 0.6, 2, 3.2, 1.2, "RNA", RNA)
        learns = stage < 2
        _box(ax, x + 0.6, 4, 3.2, 1.2, "encoder", RNA if learns else GREY, "white" if learns else DARK)
        if stage < 2:
            _box(ax, x + 5.4, 2, 3.2, 1.2, "proteins", ADT)
            _box(ax, x + 5.4, 4, 3.2, 1.2, "encoder", ADT)
            _arrow(ax, (x + 7, 3.2), (x + 7, 4))
        else:
            _box(ax, x + 5.4, 4, 3.2, 1.2, "projected", "#6b4fa0")
            _arrow(ax, (x + 3.8, 4.6), (x + 5.4, 4.6))
        if stage == 0:
            _mask(ax, x + 2.7, 2, 1.1, 1.2)
            _mask(ax, x + 5.4, 2, 1.1, 1.2)
        _box(ax, x + 0.6, 6, 8, 1.2, "fusion", "#4a7c59" if learns else GREY, "white" if learns else DARK)
        for side in (2.2, 7):
            _arrow(ax, (x + side, 5.2), (x + side, 6))
            _arrow(ax, (x + side, 7.2), (x + side, 8))
        _arrow(ax, (x + 2.2, 3.2), (x + 2.2, 4))
        if stage == 0:
            _box(ax, x + 0.6, 8, 3.2, 1.2, "hidden genes", RNA)
            _box(ax, x + 5.4, 8, 3.2, 1.2, "hidden proteins", ADT)
        else:
            _box(ax, x + 0.6, 8, 8, 1.2, "head: types" if stage == 2 else "head: types, or proteins", "#6b4fa0")
    return figure


def draw_order() -> plt.Figure:
    """Draw the cells of every step, whoever reads them, computed with the order and the shares of the package."""
    batch, steps, lanes = 8, 6, 4
    loader = LoaderConfig(block_rows=2, window_blocks=2, lanes=lanes)
    order = CellOrder({"a": np.arange(batch * steps)}, 0, loader)
    stream = _read_stream(order, batch * steps).reshape(steps, batch)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    runs = {"one process": [1] * 6, "two processes": [2] * 6, "two, killed in step 3; then four": [2, 2, 4, 4, 4, 4]}
    for ax, (title, sizes) in zip(axes, runs.items(), strict=True):
        ax.set(xlim=(-0.6, steps - 0.4), ylim=(batch - 0.4, -1.7), title=title)
        ax.axis("off")
        for step, ranks in enumerate(sizes):
            _write(ax, step, -1.1, str(step + 1), DARK)
            for rank in range(ranks):
                slots = rank_slots(batch, lanes, rank, ranks)
                _draw_share(ax, step, rank * len(slots), stream[step, slots] / stream.size, stream[step, slots])
        if len(set(sizes)) > 1:
            ax.plot([1.5, 1.5], [-0.6, batch - 0.5], color=RED, linestyle="--")
    return figure


def _draw_share(ax: Axes, step: int, top: int, shades: np.ndarray, cells: np.ndarray) -> None:
    """Draw the cells that a process reads in a step, with a line above them."""
    for row, (shade, cell) in enumerate(zip(shades, cells, strict=True), start=top):
        colour = plt.get_cmap("viridis")(shade)
        ax.add_patch(Rectangle((step - 0.42, row - 0.42), 0.84, 0.84, color=colour))
        _write(ax, step, row, str(cell), "white" if shade < 0.6 else DARK, size=7)
    if top:
        ax.plot([step - 0.45, step + 0.45], [top - 0.5] * 2, color="black", linewidth=1.4)


def _read_stream(order: CellOrder, count: int) -> np.ndarray:
    """Give the rows of the first positions of a stream."""
    epoch, window, inside = order.locate(np.arange(count))
    return np.array([order.window(e, w)[0][i] for e, w, i in zip(epoch, window, inside, strict=True)])


def _start(width: float, height: float, x: tuple[float, float], y: tuple[float, float]) -> tuple[plt.Figure, Axes]:
    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set(xlim=x, ylim=y)
    ax.axis("off")
    return figure, ax


def _cell(ax: Axes, x: float, y: float, count: int | None, colour: str) -> None:
    """Draw a count, or that there is none."""
    face = "white" if count is None else matplotlib.colors.to_rgba(colour, 0.12 + min(count, 10) / 20)
    hatch = "////" if count is None else None
    ax.add_patch(Rectangle((x + 0.06, y), 0.88, 1, facecolor=face, edgecolor=GREY, hatch=hatch))
    if count is not None:
        _write(ax, x + 0.5, y + 0.5, str(count), DARK)


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, ink: str = "white") -> None:
    style = "round,pad=0,rounding_size=0.2"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="none"))
    _write(ax, x + width / 2, y + height / 2, text, ink)


def _mask(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    for ends in ((y, y + height), (y + height, y)):
        ax.plot([x, x + width], ends, color=RED, linewidth=1.6)


def _bracket(ax: Axes, left: float, right: float, y: float) -> None:
    ax.plot([left, left, right, right], [y, y - 0.3, y - 0.3, y], color=DARK, linewidth=1)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = DARK) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="->", mutation_scale=10, color=colour, shrinkA=0, shrinkB=0))


def _write(ax: Axes, x: float, y: float, text: str, colour: str, **style: object) -> None:
    ax.text(x, y, text, **({"ha": "center", "va": "center", "color": colour} | style))


if __name__ == "__main__":
    main()
