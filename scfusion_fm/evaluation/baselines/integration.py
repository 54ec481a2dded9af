"""Embeddings that mix batches by simple or usual methods: principal components, Harmony and scVI where installed.

Letters: n cells, G genes, K coordinates.
"""

from importlib.util import find_spec

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from scfusion_fm.evaluation.baselines.studies import StudyComponents

NUM_COMPONENTS = 50
HARMONY, SCVI = "PCA + Harmony", "scVI"


def embed_by_components(
    values: sparse.csr_matrix, observed: NDArray[np.bool_], batch: NDArray[np.int64], fit: NDArray[np.int64], seed: int
) -> dict[str, NDArray[np.float64]]:
    """
    Embed cells by principal components of some of them.

    Parameters
    ----------
    values, observed
        (n, G) normalised expression, and where it was measured.
    batch
        (n,) numbers of the batches, from 0.
    fit
        Rows that the components are found on.
    seed
        Of the search.

    Returns
    -------
    (n, K) by method: "PCA" of the genes that all batches measured, which mixes nothing, and "PCA within batches",
    around the mean of each batch, which takes the batches that are scored into account.
    """
    shared = np.flatnonzero(observed.any(0) & np.stack([observed[batch == code].any(0) for code in set(batch)]).all(0))
    one = np.zeros(len(batch), np.int64)
    found = {}
    if len(shared) > 1:
        cells = (values[:, shared], observed[:, shared])
        plain = StudyComponents.fit(cells[0][fit], cells[1][fit], one[fit], NUM_COMPONENTS, seed)
        # Around the mean of the cells that were fitted on.
        found["PCA"] = cells[0] @ plain.directions - plain.means[0] @ plain.directions
    within = StudyComponents.fit(
        values[fit], observed[fit], np.unique(batch[fit], return_inverse=True)[1], NUM_COMPONENTS, seed
    )
    return found | {"PCA within batches": within.read(values, observed, batch)}


def correct_by_harmony(
    coordinates: NDArray[np.float64], batch: NDArray[np.int64], seed: int
) -> NDArray[np.float64] | None:
    """Correct principal components of all cells together (Korsunsky et al. 2019); None where harmonypy is missing."""
    if find_spec("harmonypy") is None:
        return None
    import logging

    import harmonypy

    logging.getLogger("harmonypy").setLevel(logging.WARNING)
    names = pd.DataFrame({"batch": batch.astype(str)})
    corrected = np.asarray(harmonypy.run_harmony(coordinates, names, ["batch"], random_state=seed).Z_corr)
    return corrected if len(corrected) == len(coordinates) else corrected.T  # older versions give columns


def embed_by_scvi(counts: sparse.csr_matrix, batch: NDArray[np.int64], seed: int) -> NDArray[np.float64] | None:
    """Embed all cells together by scVI (Lopez et al. 2018) with its default settings; None where it is missing."""
    if find_spec("scvi") is None:
        return None
    import anndata as ad
    import scvi

    scvi.settings.seed = seed
    adata = ad.AnnData(counts, obs=pd.DataFrame({"batch": batch.astype(str)}, index=np.arange(len(batch)).astype(str)))
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    model.train(enable_progress_bar=False)
    return np.asarray(model.get_latent_representation())
