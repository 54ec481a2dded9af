"""Baselines of annotation, fitted on the cells that the model gets."""

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.annotation import LOGISTIC, AnnotationTask, fit_annotation_baselines
from scfusion_fm.evaluation.baselines.features import Features
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.splits import limit_training

SHOWN_CLASSIFIERS = ("majority", LOGISTIC, "PCA + kNN")


def show_features(data: LabelledCells, rows: NDArray[np.int64]) -> Features:
    """Give the baselines what the model gets of some cells: RNA with 0, proteins with NaN where not measured."""
    aligned, extractor = data.aligned, data.extractor
    shown = {modality for part in data.inputs.values() for modality in part}
    rna = adt = None
    if "rna" in shown:
        counts = aligned.rna[rows][:, aligned.rna_observed].toarray()
        rna = extractor.normalise_rna(counts, aligned.rna_total_counts[rows])
    if "adt" in shown:
        panel = aligned.adt_observed
        observed = aligned.adt_observed_in(rows)[:, panel]
        adt = np.where(observed, extractor.normalise_adt(aligned.adt[rows][:, panel], observed), np.nan)
    return Features(rna=rna, adt=adt)


def build_annotation_task(data: LabelledCells, partition: Partition, seed: int) -> AnnotationTask:
    """Give the baselines the cells and features that the model gets."""
    used, places = partition.join()
    study = np.unique(data.aligned.rna_panels_in(used)[1], return_inverse=True)[1]
    return AnnotationTask(show_features(data, used), data.labels[used], places, seed, study=study)


def name_by_baselines(data: LabelledCells, partition: Partition, seed: int) -> dict[tuple[str, str], NDArray[np.str_]]:
    """Fit the baselines that stand beside a fine-tuned model; names for the scored cells by method and inputs."""
    task = build_annotation_task(data, limit_training(partition.as_tested, seed), seed)
    return fit_annotation_baselines(task, SHOWN_CLASSIFIERS).name_test_cells()
