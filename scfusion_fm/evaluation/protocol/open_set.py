"""Leave cell types out of the training in turn, and tell how well their cells are told from the others."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from scfusion_fm.evaluation.baselines.annotation import LOGISTIC, AnnotationTask, fit_annotation_baselines
from scfusion_fm.evaluation.baselines.features import Features
from scfusion_fm.evaluation.calibration.unknown import (
    SCORES,
    CellOutputs,
    ClassGaussians,
    reject_thresholds,
    score_unknown,
)
from scfusion_fm.evaluation.partition import Partition


@dataclass
class OpenSetTask:
    """
    Cells for `leave_types_out`.

    Attributes
    ----------
    features
        What baselines read.
    labels
        (n,), cell types.
    partition
        What the cells are for; `val` chooses the score, and `calibration` sets the threshold.
    rate
        False-reject rate of the threshold.
    seed
        Of the baseline.
    """

    features: Features
    labels: NDArray[np.str_]
    partition: Partition
    rate: float = 0.05
    seed: int = 0


Fit = Callable[[NDArray[np.bool_]], CellOutputs]


def leave_types_out(task: OpenSetTask, fit: Fit, types: list[str] | None = None) -> pd.DataFrame:
    """
    Leave one cell type out of the training at a time, and tell how well its cells are told from the known ones.

    Parameters
    ----------
    task
        The cells.
    fit
        Fits a classifier on cells of known types, (n,) true for these, and gives its outputs for all n cells. It must
        neither train on the others nor choose anything by them.
    types
        Cell types to leave out; all when None.

    Returns
    -------
    One row per type, method and score: `left_out`, `method`, `score`, `auroc` (test cells of the type against those of
    known types), `auroc_val` (likewise among validation cells), `false_accept` (share of the type's test cells below
    the threshold), `false_reject` (share of known test cells above it), `n_unknown` and `n_known`. The baseline is the
    highest probability of principal components + logistic regression.

    Raises
    ------
    ValueError
        If a type has no test cells or fewer than two others remain.

    Notes
    -----
    `choose_score` chooses among the model's scores by `auroc_val`, so that the test cells do not. The false-accept rate
    is an estimate for types that differ from the known ones as these do from one another; a new type may be nearer.
    """
    labels, part = np.asarray(task.labels).astype(str), task.partition
    present = np.unique(labels).tolist()
    types = present if types is None else types
    check_left_out(types, present, labels[part.test])
    rows = []
    for left_out in types:
        known = labels != left_out
        cells = fit(known)
        training = part.train[known[part.train]]
        gaussians = ClassGaussians.fit(cells.embedding[training], labels[training])
        for name in SCORES:
            scores = score_unknown(name, cells, gaussians, cells.embedding[training])
            rows.append({"left_out": left_out, "method": "model", "score": name, **_measure(scores, known, task)})
        told = _measure(_score_baseline(task, known, labels), known, task)
        rows.append({"left_out": left_out, "method": LOGISTIC, "score": "max_softmax", **told})
    return pd.DataFrame(rows)


def check_left_out(types: list[str], present: list[str], test_labels: NDArray[np.str_]) -> None:
    """
    Refuse cell types that cannot be left out.

    Parameters
    ----------
    types
        Cell types to leave out.
    present
        All cell types.
    test_labels
        Those of the test cells.

    Raises
    ------
    ValueError
        If a type has no test cells or fewer than two others remain.
    """
    missing = sorted(set(types) - set(test_labels))
    if missing or (types and len(present) < 3):
        raise ValueError(
            f"`leave_out_types` must be cell types with test cells, of at least three types, got {missing or types} "
            f"of {present}."
        )


def choose_score(table: pd.DataFrame) -> str:
    """Give the model's score with the best mean `auroc_val` in a table of `leave_types_out`; ties to the simplest."""
    own = table[table["method"] == "model"]
    mean = own.groupby("score")["auroc_val"].mean().reindex(list(SCORES))
    return str(mean.fillna(-np.inf).idxmax())


def _measure(scores: NDArray[np.float64], known: NDArray[np.bool_], task: OpenSetTask) -> dict[str, float]:
    """Say how well scores tell known cells from others, with a threshold from the known calibration cells."""
    calibration, test = task.partition.calibration, task.partition.test
    threshold = reject_thresholds(scores[calibration[known[calibration]]], (task.rate,))[0]
    rejected, familiar = scores[test] > threshold, known[test]
    return {
        "auroc": _auroc(scores, known, test),
        "auroc_val": _auroc(scores, known, task.partition.val),
        "false_accept": float((~rejected[~familiar]).mean()),
        "false_reject": float(rejected[familiar].mean()),
        "n_unknown": int((~familiar).sum()),
        "n_known": int(familiar.sum()),
    }


def _score_baseline(task: OpenSetTask, known: NDArray[np.bool_], labels: NDArray[np.str_]) -> NDArray[np.float64]:
    """Give 1 - the highest probability of the baseline for all cells but its training cells, which get NaN."""
    part = task.partition
    train, val = (rows[known[rows]] for rows in (part.train, part.val))
    seen = Partition(train, val, np.setdiff1d(part.rows, np.concatenate([part.train, val])))
    fitted = fit_annotation_baselines(AnnotationTask(task.features, labels, seen, task.seed), [LOGISTIC])
    key = list(fitted.test)[-1]  # with all modalities
    scores = np.full(len(labels), np.nan)
    scores[seen.test] = 1 - fitted.test[key].max(1)
    scores[seen.val] = 1 - fitted.val[key].max(1)
    return scores


def _auroc(scores: NDArray[np.float64], known: NDArray[np.bool_], rows: NDArray[np.int64]) -> float:
    """Give the AUROC of unknown cells among some rows; NaN where all or none are known."""
    both = 0 < known[rows].sum() < len(rows)
    return float(roc_auc_score(~known[rows], scores[rows])) if both else float("nan")
