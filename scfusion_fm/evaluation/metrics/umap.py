"""A layout of cells in two dimensions."""

import warnings

import numpy as np


def compute_umap(embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Lay cells out in two dimensions.

    Parameters
    ----------
    embedding
        (n, D), one row per cell.
    seed
        Seed of the layout; the same seed gives the same picture on the same machine.

    Returns
    -------
    (n, 2), positions without unit. Only neighbourhoods mean something.

    Raises
    ------
    ValueError
        If there are fewer than 4 cells.
    """
    if len(embedding) < 4:
        raise ValueError(f"`embedding` must hold at least 4 cells, got {len(embedding)}; pass more cells.")
    with warnings.catch_warnings():  # umap warns about the absence of TensorFlow, which nothing here uses
        warnings.simplefilter("ignore", ImportWarning)
        from umap import UMAP
    # One thread, since umap is reproducible only so; PCA start, since the spectral one fails on few cells.
    layout = UMAP(n_neighbors=min(15, len(embedding) - 1), min_dist=0.4, init="pca", random_state=seed, n_jobs=1)
    return layout.fit_transform(np.asarray(embedding, np.float32))
