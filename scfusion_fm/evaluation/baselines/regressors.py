"""Predictors of targets that were not measured in every cell, each in the settings that validation cells choose from.

Shapes: n cells, F input columns, C features made of them, T targets.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPRegressor

from scfusion_fm.evaluation.baselines.classifiers import NEIGHBOUR_COUNTS
from scfusion_fm.evaluation.baselines.networks import MlpSettings, train_until_worse

RIDGE_PENALTIES = tuple(10.0**exponent for exponent in range(-2, 6))

Predictor = Callable[[NDArray], NDArray]

logger = logging.getLogger(__name__)


@dataclass
class Targets:
    """The training cells' targets, ready to be fitted.

    Attributes
    ----------
    centred
        (n_train, T), values less the mean; 0 where not observed.
    observed
        (n_train, T), bool.
    mean
        (T,), mean over the observed training cells.
    variance
        (T,), likewise; 1 where the target does not vary.
    """

    centred: NDArray
    observed: NDArray
    mean: NDArray
    variance: NDArray

    @classmethod
    def from_training(cls, y: NDArray, observed: NDArray) -> "Targets":
        """Centre the training cells' targets.

        Parameters
        ----------
        y
            (n_train, T), normalised values.
        observed
            (n_train, T), bool.

        Raises
        ------
        ValueError
            If nothing is observed.
        """
        if not observed.any():
            raise ValueError(
                "`observed` must hold a measured value in the training cells, got none; pass another partition."
            )
        masked = np.ma.MaskedArray(np.asarray(y, np.float64), mask=~observed)
        mean = masked.mean(axis=0).filled(masked.mean())
        variance = masked.var(axis=0).filled(0.0)
        return cls((masked - mean).filled(0.0), observed, mean, np.where(variance > 1e-12, variance, 1.0))


@dataclass
class KnownTargets:
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
    seed
        Seed of networks and of the sample of kernel ridge.
    mlp
        How networks are trained.
    """

    x: NDArray[np.float64]
    targets: Targets
    x_val: NDArray[np.float64]
    y_val: NDArray[np.float64]
    observed_val: NDArray[np.bool_]
    seed: int = 0
    mlp: MlpSettings = field(default_factory=MlpSettings)

    def tune(self, candidates: Iterable[tuple[str, Predictor]]) -> Predictor:
        """Return the candidate with the smallest relative squared error on the validation cells.

        Parameters
        ----------
        candidates
            Names and fitted predictors, the simplest first.
        """
        named = list(candidates)
        counts = np.maximum(self.observed_val.sum(axis=0), 1)
        errors = []
        for _, predict in named:
            squared = np.where(self.observed_val, np.square(self.y_val - predict(self.x_val)), 0.0).sum(axis=0)
            errors.append((squared / counts / self.targets.variance).mean())
        best = int(np.argmin(errors))
        logger.info("chose %s: relative squared error %.3f on validation cells", named[best][0], errors[best])
        return named[best][1]

    def fill(self) -> NDArray[np.float64]:
        """Return the (n_train, T) centred targets; what was not observed is predicted by the tuned ridge."""
        if self.targets.observed.all():
            return self.targets.centred
        ridge = self.tune(fit_ridges(self.x, self.targets))
        return np.where(self.targets.observed, self.targets.centred, ridge(self.x) - self.targets.mean)


def fit_neighbours(x: NDArray, targets: Targets) -> Iterable[tuple[str, Predictor]]:
    """Yield predictors that average the nearest training cells in which the target was observed.

    Parameters
    ----------
    x
        (n_train, F), features.
    targets
        Targets of the same cells.
    """
    index = NearestNeighbors().fit(x)

    def predict(query: NDArray, n_neighbors: int) -> NDArray:
        nearest = index.kneighbors(query, n_neighbors, return_distance=False)  # (n, k)
        counts = np.maximum(targets.observed[nearest].sum(axis=1), 1)  # (n, T)
        return targets.mean + targets.centred[nearest].sum(axis=1) / counts

    for count in sorted({min(count, len(x)) for count in NEIGHBOUR_COUNTS}, reverse=True):
        yield f"k={count}", partial(predict, n_neighbors=count)


