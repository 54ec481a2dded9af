"""Kernel ridge regression with targets that were not measured in every cell.

Shapes: n cells, C features, T targets.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.metrics.pairwise import euclidean_distances

from scfusion_fm.evaluation.baselines.regressors import Predictor, Targets, fit_ridges

KERNEL_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(4, -5, -1))
KERNEL_WIDTHS = (0.25, 1.0)
MAX_LANDMARKS = 250

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


def fit_kernel_ridges(x: NDArray, targets: Targets, seed: int = 0) -> Iterable[tuple[str, Predictor]]:
    """Yield kernel ridge regressions over kernels and penalties, each target fitted on the cells that have it.

    Parameters
    ----------
    x
        (n_train, C), features.
    targets
        Targets of the same cells.
    seed
        Seed of the landmarks.

    Notes
    -----
    Ridge regressions on coordinates whose products are the kernel: exact up to `MAX_LANDMARKS` cells; of more, the
    kernel is projected on that many of them (Nystroem's method), so that memory grows with cells, not with pairs.
    """
    landmarks = x
    if len(x) > MAX_LANDMARKS:
        landmarks = x[np.sort(np.random.default_rng(seed).choice(len(x), MAX_LANDMARKS, replace=False))]
    for name, kernel in build_kernels(x):
        values, vectors = eigh(kernel(landmarks, landmarks))
        kept = values > values.max() * 1e-10
        show = partial(_show, kernel=kernel, landmarks=landmarks, root=vectors[:, kept] / np.sqrt(values[kept]))
        for penalty, ridge in fit_ridges(show(x), targets, KERNEL_PENALTIES):
            yield f"{name}, {penalty}", partial(_predict, show=show, ridge=ridge)


def _show(query: NDArray, kernel: Kernel, landmarks: NDArray, root: NDArray) -> NDArray:
    """Return coordinates (m, K) whose products are the kernel."""
    return kernel(query, landmarks) @ root


def _predict(query: NDArray, show: Predictor, ridge: Predictor) -> NDArray:
    """Return (m, T), the ridge's prediction from the coordinates."""
    return ridge(show(query))
