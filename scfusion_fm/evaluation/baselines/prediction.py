"""Baselines that predict one modality from the other, in both directions.

Shapes: n cells, F input columns, T targets, C features made of the inputs, M methods.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scfusion_fm.evaluation.baselines.features import (
    N_COMPONENTS,
    check_finite,
    check_methods,
    project_rna,
    standardise_proteins,
)
from scfusion_fm.evaluation.baselines.kernels import fit_kernel_ridges
from scfusion_fm.evaluation.baselines.masked_networks import NetworkSettings
from scfusion_fm.evaluation.baselines.regressors import (
    KnownTargets,
    Predictor,
    Targets,
    fit_neighbours,
    fit_networks,
    fit_ridges,
    predict_from_own_gene,
)
from scfusion_fm.evaluation.baselines.studies import (
    centre_within,
    choose_anchors,
    project_within,
    standardise_within,
)
from scfusion_fm.evaluation.partition import Partition

OWN = "own gene"
AVERAGE = "average"

logger = logging.getLogger(__name__)


@dataclass
class PredictionTask:
    """One modality to predict from the other.

    Attributes
    ----------
    x
        (n, F), the inputs: normalised expression, dense or CSR, or normalised abundance, NaN where not measured.
    y
        (n, T), the targets in the unit in which they are scored; read only where observed, never in test cells.
    observed
        (n, T), bool: where the target was measured.
    partition
        What the cells are for.
    own_columns
        For each target the column of `x` that measures the same gene or its protein, or `None`.
    inputs
        What `x` is: "rna" (projected on principal components) or "adt" (standardised, then projected if wide).
    seed
        Seed of principal components, networks and the sample of kernel ridge.
    network
        How the networks are trained.
    study
        (n,), numbers of the data sets, from 0, within which all values are standardised; None to take them as they are.
        Of the inputs "rna".

    Notes
    -----
    Cells of several data sets may be given together, with zeros for genes and `False` in `observed` for proteins that
    a data set lacks.

    With `study`, genes are standardised within data sets, the test cells' by these cells alone (transductive: their RNA
    is read, their targets are not). Targets are centred around anchors (`choose_anchors`) and standardised within data
    sets. Predictions are brought back to the mean level and spread that the target has in the training data sets, and
    centred over the panel of the cell: `y` holds centred log ratios.
    """

    x: NDArray | sparse.csr_matrix | sparse.csr_array
    y: NDArray
    observed: NDArray[np.bool_]
    partition: Partition
    own_columns: list[int | None]
    inputs: str = "rna"
    seed: int = 0
    network: NetworkSettings = field(default_factory=NetworkSettings)
    study: NDArray[np.int64] | None = None


@dataclass
class Prediction:
    """What baselines predict, by method.

    Attributes
    ----------
    test
        (n_test, T), test cells in their order.
    val
        (n_val, T), validation cells.
    """

    test: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    val: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def fit_mean(cells: KnownTargets) -> Predictor:
    """Return the predictor that always gives the training cells' mean."""
    return lambda query: np.tile(cells.targets.mean, (len(query), 1))


def fit_knn(cells: KnownTargets) -> Predictor:
    """Return the average of the nearest training cells; the validation cells choose how many."""
    return cells.tune(fit_neighbours)


def fit_ridge(cells: KnownTargets) -> Predictor:
    """Return the ridge regression; the validation cells choose the penalty of each target."""
    return cells.tune_each(fit_ridges)


def fit_kernel_ridge(cells: KnownTargets) -> Predictor:
    """Return the kernel ridge regression; the validation cells choose kernel and penalty of each target."""
    return cells.tune_each(partial(fit_kernel_ridges, seed=cells.seed))


def fit_mlp(cells: KnownTargets) -> Predictor:
    """Return the average of small networks; the validation cells stop them."""
    return fit_networks(cells)


