"""Baselines that predict one modality from the other, fitted on the cells that the model gets."""

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.prediction import OWN, PredictionTask, fit_prediction_baselines
from scfusion_fm.evaluation.baselines.studies import normalise_sparse
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.tasks.cross_modal.cells import SOURCE_OF, PairedCells
from scfusion_fm.tasks.splits import limit_training

SHOWN_PREDICTORS = ("mean", OWN, "PCA + kNN", "PCA + ridge")


def build_prediction_task(data: PairedCells, partition: Partition, seed: int) -> PredictionTask:
    """Give the baselines the cells and features that the model gets."""
    used, places = partition.join()
    aligned, extractor = data.aligned, data.extractor
    if data.target == "adt":
        shown = np.flatnonzero(aligned.rna_observed)
        x = normalise_sparse(aligned.rna[used][:, shown], aligned.rna_total_counts[used], extractor.target_sum)
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
        partition=places,
        inputs=SOURCE_OF[data.target],
        own_columns=[column.get(wanted[i]) for i in data.panel],
        seed=seed,
        study=number_studies(data, used),
    )


def number_studies(data: PairedCells, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Give the number of each cell's batch, those with another panel of genes apart; None without batches."""
    if data.batches is None:
        return None
    panel = data.aligned.rna_panels_in(rows)[1]
    names = [f"{batch} {number}" for batch, number in zip(data.batches[rows], panel, strict=True)]
    return np.unique(names, return_inverse=True)[1]


def predict_by_baselines(data: PairedCells, partition: Partition, seed: int) -> dict[str, NDArray[np.float64]]:
    """Fit the baselines that stand beside a fine-tuned model; predictions for the scored cells by method."""
    task = build_prediction_task(data, limit_training(partition.as_tested, seed), seed)
    return fit_prediction_baselines(task, SHOWN_PREDICTORS).test
