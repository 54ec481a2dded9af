"""Baselines that predict one modality from the other, fitted on the cells that the model gets."""

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.prediction import PredictionTask
from scfusion_fm.evaluation.baselines.regressors import predict_protein_baselines
from scfusion_fm.tasks.cross_modal.cells import SOURCE_OF, PairedCells
from scfusion_fm.tasks.splits import join_rows


def build_baseline_task(data: PairedCells, rows: dict[str, NDArray[np.int64]], seed: int = 0) -> PredictionTask:
    """Give the baselines the cells and features that the model gets."""
    used, split = join_rows(rows)
    aligned, extractor = data.aligned, data.extractor
    if data.target == "adt":
        shown = np.flatnonzero(aligned.rna_observed)
        x = extractor.normalise_rna(aligned.rna[used][:, shown].toarray(), aligned.rna_total_counts[used])
        own, wanted = extractor.gene_ids, extractor.protein_gene_ids
    else:
        shown = np.flatnonzero(aligned.adt_observed)
        observed = aligned.adt_observed_in(used)
        x = np.where(observed, extractor.normalise_adt(aligned.adt[used], observed), np.nan)[:, shown]
        own, wanted = extractor.protein_gene_ids, extractor.gene_ids
    column = {own[place]: i for i, place in reversed(list(enumerate(shown)))}
    return PredictionTask(
        x=x,
        y=data.measured[used],
        observed=data.observed[used],
        split=split,
        inputs=SOURCE_OF[data.target],
        own_columns=[column.get(wanted[i]) for i in data.panel],
        seed=seed,
    )


def fit_protein_baselines(
    data: PairedCells, rows: dict[str, NDArray[np.int64]], seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Fit the quick baselines that predict proteins; predictions for `test` by method."""
    task = build_baseline_task(data, rows, seed)
    return predict_protein_baselines(task.x, task.y, task.observed, task.own_columns, task.split, seed)
