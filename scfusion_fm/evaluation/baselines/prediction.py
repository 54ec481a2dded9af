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
from scipy.optimize import nnls

from scfusion_fm.evaluation.baselines.features import (
    N_COMPONENTS,
    check_methods,
    project_rna,
    standardise_proteins,
)
from scfusion_fm.evaluation.baselines.kernels import fit_kernel_ridges
from scfusion_fm.evaluation.baselines.networks import MlpSettings
from scfusion_fm.evaluation.baselines.regressors import (
    KnownTargets,
    Predictor,
    Targets,
    fit_neighbours,
    fit_networks,
    fit_ridges,
    predict_from_own_gene,
)
from scfusion_fm.evaluation.partition import Partition

OWN = "own gene"
BLEND = "blend"

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
    mlp
        How the networks are trained.

    Notes
    -----
    Cells of several data sets may be given together, with zeros for genes and `False` in `observed` for proteins that
    a data set lacks.
    """

    x: NDArray | sparse.csr_matrix | sparse.csr_array
    y: NDArray
    observed: NDArray[np.bool_]
    partition: Partition
    own_columns: list[int | None]
    inputs: str = "rna"
    seed: int = 0
    mlp: MlpSettings = field(default_factory=MlpSettings)


@dataclass
class Prediction:
    """What baselines predict, by method.

    Attributes
    ----------
    test
        (n_test, T), test cells in their order.
    val
        (n_val, T), validation cells.
    weights
        Weight of each method in the blend.
    """

    test: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    val: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


def fit_mean(cells: KnownTargets) -> Predictor:
    """Return the predictor that always gives the training cells' mean."""
    return lambda query: np.tile(cells.targets.mean, (len(query), 1))


def fit_knn(cells: KnownTargets) -> Predictor:
    """Return the average of the nearest training cells; the validation cells choose how many."""
    return cells.tune(fit_neighbours(cells.x, cells.targets))


def fit_ridge(cells: KnownTargets) -> Predictor:
    """Return the ridge regression whose penalty the validation cells choose."""
    return cells.tune(fit_ridges(cells.x, cells.targets))


def fit_kernel_ridge(cells: KnownTargets) -> Predictor:
    """Return the kernel ridge regression whose kernel and penalty the validation cells choose."""
    return cells.tune(fit_kernel_ridges(cells.x, cells.targets, cells.fill(), cells.seed))


def fit_mlp(cells: KnownTargets) -> Predictor:
    """Return the average of small networks; the validation cells choose the penalty and stop them."""
    return cells.tune(fit_networks(cells))


PREDICTION_METHODS: dict[str, Callable[[KnownTargets], Predictor]] = {
    "mean": fit_mean,
    "PCA + kNN": fit_knn,
    "PCA + ridge": fit_ridge,
    "PCA + kernel ridge": fit_kernel_ridge,
    "PCA + MLP": fit_mlp,
}


def fit_prediction_baselines(
    task: PredictionTask, methods: Sequence[str] = (*PREDICTION_METHODS, OWN, BLEND)
) -> Prediction:
    """Predict the targets of the test and validation cells with baselines.

    Parameters
    ----------
    task
        Inputs, targets and partition.
    methods
        Names out of `PREDICTION_METHODS`, "own gene" (a line through the coding gene's RNA or its protein) and "blend"
        (weights of all the others).

    Raises
    ------
    ValueError
        If a method or `inputs` is unknown, or the task does not hold what it needs: cells of every part, one row per
        cell, finite values, a measured target in the training cells.

    Notes
    -----
    Everything is fitted on the training cells. Settings, one for all targets, minimise the mean over targets of the
    squared error on the validation cells relative to the variance in training; nothing is refitted on them. A target
    that no training cell has gets the mean of all training values.
    """
    check_methods(methods, (*PREDICTION_METHODS, OWN, BLEND))
    part = task.partition
    part.check()
    part.check_arrays({"x": task.x, "y": task.y})
    check_targets(task)
    x = project_inputs(task)
    targets = Targets.from_training(task.y[part.train], task.observed[part.train])
    val = (x[part.val], task.y[part.val], task.observed[part.val])
    cells = KnownTargets(x[part.train], targets, *val, task.seed, task.mlp)
    result = Prediction()
    for method in methods:
        if method in PREDICTION_METHODS:
            predict = PREDICTION_METHODS[method](cells)
            result.test[method], result.val[method] = predict(x[part.test]), predict(x[part.val])
        elif method == OWN:
            values = fill_missing(task.x, part.train) if task.inputs == "adt" else task.x
            predict_own = partial(predict_from_own_gene, values, task.own_columns, part.train, targets=targets)
            result.test[OWN], result.val[OWN] = predict_own(part.test), predict_own(part.val)
    if BLEND in methods:
        add_blend(result, cells)
    return result


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
    (n, C): principal components of RNA; standardised proteins, or their principal components where they are more than
    50. Divided by the root of the mean variance of the columns.

    Raises
    ------
    ValueError
        If `inputs` is unknown or a value cannot be used.
    """
    train = task.partition.train
    if task.inputs not in ("rna", "adt"):
        raise ValueError(f"`inputs` must be 'rna' or 'adt', got {task.inputs!r}; say what `x` holds.")
    if task.inputs == "rna":
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


def add_blend(result: Prediction, cells: KnownTargets) -> None:
    """Add the weighted sum of all predictions so far; the validation cells choose weights of at least 0.

    Parameters
    ----------
    result
        Predictions of the methods to blend; gets "blend" and the weights.
    cells
        Validation cells and the training cells' mean and variance.

    Raises
    ------
    ValueError
        If there is nothing to blend.

    Notes
    -----
    Least squares (Lawson and Hanson's NNLS) on the differences from the training mean, every target divided by its
    standard deviation in training. The weights need not add up to 1: what they lack is the mean's.
    """
    if not result.val:
        raise ValueError("`methods` must hold a method to blend, got only 'blend'; add e.g. 'PCA + ridge'.")
    mean, scale = cells.targets.mean, np.sqrt(cells.targets.variance)
    seen = cells.observed_val
    y = (np.where(seen, cells.y_val - mean, 0.0) / scale)[seen]
    columns = np.stack([((val - mean) / scale)[seen] for val in result.val.values()], axis=1)  # (values, M)
    weights = nnls(columns, y)[0] if len(y) else np.full(columns.shape[1], 1 / columns.shape[1])
    result.weights = dict(zip(result.val, weights.tolist(), strict=True))
    logger.info("blend weights %s on %d validation values", result.weights, len(y))
    for predictions in (result.test, result.val):
        parts = [weight * (predictions[name] - mean) for name, weight in result.weights.items()]
        predictions[BLEND] = mean + np.sum(parts, axis=0)