def fit_ridges(x: NDArray, targets: Targets) -> Iterable[tuple[str, Predictor]]:
    """Yield ridge regressions, each target fitted on the training cells in which it was observed.

    Parameters
    ----------
    x
        (n_train, F), features.
    targets
        Targets of the same cells.
    """
    patterns, pattern_of_target = np.unique(targets.observed, axis=1, return_inverse=True)
    groups = [(cells, pattern_of_target == i) for i, cells in enumerate(patterns.T) if cells.any()]

    def predict(query: NDArray, coefficients: NDArray, intercepts: NDArray) -> NDArray:
        return query @ coefficients + intercepts

    for alpha in sorted(RIDGE_PENALTIES, reverse=True):
        coefficients = np.zeros((x.shape[1], len(targets.mean)))
        intercepts = targets.mean.copy()
        for cells, columns in groups:
            ridge = Ridge(alpha=alpha).fit(x[cells], targets.centred[np.ix_(cells, columns)])
            coefficients[:, columns] = ridge.coef_.reshape(-1, x.shape[1]).T
            intercepts[columns] += ridge.intercept_
        yield f"alpha={alpha:g}", partial(predict, coefficients=coefficients, intercepts=intercepts)


def fit_networks(cells: KnownTargets) -> Iterable[tuple[str, Predictor]]:
    """Yield averages of networks that predict all targets together, from the strongest penalty to the weakest.

    Parameters
    ----------
    cells
        Training and validation cells. Targets that were not observed in training are filled by the ridge regression,
        since a network learns all of them together.
    """
    scale, settings = np.sqrt(cells.targets.variance), cells.mlp
    y = cells.fill() / scale
    y = y.ravel() if y.shape[1] == 1 else y

    def predict(query: NDArray, members: list[MLPRegressor]) -> NDArray:
        mean = np.mean([network.predict(query).reshape(len(query), -1) for network in members], axis=0)
        return cells.targets.mean + mean * scale

    for alpha in sorted(settings.alphas, reverse=True):
        members = []
        for member in range(settings.n_members):
            network = MLPRegressor(**settings.to_sklearn(len(y)), alpha=alpha, random_state=cells.seed + member)

            def loss(network=network) -> float:
                error = np.where(cells.observed_val, cells.y_val - predict(cells.x_val, [network]), 0.0) / scale
                return float(np.square(error).sum())

            step = partial(network.partial_fit, cells.x, y)
            members.append(train_until_worse(network, step, loss, settings))
        yield f"alpha={alpha:g}", partial(predict, members=members)


def predict_from_own_gene(
    x: NDArray | sparse.csr_matrix,
    own_columns: list[int | None],
    fit: NDArray[np.int64],
    rows: NDArray[np.int64],
    targets: Targets,
) -> NDArray[np.float64]:
    """Predict every target by least squares from the other modality of the same gene.

    Parameters
    ----------
    x
        (n, F), normalised expression or abundance.
    own_columns
        (T,), columns of `x` or `None`.
    fit
        (n_train,), positions of the training cells.
    rows
        (m,), positions of the cells to predict.
    targets
        Targets of the training cells.

    Returns
    -------
    (m, T); the mean where there is no column or it does not vary.
    """
    predicted = np.tile(targets.mean, (len(rows), 1))
    for target, column in enumerate(own_columns):
        if column is None:
            continue
        values = x[:, [column]]
        values = np.asarray(values.todense() if sparse.issparse(values) else values, np.float64).ravel()
        cells = targets.observed[:, target]
        own, y = values[fit][cells], targets.centred[cells, target]
        if len(own) < 2 or np.ptp(own) == 0:
            continue
        slope = (own - own.mean()) @ y / np.square(own - own.mean()).sum()
        predicted[:, target] += slope * (values[rows] - own.mean())
    return predicted
