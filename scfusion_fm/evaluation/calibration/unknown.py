"""Cells of a type that a classifier does not know: scores, thresholds with a promised rate, and how well they do.

Letters: n cells, K classes, D width of the embedding, A rates.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from scfusion_fm.evaluation.calibration.conformal import conformal_quantiles

SCORES = ("max_softmax", "energy", "mahalanobis", "knn")
NEIGHBOURS = 10


@dataclass(frozen=True)
class CellOutputs:
    """
    What a classifier gives of cells.

    Attributes
    ----------
    logits
        (n, K).
    embedding
        (n, D).
    """

    logits: NDArray[np.floating]
    embedding: NDArray[np.floating]

    def take(self, rows: ArrayLike) -> "CellOutputs":
        """Select cells by index or mask."""
        return CellOutputs(self.logits[rows], self.embedding[rows])


@dataclass(frozen=True)
class ClassGaussians:
    """
    A normal distribution of embeddings per class, all with one covariance.

    Attributes
    ----------
    means
        (K, D), of the classes that have cells.
    whitening
        (D, D), W with W W' the inverse covariance within classes, shrunk after Ledoit and Wolf.
    """

    means: NDArray[np.float64]
    whitening: NDArray[np.float64]

    @classmethod
    def fit(cls, embedding: ArrayLike, codes: ArrayLike) -> "ClassGaussians":
        """
        Fit to training cells, (n, D) and (n,) class indices; numbers keep 6 digits, so that a text file holds them.

        Raises
        ------
        ValueError
            If lengths differ or there are fewer than 2 cells.
        """
        embedding, codes = np.asarray(embedding, np.float64), np.asarray(codes)
        if len(embedding) != len(codes) or len(codes) < 2:
            raise ValueError(
                f"`codes` must give the class of each of at least 2 cells, got {len(codes)} for {len(embedding)} cells."
            )
        classes, place = np.unique(codes, return_inverse=True)
        means = np.stack([embedding[codes == c].mean(0) for c in classes])
        covariance = LedoitWolf(assume_centered=True).fit(embedding - means[place]).covariance_
        covariance += 1e-9 * max(np.trace(covariance) / len(covariance), 1e-9) * np.eye(len(covariance))
        return cls(_shorten(means), _shorten(np.linalg.cholesky(np.linalg.inv(covariance))))

    def distance(self, embedding: ArrayLike) -> NDArray[np.float64]:
        """Give the squared Mahalanobis distance of each cell to the nearest class, (n,)."""
        white, means = np.asarray(embedding, np.float64) @ self.whitening, self.means @ self.whitening
        return np.stack([np.square(white - mean).sum(1) for mean in means], 1).min(1)


def score_unknown(
    name: str, cells: CellOutputs, gaussians: ClassGaussians | None = None, training: ArrayLike | None = None
) -> NDArray[np.float64]:
    """
    Say how much each cell looks as if its type were unknown, (n,); higher is more.

    Parameters
    ----------
    name
        `max_softmax`: 1 - the highest probability (Hendrycks and Gimpel 2017), without temperature. `energy`:
        -log sum exp of the logits (Liu et al. 2020). `mahalanobis`: squared distance to the nearest class in the
        embedding (Lee et al. 2018). `knn`: mean distance to the 10 nearest training cells (Sun et al. 2022).
    cells
        The cells.
    gaussians
        For `mahalanobis`.
    training
        (m, D) embedding of the training cells, for `knn`.

    Raises
    ------
    ValueError
        If the name is unknown, or what it needs is missing.
    """
    if name not in SCORES:
        raise ValueError(f"`unknown_score` must be one of {list(SCORES)}, got {name!r}.")
    logits = np.asarray(cells.logits, np.float64)
    if name == "max_softmax":
        return -np.expm1(logits.max(1) - logsumexp(logits, axis=1))
    if name == "energy":
        return -logsumexp(logits, axis=1)
    if name == "mahalanobis" and gaussians is not None:
        return gaussians.distance(cells.embedding)
    if name == "knn" and training is not None:
        known = np.asarray(training, np.float64)
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known))).fit(known)
        return near.kneighbors(np.asarray(cells.embedding, np.float64))[0].mean(1)
    raise ValueError(f"`unknown_score` {name!r} needs the training cells; pass `gaussians` or `training`.")


def reject_thresholds(scores: ArrayLike, rates: Iterable[float]) -> NDArray[np.float64]:
    """
    Give the scores above which a cell is called unknown, (A,), from held-out cells of known types.

    Parameters
    ----------
    scores
        (n,) of calibration cells that took no part in the fit.
    rates
        False-reject rates, in (0, 1): at most this share of cells of known types is called unknown.

    Returns
    -------
    The ceil((n + 1) (1 - rate))-th smallest score; infinite, so that nothing is rejected, where n is too small.

    Raises
    ------
    ValueError
        If a rate is out of range.

    Notes
    -----
    Calling a cell unknown when its score is above this is the same as when its conformal p-value
    (1 + number of calibration scores that are not lower) / (n + 1) is at most the rate. So a cell that is exchangeable
    with the calibration cells is rejected with a probability of at most the rate, on average over cells and
    calibrations; not for each cell type, and not for cells of another panel, donor or laboratory. Nothing is promised
    of the cells of unknown types that are accepted: without examples of them no rate can be. `leave_types_out`
    estimates it. Guarded by tests/evaluation/calibration/test_unknown.py.
    """
    rates = tuple(rates)
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise ValueError(f"`reject_rates` must lie in (0, 1), at least one, got {list(rates)}.")
    return conformal_quantiles(np.asarray(scores, np.float64)[:, None], tuple(1 - rate for rate in rates))[:, 0]


def _shorten(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([float(f"{x:.6g}") for x in values.ravel()]).reshape(values.shape)
