"""Predictors of targets that were not measured in every cell, each in the settings that validation cells choose from.

Shapes: n cells, F input columns, C features made of them, T targets.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import eigh
from sklearn.neighbors import NearestNeighbors

from scfusion_fm.evaluation.baselines.classifiers import NEIGHBOUR_COUNTS
from scfusion_fm.evaluation.baselines.masked_networks import NetworkSettings, train_network

RIDGE_PENALTIES = tuple(10.0**exponent for exponent in range(-2, 6))
SHARED_CELLS = 100
FOLDS = 4

Predictor = Callable[[NDArray], NDArray]
Fit = Callable[[NDArray, "Targets"], Iterable[tuple[str, Predictor]]]

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

    def keep(self, rows: NDArray[np.int64]) -> "Targets":
        """Give the targets of some of the cells, around the mean of all.

        Parameters
        ----------
        rows
            The cells.
        """
        return Targets(self.centred[rows], self.observed[rows], self.mean, self.variance)


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
        Seed of networks and of the landmarks of kernel ridge.
    network
        How networks are trained.
    study, study_val
        (n_train,) and (n_val,), numbers of the studies, from 0; None where they are not told apart.
    """

    x: NDArray[np.float64]
    targets: Targets
    x_val: NDArray[np.float64]
    y_val: NDArray[np.float64]
    observed_val: NDArray[np.bool_]
    seed: int = 0
    network: NetworkSettings = field(default_factory=NetworkSettings)
    study: NDArray[np.int64] | None = None
    study_val: NDArray[np.int64] | None = None

    def tune(self, fit: Fit) -> Predictor:
        """Return the candidate with the smallest mean relative squared error on validation cells.

        Parameters
        ----------
        fit
            Gives names and predictors for some cells, the simplest first.
        """
        errors = average_errors(self._validate(fit)[0])
        named = list(fit(self.x, self.targets))
        best = int(np.argmin(errors))
        logger.info("chose %s: relative squared error %.3f on validation cells", named[best][0], errors[best])
        return named[best][1]

    def tune_each(self, fit: Fit) -> Predictor:
        """Return a predictor that gives each target by the candidate with the smallest error for it.

        Parameters
        ----------
        fit
            Gives names and predictors for some cells, the simplest first.

        Notes
        -----
        Few cells say little: the error of a target counts as that of its validation cells and of `SHARED_CELLS` more
        with the mean error of all targets.
        """
        errors, cells = self._validate(fit)
        shared = average_errors(errors)[:, None]
        share = cells / (cells + SHARED_CELLS)
        chosen = np.argmin(share * np.nan_to_num(errors) + (1 - share) * shared, axis=0)
        named = list(fit(self.x, self.targets))
        logger.info("chose %s", {named[code][0]: int((chosen == code).sum()) for code in np.unique(chosen)})
        return partial(predict_each, predictors={k: named[k][1] for k in np.unique(chosen)}, chosen=chosen)

    def measure(self, predict: Predictor) -> float:
        """Return the mean relative squared error on the validation cells, all targets and studies weighing the same."""
        study = np.zeros(len(self.x_val), np.int64) if self.study_val is None else self.study_val
        squared = np.square(self.y_val - predict(self.x_val)) / self.targets.variance
        errors = average_within(squared, self.observed_val, study)
        return float(average_errors(errors[None])[0])

    def _validate(self, fit: Fit) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the relative errors of all candidates, (candidates, T), NaN where unknown, and their cells, (T,).

        Of validation cells; where there are studies, of all cells of some of these, by what was fitted on the others,
        for a method has to choose what carries over to a new one.
        """
        squared, observed, study = [], [], []
        for rows, query, y, seen, code in self._folds():
            targets = self.targets.keep(rows)
            squared.append([np.square(y - predict(query)) for _, predict in fit(self.x[rows], targets)])
            observed.append(seen & targets.observed.any(axis=0))
            study.append(code)
        seen, codes = np.concatenate(observed), np.concatenate(study)
        errors = [average_within(np.concatenate(parts), seen, codes) for parts in zip(*squared, strict=True)]
        return np.stack(errors) / self.targets.variance, seen.sum(axis=0)

    def _folds(self) -> Iterable[tuple[NDArray, ...]]:
        """Yield rows of the training cells to fit on, and features, targets, where observed and studies of others."""
        val = (self.x_val, self.y_val, self.observed_val)
        names = np.unique(self.study) if self.study is not None else np.arange(1)
        if len(names) < 2:
            yield np.arange(len(self.x)), *val, np.zeros(len(self.x_val), np.int64)
            return
        own = (self.x, self.targets.centred + self.targets.mean, self.targets.observed)
        study = np.concatenate([self.study, self.study_val])
        cells = [np.concatenate(parts) for parts in zip(own, val, strict=True)]
        for held_out in np.array_split(np.random.default_rng(self.seed).permutation(names), min(FOLDS, len(names))):
            rows = np.flatnonzero(np.isin(study, held_out))
            kept = np.flatnonzero(~np.isin(self.study, held_out))
            yield kept, *(part[rows] for part in cells), study[rows]


def average_within(squared: NDArray, observed: NDArray[np.bool_], study: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average squared errors (n, T) over the observed cells of each study, and over studies; NaN where there are none.

    Parameters
    ----------
    squared
        (n, T).
    observed
        (n, T), which count.
    study
        (n,), numbers of the studies.
    """
    total, number = np.zeros(squared.shape[1]), np.zeros(squared.shape[1])
    for code in np.unique(study):
        seen = observed[study == code]
        count = seen.sum(axis=0)
        total += np.where(seen, squared[study == code], 0.0).sum(axis=0) / np.maximum(count, 1)
        number += count > 0
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def average_errors(errors: NDArray) -> NDArray[np.float64]:
    """Average (candidates, T) over the targets with an error; 0 where none has.

    Parameters
    ----------
    errors
        NaN where unknown.
    """
    known = np.isfinite(errors).all(axis=0)
    return errors[:, known].mean(axis=1) if known.any() else np.zeros(len(errors))


