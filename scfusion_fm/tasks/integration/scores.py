"""Scores of embeddings of the same cells, of the model and of other methods.

Letters: n cells.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.integration import (
    HARMONY,
    SCVI,
    correct_by_harmony,
    embed_by_components,
    embed_by_scvi,
)
from scfusion_fm.evaluation.metrics.integration import (
    integration_scores,
    keeping_score,
    mixing_score,
    overall_score,
)
from scfusion_fm.evaluation.metrics.scib import scib_scores
from scfusion_fm.tasks.integration.cells import BatchedCells

SEES_SCORED = (HARMONY, SCVI)  # they embed only cells that they were fitted on, those that are scored among them


def embed_by_baselines(
    data: BatchedCells, fit: NDArray[np.int64], rows: NDArray[np.int64], seed: int
) -> dict[str, NDArray[np.float64]]:
    """Embed some cells by other methods, of which components are found on the cells `fit`; (len(rows), ...) each."""
    used = np.unique(np.concatenate([fit, rows]))
    values, observed = data.read_features(used)
    batch = np.unique(data.codes[used], return_inverse=True)[1]
    found = embed_by_components(values, observed, batch, np.searchsorted(used, fit), seed)
    harmony = correct_by_harmony(found.get("PCA", found["PCA within batches"]), batch, seed)
    if harmony is not None:
        found[HARMONY] = harmony
    shared = observed.all(0)
    if "rna" in data.modalities and shared.sum() > 1:
        scvi = embed_by_scvi(data.aligned.rna[used][:, np.flatnonzero(shared)], batch, seed)
        if scvi is not None:
            found[SCVI] = scvi
    places = np.searchsorted(used, rows)
    return {method: np.asarray(values)[places] for method, values in found.items()}


def score_embedding(
    method: str,
    cells: str,
    embedding: NDArray[np.floating],
    batches: NDArray[np.str_],
    types: NDArray[np.str_],
    seed: int,
) -> dict[str, Any]:
    """Score an embedding of some cells: a line of the table."""
    found = integration_scores(embedding, batches, types, seed)
    summary = {"overall": overall_score(found), "types": keeping_score(found), "batches": mixing_score(found)}
    numbers = summary | found | scib_scores(np.asarray(embedding, np.float32), batches, types)
    scores = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
    return {"method": method, "cells": cells, **scores, "n": len(embedding)}
