"""Baselines of annotation, fitted on the cells that the model gets."""

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.annotation import AnnotationTask
from scfusion_fm.evaluation.baselines.classifiers import Features, annotate_baselines
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.splits import join_rows


def build_features(data: LabelledCells, rows: NDArray[np.int64]) -> Features:
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


def build_baseline_task(data: LabelledCells, rows: dict[str, NDArray[np.int64]], seed: int = 0) -> AnnotationTask:
    """Give the baselines the cells and features that the model gets."""
    used, split = join_rows(rows)
    return AnnotationTask(build_features(data, used), data.labels[used], split, seed)


def fit_annotation_baselines(
    data: LabelledCells, rows: dict[str, NDArray[np.int64]], seed: int = 0
) -> dict[tuple[str, str], NDArray[np.str_]]:
    """Fit the quick baselines; names for `test` by method and inputs."""
    task = build_baseline_task(data, rows, seed)
    return annotate_baselines(task.features, task.labels, task.split, seed)
