"""Calibrate a fine-tuned classifier on held-out cells, and tell how it does on cells of types that it does not know."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from scfusion_fm.evaluation.calibration.classifier import AnnotationCalibration, calibrate_input
from scfusion_fm.evaluation.calibration.unknown import CellOutputs, ClassGaussians
from scfusion_fm.evaluation.metrics.probabilities import expected_calibration_error
from scfusion_fm.evaluation.partition import PARTS, Partition
from scfusion_fm.evaluation.protocol.open_set import OpenSetTask, choose_score, leave_types_out
from scfusion_fm.tasks.annotation.baselines import show_features
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, FittedAnnotation, fit_annotation
from scfusion_fm.tasks.weights import Weights

CALIBRATED = "temperatures and thresholds"
MOST_CELLS_PER_CLASS = 5000  # more make no mean and no covariance of embeddings surer, and all are in memory


def calibrate_annotation(
    fitted: FittedAnnotation, data: LabelledCells, partition: Partition, score: str = "mahalanobis"
) -> AnnotationCalibration:
    """
    Fit temperatures and thresholds on the calibration cells, by what is shown of them.

    Parameters
    ----------
    fitted
        The classifier.
    data
        All cells.
    partition
        Which cells trained, and which calibrate.
    score
        How unknown cells are recognised.
    """
    found = {}
    for name, inputs in data.inputs.items():
        held_out = _having(data, partition.calibration, inputs)
        if len(held_out) == 0:
            continue
        gaussians = None
        if score == "mahalanobis":
            gaussians = _fit_gaussians(fitted, data, _having(data, partition.train, inputs), inputs)
        cells = fitted.run(data.aligned, held_out, inputs)
        if name == "rna" and fitted.readout is not None:  # as cells of a new study are named
            logits, known = fitted.readout.logits_when_left_out(held_out)
            if known.any():
                cells, held_out = CellOutputs(logits[known], cells.embedding[known]), held_out[known]
        found[name] = calibrate_input(cells, data.codes[held_out], score, gaussians)
    return AnnotationCalibration(data.classes, score, found)


def adopt_calibration(
    calibration: AnnotationCalibration, fitted: FittedAnnotation, data: LabelledCells, rows: NDArray[np.int64]
) -> AnnotationCalibration:
    """
    Give temperatures and thresholds of another classifier to one that has learned from the cells that calibrated.

    Its own features of its training cells stand for those of the other one, where unknown cells are recognised by them.
    """
    found = {
        name: own
        if own.gaussians is None
        else dataclasses.replace(
            own, gaussians=_fit_gaussians(fitted, data, _having(data, rows, data.inputs[name]), data.inputs[name])
        )
        for name, own in calibration.inputs.items()
    }
    return dataclasses.replace(calibration, inputs=found)


def describe_calibration(
    calibration: AnnotationCalibration, fitted: FittedAnnotation, data: LabelledCells, test: NDArray[np.int64]
) -> dict[str, Any]:
    """Give what the results tell: calibration error and rejected test cells of known types, promised and counted."""
    told = {"unknown_score": calibration.score, "inputs": {}}
    for name, found in calibration.inputs.items():
        inputs = data.inputs[name]
        rows = _having(data, test, inputs)
        facts = {"calibration_cells": found.n, "temperature": found.temperature, "test_cells": len(rows)}
        if len(rows):
            cells, kinds = fitted.run(data.aligned, rows, inputs), np.full(len(rows), name)
            labels, scores = data.labels[rows], calibration.unknown_scores(cells, kinds)
            plain = softmax(cells.logits.astype(np.float64), axis=1)
            mended = calibration.probabilities(cells.logits, kinds)
            facts["ece"] = expected_calibration_error(mended, data.classes, labels)
            facts["ece_before"] = expected_calibration_error(plain, data.classes, labels)
            facts["false_reject"] = {
                str(rate): float(calibration.is_unknown(scores, kinds, rate).mean()) for rate in calibration.rates
            }
        told["inputs"][name] = facts
    return told


def score_open_set(
    weights: Weights, data: LabelledCells, partition: Partition, settings: AnnotationSettings, types: list[str]
) -> pd.DataFrame:
    """
    Fine-tune once without each of some cell types, and tell how their cells are recognised; see `leave_types_out`.

    Parameters
    ----------
    weights
        Where the weights come from.
    data
        All cells, shown with all modalities that they have.
    partition
        Which cells are for what.
    settings
        How to train.
    types
        Cell types to leave out in turn.
    """
    every, places = partition.join(PARTS)
    numbers = itertools.count(1)

    def fit(known: NDArray[np.bool_]) -> CellOutputs:
        labels = np.where(np.isin(np.arange(len(data.labels)), every[known]), data.labels, "")
        part = LabelledCells(data.aligned, data.extractor, labels, data.modalities)
        chosen = Partition(*(every[rows[known[rows]]] for rows in (places.train, places.val)))
        fitted = fit_annotation(weights, part, chosen, settings.part(f"without_{next(numbers)}"))
        return fitted.run(data.aligned, every, data.modalities)

    task = OpenSetTask(show_features(data, every), data.labels[every], places, seed=settings.seed)
    return leave_types_out(task, fit, types)


def describe_open_set(table: pd.DataFrame) -> dict[str, Any]:
    """Give what the results tell of `score_open_set`: means over the types, and the score that validation chose."""
    columns = ["auroc", "auroc_val", "false_accept", "false_reject"]
    means = table.groupby(["method", "score"], sort=False)[columns].mean().reset_index().astype(object)
    means = means.where(means.notna(), None)
    return {
        "chosen_score": choose_score(table),
        "false_reject_rate": OpenSetTask.rate,
        "table": means.to_dict("records"),
    }


def _fit_gaussians(
    fitted: FittedAnnotation, data: LabelledCells, rows: NDArray[np.int64], inputs: tuple[str, ...]
) -> ClassGaussians:
    rows = limit_classes(rows, data.codes, MOST_CELLS_PER_CLASS)
    return ClassGaussians.fit(fitted.run(data.aligned, rows, inputs).embedding, data.codes[rows])


def limit_classes(rows: NDArray[np.int64], codes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Draw some of the rows of each class that has more of them; ascending."""
    rng = np.random.default_rng(0)
    return np.sort(np.concatenate([rng.permutation(rows[codes[rows] == c])[:most] for c in np.unique(codes[rows])]))


def _having(data: LabelledCells, rows: NDArray[np.int64], inputs: tuple[str, ...]) -> NDArray[np.int64]:
    """Select the cells that have all the given modalities."""
    present = {"rna": data.aligned.rna_present, "adt": data.aligned.adt_present}
    return rows[np.all([present[m][rows] for m in inputs], axis=0)]