def predict_each(query: NDArray, predictors: dict[int, Predictor], chosen: NDArray[np.int64]) -> NDArray:
    """Predict each target by the one of several predictors that was chosen for it.

    Parameters
    ----------
    query
        (m, F), features.
    predictors
        By number.
    chosen
        (T,), number of the predictor of each target.
    """
    predicted = np.empty((len(query), len(chosen)))
    for code, predict in predictors.items():
        predicted[:, chosen == code] = predict(query)[:, chosen == code]
    return predicted


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


def fit_ridges(
    x: NDArray, targets: Targets, penalties: Sequence[float] = RIDGE_PENALTIES
) -> Iterable[tuple[str, Predictor]]:
    """Yield ridge regressions, each target fitted on the training cells in which it was observed.

    Parameters
    ----------
    x
        (n_train, F), features.
    targets
        Targets of the same cells.
    penalties
        Penalties to try, each on the sum of squared coefficients.
    """
    patterns, pattern_of_target = np.unique(targets.observed, axis=1, return_inverse=True)
    parts = []
    for number, cells in enumerate(patterns.T):
        if cells.any():
            columns = np.flatnonzero(pattern_of_target.ravel() == number)
            y, x_mean = targets.centred[np.ix_(cells, columns)], x[cells].mean(axis=0)
            own = x[cells] - x_mean
            values, vectors = eigh(own.T @ own)
            parts.append((columns, values, vectors, vectors.T @ (own.T @ (y - y.mean(axis=0))), x_mean, y.mean(axis=0)))
    for alpha in sorted(penalties, reverse=True):
        coefficients, intercepts = np.zeros((x.shape[1], len(targets.mean))), targets.mean.copy()
        for columns, values, vectors, projected, x_mean, y_mean in parts:
            solved = vectors @ (projected / (np.maximum(values, 0) + alpha)[:, None])
            coefficients[:, columns] = solved
            intercepts[columns] += y_mean - x_mean @ solved
        yield f"alpha={alpha:g}", partial(predict_linearly, coefficients=coefficients, intercepts=intercepts)


def predict_linearly(query: NDArray, coefficients: NDArray, intercepts: NDArray) -> NDArray:
    """Return (m, T), weighted sums of features (m, F)."""
    return query @ coefficients + intercepts


def fit_networks(cells: KnownTargets) -> Predictor:
    """Return the average of networks that differ in their seed and predict all targets together.

    Parameters
    ----------
    cells
        Training and validation cells. What was not observed in a cell has no part in the loss.
    """
    scale, settings, targets = np.sqrt(cells.targets.variance), cells.network, cells.targets

    learned = scale * targets.observed.any(axis=0)

    def predict(query: NDArray, members: Sequence[Predictor]) -> NDArray:
        return targets.mean + np.mean([member(query) for member in members], axis=0) * learned

    def measure(member: Predictor) -> float:
        return cells.measure(partial(predict, members=[member]))

    y = targets.centred / scale
    members = [
        train_network(cells.x, y, targets.observed, measure, settings, cells.seed + member)
        for member in range(settings.n_members)
    ]
    return partial(predict, members=members)


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
