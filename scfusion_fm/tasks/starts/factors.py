"""What varies together in cells of several studies, each of which measured other genes: factors and noise.

Letters: n cells of a study, K genes, C factors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

ITERATIONS = 8  # few, which shrink what few cells say of a gene
PENALTY = 1e-3
POWERS = 4  # of the covariance, by which the first components come out


@dataclass(frozen=True)
class StudyPart:
    """
    Cells of one study.

    Attributes
    ----------
    values
        (n, K) around 0, and 0 for genes that tell nothing.
    told
        (K,) which genes tell something.
    weights
        (n,) of the cells.
    """

    values: NDArray[np.float32]
    told: NDArray[np.bool_]
    weights: NDArray[np.float32]


def fit_factors(
    parts: list[StudyPart], number: int, least_noise: float, isotropic: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Fit factors such that cells vary with the covariance `loadings @ loadings.T + diag(noise)`.

    Parameters
    ----------
    parts
        Cells of each study.
    number
        Factors (C), at most as many as there are genes or cells.
    least_noise
        Lower bound of the noise.
    isotropic
        Whether all genes have the same noise (probabilistic principal components), or each its own (factor analysis).

    Returns
    -------
    Loadings (K, C) and the variance of the noise (K,).

    Notes
    -----
    Expectation maximisation over the genes that each study tells (Tipping and Bishop 1999, appendix B; Rubin and Thayer
    1982), from the principal components of the values with zeros for the rest. On one thread, for the same bits
    everywhere.
    """
    with threadpool_limits(1):
        count = sum(part.weights.sum() * part.told for part in parts)
        total = sum(part.weights @ np.square(part.values, dtype=np.float64) for part in parts)
        loadings = _find_components(parts, number)
        noise = _find_noise(total, np.square(loadings).sum(1) * count, count, least_noise, isotropic)
        patterns, pattern = np.unique(np.stack([part.told for part in parts]), axis=1, return_inverse=True)
        groups = [(np.flatnonzero(pattern.reshape(-1) == p), np.flatnonzero(has)) for p, has in enumerate(patterns.T)]
        for _ in range(ITERATIONS):
            crossed, moments = _expect(parts, loadings, noise)
            loadings = np.zeros_like(loadings)
            for genes, studies in groups:
                if len(studies):
                    cells = sum(parts[s].weights.sum() for s in studies)
                    moment = sum(moments[s] for s in studies) + PENALTY * cells * np.eye(loadings.shape[1])
                    loadings[genes] = np.linalg.solve(moment, crossed[genes].T).T
            noise = _find_noise(total, (loadings * crossed).sum(1), count, least_noise, isotropic)
    return loadings, noise


def _find_components(parts: list[StudyPart], number: int) -> NDArray[np.float64]:
    """Give principal components (K, C), in length their deviations, by randomised subspace iteration."""
    num_genes, num_cells = parts[0].values.shape[1], sum(len(part.values) for part in parts)
    number = min(number, num_genes, num_cells)
    basis = np.random.default_rng(0).normal(size=(num_genes, min(number + 10, num_genes, num_cells)))
    for _ in range(POWERS):
        basis = np.linalg.qr(_multiply(parts, basis))[0]
    along = [part.values @ basis.astype(np.float32) for part in parts]
    gram = sum(x.T.astype(np.float64) @ x for x in along) / num_cells
    variance, turn = np.linalg.eigh(gram)
    kept = slice(None, -number - 1, -1)
    return basis @ turn[:, kept] * np.sqrt(np.maximum(variance[kept], 1e-6))


def _multiply(parts: list[StudyPart], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the product of the covariance, up to its scale, and a basis (K, C)."""
    given = basis.astype(np.float32)
    return sum((part.values.T @ (part.values @ given)).astype(np.float64) for part in parts)


def _expect(
    parts: list[StudyPart], loadings: NDArray[np.float64], noise: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Give the products of genes and factors (K, C), and the second moments of factors in each study, (C, C)."""
    crossed, moments = np.zeros_like(loadings), []
    for part in parts:
        own, values = loadings[part.told], part.values[:, part.told]
        scaled = own / noise[part.told, None]
        spread = np.linalg.inv(np.eye(own.shape[1]) + own.T @ scaled)
        scores = values @ scaled @ spread
        weighted = scores * part.weights[:, None]
        crossed[part.told] += values.T @ weighted
        moments.append(weighted.T @ scores + part.weights.sum() * spread)
    return crossed, moments


def _find_noise(
    total: NDArray[np.float64],
    explained: NDArray[np.float64],
    count: NDArray[np.float64],
    least: float,
    isotropic: bool,
) -> NDArray[np.float64]:
    """Give the variance of the noise (K,) from sums over cells of squares, and of what factors explain of them."""
    rest = total - explained
    if isotropic:
        return np.full(len(total), max(rest.sum() / max(count.sum(), 1e-9), least))
    return np.maximum(rest / np.maximum(count, 1e-9), least)
