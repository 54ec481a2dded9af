"""Scores of how well an embedding mixes batches and keeps cell types apart.

Shapes: n cells, D embedding width, k neighbours. All scores lie in [0, 1], higher is better. Definitions follow scIB
(Luecken et al. 2022, Nature Methods 19:41) where it has them, always by Euclidean distance in all D dimensions.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import xlogy
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

MAX_SILHOUETTE_CELLS = 10_000
PERPLEXITY = 30
GRAPH_NEIGHBOURS = 15
ENTROPY_NEIGHBOURS = 50


def integration_scores(embedding: ArrayLike, batch: ArrayLike, labels: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Score an embedding of several batches.

    Parameters
    ----------
    embedding
        (n, D), one row per cell; never its UMAP.
    batch
        (n,), batch, donor or data set; at least two.
    labels
        (n,), cell types; at least two.
    seed
        Seed of the sample of cells behind the silhouettes where there are more than 10,000.

    Returns
    -------
    Mixing of batches: `batch_asw`, `ilisi`, `batch_entropy`. Keeping of types: `label_asw`, `clisi`,
    `graph_connectivity`.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two batches or labels.
    """
    embedding, batch = check_embedding(embedding, batch, "batch")
    embedding, labels = check_embedding(embedding, labels, "labels")
    chosen = np.arange(len(labels))
    if len(labels) > MAX_SILHOUETTE_CELLS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), MAX_SILHOUETTE_CELLS, replace=False))
    return {
        "batch_asw": batch_asw(embedding[chosen], batch[chosen], labels[chosen]),
        "ilisi": ilisi(embedding, batch),
        "batch_entropy": batch_entropy(embedding, batch),
        "label_asw": label_asw(embedding[chosen], labels[chosen]),
        "clisi": clisi(embedding, labels),
        "graph_connectivity": graph_connectivity(embedding, labels),
    }


def overall_score(scores: Mapping[str, float]) -> float:
    """Return 0.6 of the mean of what tells types apart and 0.4 of that of what mixes batches, as scIB weighs them."""
    return 0.6 * keeping_score(scores) + 0.4 * mixing_score(scores)


def keeping_score(scores: Mapping[str, float]) -> float:
    """Return the mean of the scores of types that exist."""
    return _mean_of(scores, ("label_asw", "clisi", "graph_connectivity"))


def mixing_score(scores: Mapping[str, float]) -> float:
    """Return the mean of the scores of batches that exist: without a type in two batches, some do not."""
    return _mean_of(scores, ("batch_asw", "ilisi", "batch_entropy"))


def _mean_of(scores: Mapping[str, float], names: tuple[str, ...]) -> float:
    values = [scores[name] for name in names if np.isfinite(scores[name])]
    return float(np.mean(values)) if values else float("nan")


def label_asw(embedding: ArrayLike, labels: ArrayLike) -> float:
    """Return (silhouette of the cell types + 1) / 2, averaged over cells.

    Parameters
    ----------
    embedding
        (n, D).
    labels
        (n,), cell types.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two labels.
    """
    embedding, labels = check_embedding(embedding, labels, "labels")
    if len(np.unique(labels)) == len(labels):
        return float("nan")
    return float((silhouette_samples(embedding, labels).mean() + 1) / 2)


def batch_asw(embedding: ArrayLike, batch: ArrayLike, labels: ArrayLike) -> float:
    """Return 1 - |silhouette of the batches| within each cell type, averaged over its cells and then over types.

    Parameters
    ----------
    embedding
        (n, D).
    batch
        (n,), batches.
    labels
        (n,), cell types. A type in one batch only, or with one cell per batch, is left out; NaN if all are.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two batches.
    """
    embedding, batch = check_embedding(embedding, batch, "batch")
    labels = np.asarray(labels).astype(str)
    scores = []
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        if 2 <= len(np.unique(batch[rows])) < len(rows):
            scores.append(1 - np.abs(silhouette_samples(embedding[rows], batch[rows])).mean())
    return float(np.mean(scores)) if scores else float("nan")


def ilisi(embedding: ArrayLike, batch: ArrayLike) -> float:
    """Return the median LISI of the batches, from 0 (one batch around every cell) to 1 (all, equally often).

    Parameters
    ----------
    embedding
        (n, D).
    batch
        (n,), batches.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two batches.

    Notes
    -----
    (median - 1) / (number of batches - 1), as in scIB, of the LISI of Korsunsky et al. 2019, Nature Methods 16:1289.
    Batches of unequal size cannot reach 1.
    """
    embedding, batch = check_embedding(embedding, batch, "batch")
    return float((np.median(lisi(embedding, batch)) - 1) / (len(np.unique(batch)) - 1))


def clisi(embedding: ArrayLike, labels: ArrayLike) -> float:
    """Return the median LISI of the cell types, from 0 (all around every cell) to 1 (its own only).

    Parameters
    ----------
    embedding
        (n, D).
    labels
        (n,), cell types.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two labels.

    Notes
    -----
    (number of types - median) / (number of types - 1), as in scIB.
    """
    embedding, labels = check_embedding(embedding, labels, "labels")
    n_types = len(np.unique(labels))
    return float((n_types - np.median(lisi(embedding, labels))) / (n_types - 1))


