"""Baselines that predict one modality from the other, in both directions.

Shapes: n cells, F input columns, T targets, C features made of the inputs, M methods.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import nnls
from sklearn.neural_network import MLPRegressor

from scfusion_fm.evaluation.baselines.annotation import check_methods
from scfusion_fm.evaluation.baselines.features import (
    N_COMPONENTS,
    check_length,
    check_split,
    project_rna,
    standardise_proteins,
)
from scfusion_fm.evaluation.baselines.kernels import fit_kernel_ridges
from scfusion_fm.evaluation.baselines.networks import MlpSettings, train_until_worse
from scfusion_fm.evaluation.baselines.regressors import (
    Predictor,
    Targets,
    check_observed,
    check_own_genes,
    fit_neighbours,
    fit_ridges,
    predict_from_own_gene,
)

INPUTS = ("rna", "adt")
OWN = "own column"
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
        (n, T) or (T,), bool: where the target was measured.
    split
        (n,), "train", "val", "test", or "" where the cell is not used.
    inputs
        What `x` is: "rna" (projected on principal components) or "adt" (standardised, then projected if wide).
    own_columns
        For each target the column of `x` that measures the same gene or its protein, or `None`. Without the list there
        is no baseline "own column".
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
    split: NDArray[np.str_]
    inputs: str = "rna"
    own_columns: list[int | None] | None = None
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
    fitted_on
        Rows that each fitted object was fitted on.
    tuned_on
        Rows on which settings and weights were chosen.
    """

    test: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    val: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    fitted_on: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    tuned_on: dict[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass
class Cells:
    """What a method may see: training and validation cells, never test cells.

    Attributes
    ----------
    x
        (n_train, C), features.
    targets
        Targets of the training cells.
    x_val
        (n_val, C), features.
    y_val
        (n_val, T), targets.
    observed_val
        (n_val, T), bool.
    task
        Seed and settings.
    """

    x: NDArray[np.float64]
    targets: Targets
    x_val: NDArray[np.float64]
    y_val: NDArray[np.float64]
    observed_val: NDArray[np.bool_]
    task: PredictionTask

    def tune(self, candidates: Iterable[tuple[str, Predictor]]) -> Predictor:
        """Return the candidate with the smallest relative squared error on the validation cells.

        Parameters
        ----------
        candidates
            Names and fitted predictors.
        """
        return self.targets.tune(candidates, self.x_val, self.y_val, self.observed_val)

    def fill(self) -> NDArray[np.float64]:
        """Return the (n_train, T) centred targets; what was not observed is predicted by the tuned ridge."""
        if self.targets.observed.all():
            return self.targets.centred
        ridge = self.tune(fit_ridges(self.x, self.targets))
        return np.where(self.targets.observed, self.targets.centred, ridge(self.x) - self.targets.mean)


def fit_mean(cells: Cells) -> Predictor:
    """Return the predictor that always gives the training cells' mean."""
    return lambda query: np.tile(cells.targets.mean, (len(query), 1))


def fit_knn(cells: Cells) -> Predictor:
    """Return the average of the nearest training cells; the validation cells choose how many."""
    return cells.tune(fit_neighbours(cells.x, cells.targets))


def fit_ridge(cells: Cells) -> Predictor:
    """Return the ridge regression whose penalty the validation cells choose."""
    return cells.tune(fit_ridges(cells.x, cells.targets))


def fit_kernel_ridge(cells: Cells) -> Predictor:
    """Return the kernel ridge regression whose kernel and penalty the validation cells choose."""
    return cells.tune(fit_kernel_ridges(cells.x, cells.targets, cells.fill(), cells.task.seed))


def fit_mlp(cells: Cells) -> Predictor:
    """Return the average of small networks; the validation cells choose the penalty and stop them."""
    return cells.tune(fit_networks(cells))


PREDICTION_METHODS: dict[str, Callable[[Cells], Predictor]] = {
    "mean": fit_mean,
    "PCA + kNN": fit_knn,
    "PCA + ridge": fit_ridge,
    "PCA + kernel ridge": fit_kernel_ridge,
    "PCA + MLP": fit_mlp,
}


def fit_prediction(task: PredictionTask, methods: Sequence[str] = (*PREDICTION_METHODS, OWN, BLEND)) -> Prediction:
    """Predict the targets of the test and validation cells with baselines.

    Parameters
    ----------
    task
        Inputs, targets and split.
    methods
        Names out of `PREDICTION_METHODS`, "own column" (a line through the coding gene or its protein; left out where
        the task has no `own_columns`) and "blend" (weights of all the others).

    Raises
    ------
    ValueError
        If a method or `inputs` is unknown, or the task does not hold what it needs: cells of every role, one row per
        cell, finite values, a measured target in the training cells.

    Notes
    -----
    Everything is fitted on the training cells. Settings, one for all targets, minimise the mean over targets of the
    squared error on the validation cells relative to the variance in training; nothing is refitted on them. A target
    that no training cell has gets the mean of all training values.
    """
    check_methods(methods, (*PREDICTION_METHODS, OWN, BLEND))
    split = np.asarray(task.split).astype(str)
    check_split(split[split != ""], int((split != "").sum()))
    check_length("x", task.x, len(split))
    check_length("y", task.y, len(split))
    observed = check_observed(task.y, task.observed, np.isin(split, ("train", "val")))
    fit, select, test = (np.flatnonzero(split == role) for role in ("train", "val", "test"))
    features = build_features(task, split == "train")
    targets = Targets.from_training(task.y[fit], observed[fit])
    cells = Cells(features[fit], targets, features[select], task.y[select], observed[select], task)
    result = Prediction(fitted_on={"features": fit})
    for method in methods:
        if method in PREDICTION_METHODS:
            predict = PREDICTION_METHODS[method](cells)
            result.test[method], result.val[method] = predict(features[test]), predict(features[select])
            result.fitted_on[method], result.tuned_on[method] = fit, select
    if OWN in methods and task.own_columns is not None:
        check_own_genes(task.own_columns, task.y.shape[1])
        x = fill_missing(task.x, split == "train") if task.inputs == "adt" else task.x
        predict_own = partial(predict_from_own_gene, x, task.own_columns, fit, targets=targets)
        result.test[OWN], result.val[OWN], result.fitted_on[OWN] = predict_own(test), predict_own(select), fit
    if BLEND in methods:
        add_blend(result, cells)
        result.tuned_on[BLEND] = select
    return result


def build_features(task: PredictionTask, train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Turn the inputs into features, fitted on the training cells.

    Parameters
    ----------
    task
        Inputs and seed.
    train
        (n,), bool.

    Returns
    -------
    (n, C): principal components of RNA; standardised proteins, or their principal components where they are more than
    50. Divided by the root of the mean variance of the columns.

    Raises
    ------
    ValueError
        If `inputs` is unknown or a value cannot be used.
    """
    if task.inputs not in INPUTS:
        raise ValueError(f"`inputs` must be one of {INPUTS}, got {task.inputs!r}; say what `x` holds.")
    if task.inputs == "rna":
        features = project_rna(task.x, train, task.seed)
    else:
        features = standardise_proteins(task.x, train)
        if features.shape[1] > N_COMPONENTS:
            features = project_rna(features, train, task.seed)
    features = np.asarray(features, np.float64)
    scale = np.sqrt(features[train].var(axis=0).mean())
    return features / scale if scale > 0 else features


def fill_missing(x: NDArray, train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Replace NaN by the mean of the training cells, 0 where they have none.

    Parameters
    ----------
    x
        (n, F), abundance.
    train
        (n,), bool.
    """
    x = np.ma.masked_invalid(np.asarray(x, np.float64))
    return np.where(x.mask, x[train].mean(axis=0).filled(0.0), x.data)


def fit_networks(cells: Cells) -> Iterable[tuple[str, Predictor]]:
    """Yield averages of networks that predict all targets together, from the strongest penalty to the weakest.

    Parameters
    ----------
    cells
        Training and validation cells. Targets that were not observed in training are filled by the ridge regression,
        since a network learns all of them together.
    """
    scale, settings = np.sqrt(cells.targets.variance), cells.task.mlp
    y = cells.fill() / scale
    y = y.ravel() if y.shape[1] == 1 else y

    def predict(query: NDArray, members: list[MLPRegressor]) -> NDArray:
        mean = np.mean([network.predict(query).reshape(len(query), -1) for network in members], axis=0)
        return cells.targets.mean + mean * scale

    for alpha in sorted(settings.alphas, reverse=True):
        members = []
        for member in range(settings.n_members):
            network = MLPRegressor(**settings.to_sklearn(len(y)), alpha=alpha, random_state=cells.task.seed + member)

            def loss(network=network) -> float:
                error = np.where(cells.observed_val, cells.y_val - predict(cells.x_val, [network]), 0.0) / scale
                return float(np.square(error).sum())

            step = partial(network.partial_fit, cells.x, y)
            members.append(train_until_worse(network, step, loss, settings))
        yield f"alpha={alpha:g}", partial(predict, members=members)


def add_blend(result: Prediction, cells: Cells) -> None:
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
