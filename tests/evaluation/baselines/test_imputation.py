import numpy as np
import pytest
from scipy import sparse

from scfusion_fm.evaluation.baselines.imputation import ImputationTask, fit_imputation, imputation_scores

N, G = 150, 25
METHODS = ("gene mean", "PCA reconstruction", "kNN smoothing")


def build_task(**changes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)) @ rng.normal(size=(3, G)) + 0.2 * rng.normal(size=(N, G)) + np.linspace(0, 5, G)
    split = np.array(["train", "train", "train", "val", "test"] * (N // 5))
    split[:5] = ""
    return ImputationTask(**({"x": x, "hidden": rng.random((N, G)) < 0.2, "split": split} | changes))


@pytest.fixture(scope="module")
def task():
    return build_task()


@pytest.fixture(scope="module")
def result(task):
    return fit_imputation(task)


def score(task, imputed):
    test, train = task.split == "test", task.split == "train"
    return imputation_scores(task.x[test], imputed, task.hidden[test], task.x[train].mean(axis=0))


def test_a_few_factors_behind_all_genes_are_found(task, result):
    assert tuple(result.test) == METHODS
    assert score(task, result.test["PCA reconstruction"])["rmse_vs_mean"] < 0.4
    assert score(task, result.test["kNN smoothing"])["rmse_vs_mean"] < 0.6
    mean = score(task, result.test["gene mean"])
    assert mean["rmse_vs_mean"] == 1
    assert mean["pearson_per_gene"] == 0
    assert mean["pearson_per_cell"] > 0.5


def test_noise_is_not_imputed():
    task = build_task(x=np.random.default_rng(1).normal(size=(N, G)))
    for imputed in fit_imputation(task).test.values():
        assert abs(score(task, imputed)["pearson_per_gene"]) < 0.3
        assert score(task, imputed)["rmse_vs_mean"] > 0.9


def test_visible_values_are_left_alone(task, result):
    test = task.split == "test"
    for imputed in result.test.values():
        np.testing.assert_array_equal(imputed[~task.hidden[test]], task.x[test][~task.hidden[test]])
        assert np.isfinite(imputed).all()


def test_hidden_values_of_test_cells_and_other_test_cells_are_never_read(task, result):
    test = task.split == "test"
    x = np.where(test[:, None] & task.hidden, np.nan, task.x)
    x[np.flatnonzero(test)[5:]] += 30
    x[task.split == ""] = 99.0
    for method, imputed in fit_imputation(build_task(x=x)).test.items():
        np.testing.assert_allclose(imputed[:5], result.test[method][:5])
    assert {tuple(rows) for rows in result.fitted_on.values()} == {tuple(np.flatnonzero(task.split == "train"))}
    assert {tuple(rows) for rows in result.tuned_on.values()} == {tuple(np.flatnonzero(task.split == "val"))}


def test_sparse_and_dense_values_give_the_same(task):
    x = np.where(task.x > 1, task.x, 0)
    dense = fit_imputation(build_task(x=x))
    for method, imputed in fit_imputation(build_task(x=sparse.csr_matrix(x))).test.items():
        np.testing.assert_allclose(imputed, dense.test[method])


def test_a_perfect_guess_has_perfect_scores(task):
    test = task.split == "test"
    assert score(task, task.x[test]) == pytest.approx(
        {"pearson_per_gene": 1, "pearson_per_cell": 1, "rmse": 0, "rmse_vs_mean": 0}
    )
    assert np.isnan(list(imputation_scores(np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), bool), 1).values())).all()


def test_tasks_that_cannot_be_imputed_are_refused(task):
    with pytest.raises(
        ValueError, match=r"`hidden` must be bool of shape \(150, 25\), got float64 of shape \(150, 25\)"
    ):
        fit_imputation(build_task(hidden=task.hidden.astype(float)))
    with pytest.raises(ValueError, match="`hidden` must hide a value in validation and in test cells"):
        fit_imputation(build_task(hidden=task.hidden & (task.split != "val")[:, None]))
    with pytest.raises(ValueError, match="`x` must be finite, got 87 values"):
        fit_imputation(build_task(x=np.where((np.arange(G) == 0) & (task.split == "train")[:, None], np.nan, task.x)))
