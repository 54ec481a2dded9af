"""Baselines of imputation: what was hidden is guessed from the rest, and never read."""

import numpy as np
import pytest
from scipy import sparse

from scfusion_fm.evaluation.baselines.imputation import (
    IMPUTATION_METHODS,
    ImputationTask,
    fit_imputation_baselines,
    imputation_scores,
)
from scfusion_fm.evaluation.partition import Partition

N, G = 150, 25
ROLES = np.array([""] * 5 + ["train", "train", "train", "val", "test"] * (N // 5 - 1))


def build_task(**changes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)) @ rng.normal(size=(3, G)) + 0.2 * rng.normal(size=(N, G)) + np.linspace(0, 5, G)
    task = {"x": x, "hidden": rng.random((N, G)) < 0.2, "partition": Partition.from_roles(ROLES)}
    return ImputationTask(**(task | changes))


@pytest.fixture(scope="module")
def task():
    return build_task()


@pytest.fixture(scope="module")
def result(task):
    return fit_imputation_baselines(task)


def score(task, imputed):
    test, train = ROLES == "test", ROLES == "train"
    return imputation_scores(task.x[test], imputed, task.hidden[test], task.x[train].mean(axis=0))


def test_a_few_factors_behind_all_genes_are_found(task, result):
    assert tuple(result) == IMPUTATION_METHODS
    assert score(task, result["PCA reconstruction"])["rmse_vs_mean"] < 0.4
    assert score(task, result["kNN smoothing"])["rmse_vs_mean"] < 0.6
    mean = score(task, result["gene mean"])
    assert mean["rmse_vs_mean"] == 1
    assert mean["pearson_per_gene"] == 0
    assert mean["pearson_per_cell"] > 0.5


def test_noise_is_not_imputed():
    task = build_task(x=np.random.default_rng(1).normal(size=(N, G)))
    for imputed in fit_imputation_baselines(task).values():
        assert abs(score(task, imputed)["pearson_per_gene"]) < 0.3
        assert score(task, imputed)["rmse_vs_mean"] > 0.9


def test_visible_values_are_left_alone(task, result):
    test = ROLES == "test"
    for imputed in result.values():
        np.testing.assert_array_equal(imputed[~task.hidden[test]], task.x[test][~task.hidden[test]])
        assert np.isfinite(imputed).all()


def test_hidden_values_of_test_cells_and_other_test_cells_are_never_read(task, result):
    test = ROLES == "test"
    x = np.where(test[:, None] & task.hidden, np.nan, task.x)
    x[np.flatnonzero(test)[5:]] += 30
    x[ROLES == ""] = 99.0
    for method, imputed in fit_imputation_baselines(build_task(x=x)).items():
        np.testing.assert_allclose(imputed[:5], result[method][:5])


def test_sparse_and_dense_values_give_the_same(task):
    x = np.where(task.x > 1, task.x, 0)
    dense = fit_imputation_baselines(build_task(x=x))
    for method, imputed in fit_imputation_baselines(build_task(x=sparse.csr_matrix(x))).items():
        np.testing.assert_allclose(imputed, dense[method])


def test_a_perfect_guess_has_perfect_scores(task):
    test = ROLES == "test"
    assert score(task, task.x[test]) == pytest.approx(
        {"pearson_per_gene": 1, "pearson_per_cell": 1, "rmse": 0, "rmse_vs_mean": 0}
    )
    assert np.isnan(list(imputation_scores(np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), bool), 1).values())).all()


def test_tasks_that_cannot_be_imputed_are_refused(task):
    with pytest.raises(
        ValueError, match=r"`hidden` must be bool of shape \(150, 25\), got float64 of shape \(150, 25\)"
    ):
        fit_imputation_baselines(build_task(hidden=task.hidden.astype(float)))
    with pytest.raises(ValueError, match="`hidden` must hide a value in validation and in test cells"):
        fit_imputation_baselines(build_task(hidden=task.hidden & (ROLES != "val")[:, None]))
    with pytest.raises(ValueError, match="`x` must be finite, got 87 values"):
        fit_imputation_baselines(
            build_task(x=np.where((np.arange(G) == 0) & (ROLES == "train")[:, None], np.nan, task.x))
        )
