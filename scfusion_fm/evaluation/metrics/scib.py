"""Scores of scib-metrics, where that package is installed, beside our own of the same kinds."""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

NUM_NEIGHBOURS = 90


def scib_scores(embedding: NDArray[np.floating], batch: NDArray[np.str_], labels: NDArray[np.str_]) -> dict[str, float]:
    """
    Score an embedding (n, D) by scib-metrics; nothing where it is not installed.

    Returns
    -------
    `scib_silhouette_label`, `scib_silhouette_batch`, `scib_ilisi`, `scib_clisi` and `scib_graph_connectivity`.
    """
    if find_spec("scib_metrics") is None:
        return {}
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    number = min(NUM_NEIGHBOURS, len(embedding) - 1)
    # With the cell itself, as scib-metrics takes them.
    distances, indices = NearestNeighbors(n_neighbors=number).fit(embedding).kneighbors(embedding)
    near = NeighborsResults(indices=indices, distances=distances)
    return {
        "scib_silhouette_label": float(scib_metrics.silhouette_label(embedding, labels)),
        "scib_silhouette_batch": float(scib_metrics.silhouette_batch(embedding, labels, batch)),
        "scib_ilisi": float(np.asarray(scib_metrics.ilisi_knn(near, batch))),
        "scib_clisi": float(np.asarray(scib_metrics.clisi_knn(near, labels))),
        "scib_graph_connectivity": float(scib_metrics.graph_connectivity(near, labels)),
    }
