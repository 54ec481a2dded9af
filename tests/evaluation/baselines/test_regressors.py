"""Predictors of targets that not every cell has: against scikit-learn and plain averages."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LinearRegression, Ridge

from scfusion_fm.evaluation.baselines.regressors import (
    KnownTargets,
    Targets,
    fit_neighbours,
    fit_ridges,
    predict_from_own_gene,
)

N, G, P = 240, 40, 5
TRAIN, TEST = np.arange(150), np.arange(150, N)


@pytest.fixture
def noise():
    rng = np.random.default_rng(2)
    return rng.normal(size=(N, G)), rng.normal(size=(N, P))


def test_own_gene_is_the_least_squares_line_and_the_mean_without_a_gene(noise):
    rna, adt = noise
    targets = Targets.from_training(adt[TRAIN], np.ones((150, P), bool))
    predicted = predict_from_own_gene(rna, [7, 0, 1, 2, None], TRAIN, TEST, targets)
    line = LinearRegression().fit(rna[TRAIN][:, [7]], adt[TRAIN, 0])
    np.testing.assert_allclose(predicted[:, 0], line.predict(rna[TEST][:, [7]]), rtol=1e-4)
    np.testing.assert_allclose(predicted[:, 4], adt[TRAIN, 4].mean(), rtol=1e-5)


def test_a_gene_that_does_not_vary_predicts_the_mean(noise):
    rna, adt = noise
    rna[TRAIN, 0] = 0
    targets = Targets.from_training(adt[TRAIN], np.ones((150, P), bool))
    predicted = predict_from_own_gene(sparse.csr_matrix(rna), [0, 1, 2, 3, 4], TRAIN, TEST, targets)
    assert (predicted[:, 0] == targets.mean[0]).all()
    assert (predicted[:, 1] != targets.mean[1]).any()


def test_ridges_agree_with_one_fit_per_target(noise):
    rng = np.random.default_rng(0)
    x, y = noise[0][:, :8], noise[1]
    observed = rng.random(y.shape) > 0.3
    observed[:, 1] = observed[:, 0]
    for name, predict in fit_ridges(x, Targets.from_training(y, observed)):
        alpha = float(name.removeprefix("alpha="))
        for target, cells in enumerate(observed.T):
            reference = Ridge(alpha=alpha).fit(x[cells], y[cells, target]).predict(x)
            np.testing.assert_allclose(predict(x)[:, target], reference, atol=1e-8)


def test_neighbours_average_the_nearest_cells_in_which_the_target_was_observed(noise):
    x, y = noise[0][:100, :4], noise[1][:100]
    observed = np.random.default_rng(0).random(y.shape) > 0.3
    query = noise[0][100:105, :4]
    nearest = np.argsort(np.linalg.norm(query[:, None] - x, axis=2), axis=1)
    means = np.ma.MaskedArray(y, ~observed).mean(axis=0)
    for name, predict in fit_neighbours(x, Targets.from_training(y, observed)):
        for cell, order in enumerate(nearest[:, : int(name.removeprefix("k="))]):
            for target in range(P):
                values = y[order[observed[order, target]], target]
                expected = values.mean() if len(values) else means[target]
                assert predict(query)[cell, target] == pytest.approx(expected)


def test_tuning_prefers_what_predicts_the_validation_cells_and_the_first_of_equals(noise):
    y = noise[1]
    everywhere = np.ones_like(y, bool)
    cells = KnownTargets(y, Targets.from_training(y, everywhere), y, y, everywhere)
    candidates = [("zeros", np.zeros_like), ("truth", np.copy), ("late truth", np.positive)]
    assert cells.tune(lambda x, targets: candidates) is np.copy


def test_targets_that_nobody_measured_are_refused():
    with pytest.raises(ValueError, match="`observed` must hold a measured value in the training cells, got none"):
        Targets.from_training(np.zeros((4, 2)), np.zeros((4, 2), bool))
