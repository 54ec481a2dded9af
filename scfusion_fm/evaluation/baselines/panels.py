"""Baselines for proteins that a panel lacks: from RNA and from the proteins that it has, like the model.

Letters: n cells, K components of the RNA, P proteins, V visible ones, T targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.prediction import PREDICTION_METHODS
from scfusion_fm.evaluation.baselines.regressors import KnownTargets, Targets
from scfusion_fm.evaluation.baselines.studies import standardise_within
from scfusion_fm.evaluation.partition import Partition

PANEL_METHODS = ("mean", "PCA + kNN", "PCA + ridge")


@dataclass
class PanelTask:
    """
    Proteins to impute.

    Attributes
    ----------
    coordinates
        (n, K) principal components of the RNA.
    logs
        (n, P) log1p of the counts; hidden values of test cells are never read.
    observed
        (n, P) where a protein was measured.
    study
        (n,) numbers of the studies, from 0.
    partition
        What the cells are for.
    seed
        Of the methods.
    """

    coordinates: NDArray[np.float64]
    logs: NDArray[np.floating]
    observed: NDArray[np.bool_]
    study: NDArray[np.int64]
    partition: Partition
    seed: int = 0


def fit_panel_baselines(
    task: PanelTask, hidden: NDArray[np.bool_], methods: Sequence[str] = PANEL_METHODS
) -> dict[str, NDArray[np.float64]]:
    """
    Predict the hidden proteins of the test cells by baselines.

    Parameters
    ----------
    task
        Cells of all parts.
    hidden
        (n, P), what is hidden of the test cells.
    methods
        Names out of `PREDICTION_METHODS`.

    Returns
    -------
    (n_test, P) by method, in centred log ratios over the visible proteins; NaN where nothing was to be predicted.

    Notes
    -----
    For each panel of a test study, the methods are fitted anew to predict exactly its hidden proteins from exactly its
    visible ones. Proteins are standardised within studies, hidden ones of a new study come back at the mean level and
    spread of the others. Settings are chosen by the validation cells.
    """
    task.partition.check()
    test = task.partition.test
    found = {method: np.full((len(test), task.logs.shape[1]), np.nan) for method in methods}
    learned = task.observed[task.partition.train].any(0)
    states = task.observed[test] + 2 * (hidden & task.observed)[test]
    for state in np.unique(states, axis=0):
        own = (states == state).all(1)
        targets = np.flatnonzero((state == 3) & learned)
        if not len(targets):
            continue
        for method, values in _predict_panel(task, test[own], state == 1, targets, methods).items():
            found[method][np.ix_(own, targets)] = values
    return found


def _predict_panel(
    task: PanelTask,
    rows: NDArray[np.int64],
    visible: NDArray[np.bool_],
    targets: NDArray[np.int64],
    methods: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Predict the targets of some test cells of one panel."""
    part = task.partition
    seen = task.observed & visible
    centre = np.where(seen, task.logs, 0.0).sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1)
    centred = task.logs - centre
    shown = np.flatnonzero(seen[part.train].any(0))
    inputs = np.hstack([task.coordinates, standardise_within(centred[:, shown], seen[:, shown], task.study)[0]])
    known, own = part.known, task.observed[:, targets]
    values = np.zeros(own.shape)
    values[known], means, spreads = standardise_within(centred[np.ix_(known, targets)], own[known], task.study[known])
    cells = KnownTargets(
        inputs[part.train],
        Targets.from_training(values[part.train], own[part.train]),
        inputs[part.val],
        values[part.val],
        own[part.val],
        task.seed,
    )
    level, spread = np.nanmean(means, axis=0), np.nanmean(spreads, axis=0)
    return {method: level + spread * PREDICTION_METHODS[method](cells)(inputs[rows]) for method in methods}