def lisi(embedding: NDArray, groups: NDArray) -> NDArray[np.float64]:
    """Return for every cell the effective number of groups among its neighbours.

    Parameters
    ----------
    embedding
        (n, D).
    groups
        (n,), batches or cell types.

    Returns
    -------
    (n,), 1 / sum of squared shares. Neighbours, the cell itself not among them, weigh by a Gaussian of their distance
    whose width gives a perplexity of 30, out of the 90 nearest; both are smaller where there are fewer cells.
    """
    perplexity = min(PERPLEXITY, max((len(embedding) - 1) / 3, 1.0))
    distances, neighbours = find_neighbours(embedding, round(3 * perplexity))
    weights = weigh_to_perplexity(distances, perplexity)
    names, codes = np.unique(groups, return_inverse=True)
    shares = np.stack([np.where(codes[neighbours] == code, weights, 0).sum(axis=1) for code in range(len(names))])
    return 1 / np.square(shares).sum(axis=0)


def weigh_to_perplexity(distances: NDArray, perplexity: float) -> NDArray[np.float64]:
    """Return Gaussian weights whose entropy is the logarithm of the perplexity, by bisection of the width.

    Parameters
    ----------
    distances
        (n, k), distances to the neighbours.
    perplexity
        Effective number of neighbours, at most k.

    Returns
    -------
    (n, k), rows add up to 1.
    """
    squared = np.square(distances)
    squared = squared - squared.min(axis=1, keepdims=True)
    spread = np.maximum(squared.mean(axis=1, keepdims=True), 1e-300)
    squared = squared / spread
    low, high = np.full((len(squared), 1), -20.0), np.full((len(squared), 1), 20.0)
    for _ in range(50):
        middle = (low + high) / 2
        weights = np.exp(-np.exp(middle) * squared)
        weights /= weights.sum(axis=1, keepdims=True)
        too_flat = -xlogy(weights, weights).sum(axis=1, keepdims=True) > np.log(perplexity)
        low, high = np.where(too_flat, middle, low), np.where(too_flat, high, middle)
    return weights


def batch_entropy(embedding: ArrayLike, batch: ArrayLike) -> float:
    """Return the mean entropy of the batches around a cell, relative to that of equal shares.

    Parameters
    ----------
    embedding
        (n, D).
    batch
        (n,), batches.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two batches.

    Notes
    -----
    Entropy of mixing as in Haghverdi et al. 2018, Nature Biotechnology 36:421, with all cells instead of random ones,
    and every neighbour weighed by the inverse of its batch's size, so that unequal batches can reach 1.
    """
    embedding, batch = check_embedding(embedding, batch, "batch")
    names, codes, sizes = np.unique(batch, return_inverse=True, return_counts=True)
    around = codes[find_neighbours(embedding, ENTROPY_NEIGHBOURS)[1]]
    shares = np.stack([(around == code).sum(axis=1) / sizes[code] for code in range(len(names))], axis=1)
    shares = shares / shares.sum(axis=1, keepdims=True)
    return float(-xlogy(shares, shares).sum(axis=1).mean() / np.log(len(names)))


def graph_connectivity(embedding: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of a cell type's cells that hang together in the neighbour graph, averaged over types.

    Parameters
    ----------
    embedding
        (n, D).
    labels
        (n,), cell types.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two labels.

    Notes
    -----
    The largest connected component of the type's own part of the graph, as in scIB; two cells are joined if either is
    among the other's neighbours.
    """
    embedding, labels = check_embedding(embedding, labels, "labels")
    neighbours = find_neighbours(embedding, GRAPH_NEIGHBOURS)[1]
    n_cells, k = neighbours.shape
    rows = np.repeat(np.arange(n_cells), k)
    graph = sparse.csr_matrix((np.ones(n_cells * k), (rows, neighbours.ravel())), shape=(n_cells, n_cells))
    shares = []
    for name in np.unique(labels):
        mine = labels == name
        components = connected_components(graph[mine][:, mine], directed=True, connection="weak")[1]
        shares.append(np.bincount(components).max() / mine.sum())
    return float(np.mean(shares))


def find_neighbours(embedding: NDArray, n_neighbors: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return distances and positions of every cell's nearest cells, without itself.

    Parameters
    ----------
    embedding
        (n, D).
    n_neighbors
        Neighbours per cell; at most n - 1 are returned.
    """
    n_neighbors = min(n_neighbors, len(embedding) - 1)
    return NearestNeighbors(n_neighbors=n_neighbors).fit(embedding).kneighbors()


def check_embedding(embedding: ArrayLike, groups: ArrayLike, name: str) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Return both as arrays, or raise if they cannot be scored.

    Parameters
    ----------
    embedding
        (n, D).
    groups
        (n,), batches or cell types.
    name
        What the message calls `groups`.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two groups.
    """
    embedding, groups = np.asarray(embedding, np.float64), np.asarray(groups).astype(str)
    if embedding.ndim != 2 or groups.shape != embedding.shape[:1]:
        raise ValueError(
            f"`embedding` must be (cells, width) with one entry of `{name}` per cell, got {embedding.shape} and "
            f"{groups.shape}; select the same cells from both."
        )
    if not np.isfinite(embedding).all():
        raise ValueError("`embedding` must be finite, got NaN or infinity; drop such cells.")
    if len(np.unique(groups)) < 2:
        raise ValueError(f"`{name}` must hold at least two groups, got {np.unique(groups).tolist()}; pass another.")
    return embedding, groups