PREDICTION_METHODS: dict[str, Callable[[KnownTargets], Predictor]] = {
    "mean": fit_mean,
    "PCA + kNN": fit_knn,
    "PCA + ridge": fit_ridge,
    "PCA + kernel ridge": fit_kernel_ridge,
    "PCA + MLP": fit_mlp,
}


AVERAGED = ("PCA + ridge", "PCA + kernel ridge", "PCA + MLP")


def fit_prediction_baselines(
    task: PredictionTask, methods: Sequence[str] = (*PREDICTION_METHODS, OWN, AVERAGE)
) -> Prediction:
    """Predict the targets of the test and validation cells with baselines.

    Parameters
    ----------
    task
        Inputs, targets and partition.
    methods
        Names out of `PREDICTION_METHODS`, "own gene" (a line through the coding gene's RNA or its protein) and
        "average" (the mean of `AVERAGED`).

    Raises
    ------
    ValueError
        If a method or `inputs` is unknown, or the task does not hold what it needs: cells of every part, one row per
        cell, finite values, a measured target in the training cells.

    Notes
    -----
    Everything is fitted on the training cells. Settings minimise the squared error on the validation cells relative to
    the variance in training, those of ridge regressions for each target alone; nothing is refitted on them. A target
    that no training cell has gets the mean of all training values.
    """
    check_methods(methods, (*PREDICTION_METHODS, OWN, AVERAGE))
    part = task.partition
    part.check()
    part.check_arrays({"x": task.x, "y": task.y} | ({} if task.study is None else {"study": task.study}))
    check_targets(task)
    x = project_inputs(task)
    y, level, spread = standardise_targets(task)
    targets = Targets.from_training(y[part.train], task.observed[part.train])
    study = [None if task.study is None else task.study[rows] for rows in (part.train, part.val)]
    val = (x[part.val], y[part.val], task.observed[part.val])
    cells = KnownTargets(x[part.train], targets, *val, task.seed, task.network, *study)
    found = {}
    for method in dict.fromkeys([*methods, *(AVERAGED if AVERAGE in methods else ())]):
        if method in PREDICTION_METHODS:
            predict = PREDICTION_METHODS[method](cells)
            found[method] = predict(x[part.test]), predict(x[part.val])
        elif method == OWN:
            values, columns = read_own_genes(task)
            predict_own = partial(predict_from_own_gene, values, columns, part.train, targets=targets)
            found[OWN] = predict_own(part.test), predict_own(part.val)
    if AVERAGE in methods:
        found[AVERAGE] = tuple(np.mean([found[name][i] for name in AVERAGED], axis=0) for i in range(2))
    result = Prediction()
    for method in methods:
        test, val = (level + spread * values for values in found[method])
        if task.study is not None:
            known = targets.observed.any(axis=0)
            test, val = (centre_over(p, task.observed[r], known) for p, r in ((test, part.test), (val, part.val)))
        result.test[method], result.val[method] = test, val
    return result


