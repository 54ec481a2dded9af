"""Kernel ridge regression with targets that were not measured in every cell.

Shapes: n cells, C features, T targets.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.metrics.pairwise import euclidean_distances

from scfusion_fm.evaluation.baselines.regressors import Predictor, Targets

KERNEL_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))
KERNEL_WIDTHS = (0.25, 0.5, 1.0, 2.0)
MAX_KERNEL_CELLS = 4000
MAX_PATTERNS = 16

Kernel = Callable[[NDArray, NDArray], NDArray]


def rbf_kernel(a: NDArray, b: NDArray, gamma: float) -> NDArray[np.float64]:
    """Return exp(-gamma |a - b|^2) for all pairs of cells.

    Parameters
    ----------
    a
        (n, C), features.
    b
        (m, C), features.
    gamma
        Inverse of the squared width.
    """
    return np.exp(-gamma * euclidean_distances(a, b, squared=True))


def arc_cosine_kernel(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Return the arc-cosine kernel of order 1, that of a wide layer of rectified units, for all pairs of cells.

    Parameters
    ----------
    a
        (n, C), features.
    b
        (m, C), features.

    Notes
    -----
    Cho and Saul 2009: |a| |b| (sin t + (pi - t) cos t) / pi, with t the angle between the two.
    """
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    cosine = np.clip(np.divide(a @ b.T, norms, out=np.zeros_like(norms), where=norms > 0), -1, 1)
    angle = np.arccos(cosine)
    return norms * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi


def build_kernels(x: NDArray) -> Iterable[tuple[str, Kernel]]:
    """Yield the kernels to choose from: arc-cosine, and RBF kernels around the median distance.

    Parameters
    ----------
    x
        (n, C), the training cells' features.
    """
    size = float(np.square(x).sum(axis=1).mean()) or 1.0

    def scaled_arc_cosine(a: NDArray, b: NDArray) -> NDArray:
        return arc_cosine_kernel(a, b) / size

    yield "arc-cosine", scaled_arc_cosine
    sample = x[np.linspace(0, len(x) - 1, min(len(x), 500)).astype(int)]
    distances = euclidean_distances(sample, squared=True)
    median = float(np.median(distances[~np.eye(len(sample), dtype=bool)])) if len(sample) > 1 else 1.0
    for width in KERNEL_WIDTHS:
        yield f"RBF, {width:g} / median", partial(rbf_kernel, gamma=width / (median or 1.0))


def fit_kernel_ridges(x: NDArray, targets: Targets, filled: NDArray, seed: int = 0) -> Iterable[tuple[str, Predictor]]:
    """Yield kernel ridge regressions over kernels and penalties.

    Parameters
    ----------
    x
        (n_train, C), features.
    targets
        Targets of the same cells.
    filled
        (n_train, T), centred targets with a guess where they were not observed.
    seed
        Seed of the sample of cells where there are more than 4,000.

    Notes
    -----
    Each target is fitted on the cells in which it was observed. Targets that were observed in the same cells share a
    decomposition; where there are more than 16 such patterns, all targets are fitted on all cells, with the guesses.
    """
    rows = np.arange(len(x))
    if len(x) > MAX_KERNEL_CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), MAX_KERNEL_CELLS, replace=False))
    x, filled, observed = x[rows], filled[rows], targets.observed[rows]
    patterns, pattern_of_target = np.unique(observed, axis=1, return_inverse=True)
    if patterns.shape[1] > MAX_PATTERNS:
        groups = [(np.arange(len(x)), np.flatnonzero(observed.any(axis=0)))]
    else:
        groups = [
            (np.flatnonzero(cells), np.flatnonzero(pattern_of_target == i))
            for i, cells in enumerate(patterns.T)
            if cells.any()
        ]
    for name, kernel in build_kernels(x):
        gram = kernel(x, x)
        parts = [(eigh(gram[np.ix_(cells, cells)]), cells, columns) for cells, columns in groups]
        for penalty in KERNEL_PENALTIES:
            weights, offsets = np.zeros_like(filled), targets.mean.copy()
            for (values, vectors), cells, columns in parts:
                y = filled[np.ix_(cells, columns)]
                centre = y.mean(axis=0)
                solved = vectors @ ((vectors.T @ (y - centre)) / (np.maximum(values, 0) + penalty)[:, None])
                weights[np.ix_(cells, columns)] = solved
                offsets[columns] += centre
            yield f"{name}, alpha={penalty:g}", partial(_predict, kernel=kernel, x=x, weights=weights, offsets=offsets)


def _predict(query: NDArray, kernel: Kernel, x: NDArray, weights: NDArray, offsets: NDArray) -> NDArray:
    """Return (m, T), the kernel's weighted sums."""
    return kernel(query, x) @ weights + offsets
