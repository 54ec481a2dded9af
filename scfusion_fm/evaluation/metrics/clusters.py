"""How an embedding keeps cell types apart: its clusters, its neighbourhoods, and the way of scoring of earlier papers.

Shapes: n cells, D embedding width.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors

from scfusion_fm.evaluation.metrics.integration import MAX_SILHOUETTE_CELLS, check_embedding
from scfusion_fm.evaluation.metrics.umap import compute_umap

MAX_CLUSTERED_CELLS = 10_000
N_STARTS = 10


def cluster_scores(embedding: ArrayLike, labels: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Cluster an embedding into as many groups as there are cell types, and compare the clusters with these.

    Parameters
    ----------
    embedding
        (n, D), one row per cell; never its UMAP. Of more than 10,000 cells, as many are drawn.
    labels
        (n,), cell types; never read by the clustering but for their number.
    seed
        Seed of draw and k-means.

    Returns
    -------
    `ari` and `nmi` (arithmetic mean) of k-means, and `ari_ward` of Ward's method.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are fewer than two labels.
    """
    embedding, labels = check_embedding(embedding, labels, "labels")
    if len(labels) > MAX_CLUSTERED_CELLS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), MAX_CLUSTERED_CELLS, replace=False))
        embedding, labels = embedding[chosen], labels[chosen]
    n_clusters = min(len(np.unique(labels)), len(labels) - 1)
    means = KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit_predict(embedding)
    ward = AgglomerativeClustering(n_clusters).fit_predict(embedding)
    return score_agreement(labels, means) | {"ari_ward": score_agreement(labels, ward)["ari"]}


def paper_protocol_scores(embedding: ArrayLike, labels: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Score all cells as the papers of scMMAE and scFusionTTT do, to be shown beside scores of held-out cells only.

    Parameters
    ----------
    embedding
        (n, D), all cells, those of the training too.
    labels
        (n,), cell types or the clusters that stand for them.
    seed
        Seed of k-means and UMAP.

    Returns
    -------
    `ari` and `nmi` of k-means with as many clusters as labels; then silhouette, Calinski-Harabasz and Davies-Bouldin
    index of the labels in the two dimensions of a UMAP (`umap_...`) and, for comparison, in the embedding itself
    (`full_...`). Davies-Bouldin is better when lower; Calinski-Harabasz has no upper limit.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or the number of labels is not in [2, n - 1].

    Notes
    -----
    A reading of published protocols, not a copy: their code leaves several settings open, and clusters by Leiden where
    it is installed. UMAP pulls neighbours together and gaps open, so that indices on it say little about the
    embedding.
    """
    embedding, labels = check_embedding(embedding, labels, "labels")
    n_types = len(np.unique(labels))
    if n_types >= len(labels):
        raise ValueError(f"`labels` must repeat, got {n_types} labels in {len(labels)} cells; pass other labels.")
    clusters = KMeans(n_types, n_init=N_STARTS, random_state=seed).fit_predict(embedding)
    scores = score_agreement(labels, clusters)
    for name, positions in (("umap", compute_umap(embedding, seed)), ("full", embedding)):
        sample = MAX_SILHOUETTE_CELLS if len(labels) > MAX_SILHOUETTE_CELLS else None
        scores[f"{name}_silhouette"] = float(silhouette_score(positions, labels, sample_size=sample, random_state=seed))
        scores[f"{name}_calinski_harabasz"] = float(calinski_harabasz_score(positions, labels))
        scores[f"{name}_davies_bouldin"] = float(davies_bouldin_score(positions, labels))
    return scores


def score_agreement(labels: NDArray, clusters: NDArray) -> dict[str, float]:
    """Return adjusted Rand index and normalised mutual information.

    Parameters
    ----------
    labels
        (n,), cell types.
    clusters
        (n,), clusters.
    """
    return {
        "ari": float(adjusted_rand_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
    }


def separation_scores(
    embedding: ArrayLike, labels: ArrayLike, n_neighbors: int = 15, seed: int = 0
) -> dict[str, float]:
    """Score how well cell types separate in an embedding, by Euclidean distance in all its dimensions.

    Parameters
    ----------
    embedding
        (n, D), one row per cell; the embedding itself, never its UMAP.
    labels
        (n,), cell types.
    n_neighbors
        Neighbours per cell, the cell itself not counted; at most n - 1 are used.
    seed
        Seed of the sample of cells behind the silhouette where there are more than 10,000.

    Returns
    -------
    `silhouette` in [-1, 1], the mean over cells, and `knn_purity` in [0, 1], the mean share of a cell's
    nearest neighbours that have its label.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or the number of classes is not in [2, n - 1].
    """
    embedding, labels = np.asarray(embedding), check_embedding(embedding, labels, "labels")[1]
    n_classes = len(np.unique(labels))
    if n_classes == len(labels):
        raise ValueError(f"`labels` must repeat, got {n_classes} labels in {len(labels)} cells; pass other labels.")
    n_neighbors = min(n_neighbors, len(labels) - 1)
    # Without an argument, kneighbors leaves each cell out of its own neighbours.
    neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(embedding).kneighbors(return_distance=False)
    sample_size = MAX_SILHOUETTE_CELLS if len(labels) > MAX_SILHOUETTE_CELLS else None
    silhouette = silhouette_score(embedding, labels, sample_size=sample_size, random_state=seed)
    return {
        "silhouette": float(silhouette),
        "knn_purity": float((labels[neighbours] == labels[:, None]).mean()),
    }