def centre_over(predicted: NDArray, observed: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centre predictions of each cell over the targets that it measured, as centred log ratios are.

    Parameters
    ----------
    predicted
        (m, T).
    observed
        (m, T), what was measured, not how much.
    known
        (T,), the targets that the predictions say something about.
    """
    used = observed & known
    total = np.where(used, predicted, 0.0).sum(axis=1, keepdims=True)
    return predicted - total / np.maximum(used.sum(axis=1, keepdims=True), 1)


def standardise_targets(task: PredictionTask) -> tuple[NDArray, NDArray[np.float64], NDArray[np.float64]]:
    """Give the targets of training and validation cells as the methods learn them, and the way back.

    Parameters
    ----------
    task
        Targets, and the data sets of the cells.

    Returns
    -------
    (n, T), and level and spread (T,) that predictions are multiplied with and added to. As they are, with 0 and 1,
    where there are no data sets to tell apart.
    """
    number = task.y.shape[1]
    if task.study is None:
        return task.y, np.zeros(number), np.ones(number)
    known = task.partition.known
    study, observed = task.study[known], task.observed[known]
    panels = np.stack([observed[study == code].any(axis=0) for code in range(int(task.study.max()) + 1)])
    anchors = choose_anchors(panels, panels.any(axis=1))[study]
    y = np.zeros(task.y.shape)
    y[known] = standardise_within(centre_within(task.y[known], observed, anchors), observed, study)[0]
    _, means, spreads = standardise_within(task.y[known], observed, study)
    means, spreads = np.ma.masked_invalid(means), np.ma.masked_invalid(spreads)
    return y, means.mean(axis=0).filled(float(means.mean())), spreads.mean(axis=0).filled(0.0)


def read_own_genes(task: PredictionTask) -> tuple[NDArray | sparse.csr_matrix, list[int | None]]:
    """Give values of the other modality, and the column of each target in them."""
    if task.inputs == "adt":
        return fill_missing(task.x, task.partition.train), task.own_columns
    if task.study is None:
        return task.x, task.own_columns
    used = [column for column in task.own_columns if column is not None]
    values = task.x[:, used]
    values = np.asarray(values.todense() if sparse.issparse(values) else values, np.float64)
    places = iter(range(len(used)))
    columns = [None if column is None else next(places) for column in task.own_columns]
    return standardise_within(values, np.ones(values.shape, bool), task.study)[0], columns


def check_targets(task: PredictionTask) -> None:
    """Raise unless targets, where they were measured, and own columns fit one another.

    Parameters
    ----------
    task
        Targets and own columns.

    Raises
    ------
    ValueError
        If `observed` does not fit `y`, an observed value of training or validation cells is not finite, or the number
        of own columns differs from that of targets.
    """
    observed = np.asarray(task.observed)
    if observed.dtype != bool or observed.shape != task.y.shape:
        raise ValueError(
            f"`observed` must be bool of shape {task.y.shape}, got {observed.dtype} of shape {observed.shape}; "
            "pass the presence mask of `y`."
        )
    n_bad = int((observed & ~np.isfinite(task.y))[task.partition.known].sum())
    if n_bad:
        raise ValueError(
            f"`y` must be finite wherever `observed` is true, got {n_bad} values that are not; "
            "mark missing measurements as not observed."
        )
    if len(task.own_columns) != task.y.shape[1]:
        raise ValueError(
            f"`own_columns` must have one entry per target, got {len(task.own_columns)} for {task.y.shape[1]} "
            "targets; use None where the gene is absent."
        )


def project_inputs(task: PredictionTask) -> NDArray[np.float64]:
    """Turn the inputs into features, fitted on the training cells.

    Parameters
    ----------
    task
        Inputs, partition and seed.

    Returns
    -------
    (n, C): principal components of RNA, with `study` of genes standardised within data sets; standardised proteins, or
    their principal components where they are more than 50. Divided by the root of the mean variance of the columns.

    Raises
    ------
    ValueError
        If `inputs` is unknown or a value cannot be used.
    """
    train = task.partition.train
    if task.inputs not in ("rna", "adt"):
        raise ValueError(f"`inputs` must be 'rna' or 'adt', got {task.inputs!r}; say what `x` holds.")
    if task.inputs == "rna" and task.study is not None:
        check_finite(task.x)
        features = project_within(sparse.csr_matrix(task.x), task.study, train, N_COMPONENTS, task.seed)
    elif task.inputs == "rna":
        features = project_rna(task.x, train, task.seed)
    else:
        features = standardise_proteins(task.x, train)
        if features.shape[1] > N_COMPONENTS:
            features = project_rna(features, train, task.seed)
    features = np.asarray(features, np.float64)
    scale = np.sqrt(features[train].var(axis=0).mean())
    return features / scale if scale > 0 else features


def fill_missing(x: NDArray, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Replace NaN by the mean of the training cells, 0 where they have none.

    Parameters
    ----------
    x
        (n, F), abundance.
    train
        Rows of the training cells.
    """
    x = np.ma.masked_invalid(np.asarray(x, np.float64))
    return np.where(x.mask, x[train].mean(axis=0).filled(0.0), x.data)
