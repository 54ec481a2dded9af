"""Baselines that predict one modality from the other: they find what is there, from training cells alone."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import KernelCenterer

from scfusion_fm.evaluation.baselines.kernels import arc_cosine_kernel, fit_kernel_ridges, rbf_kernel
from scfusion_fm.evaluation.baselines.masked_networks import NetworkSettings
from scfusion_fm.evaluation.baselines.prediction import (
    AVERAGE,
    AVERAGED,
    OWN,
    PREDICTION_METHODS,
    PredictionTask,
    fill_missing,
    fit_prediction_baselines,
    project_inputs,
)
from scfusion_fm.evaluation.baselines.regressors import Targets
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.partition import Partition

N, G, P = 240, 40, 6
QUICK = NetworkSettings(hidden_sizes=(32, 16), n_members=2, batch_size=32, learning_rate=0.02, max_epochs=15)
FLOORS = {"mean": 0, OWN: 0.4}
LINEAR = ["mean", "PCA + kNN", "PCA + ridge", OWN]
ROLES = np.array([""] * 10 + ["train", "train", "train", "val", "test"] * (N // 5 - 2))


def build_task(inputs="rna", **changes):
    """Five hidden factors behind both modalities; the first proteins are also made by the first genes."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(N, 5))
    rna = hidden @ rng.normal(size=(5, G)) + 0.3 * rng.normal(size=(N, G))
    adt = hidden @ rng.normal(size=(5, P)) + rna[:, :P] + 0.3 * rng.normal(size=(N, P)) + 2
    x, y = (rna, adt) if inputs == "rna" else (adt, rna[:, :P])
    task = {"x": x, "y": y, "observed": np.ones(y.shape, bool), "own_columns": list(range(P))}
    task["partition"] = Partition.from_roles(ROLES)
    return PredictionTask(**(task | {"inputs": inputs, "network": QUICK} | changes))


def score(task, predicted):
    truth = task.y[ROLES == "test"]
    return protein_scores(truth, predicted, np.ones_like(truth, bool))[1]["pearson_per_protein"]


@pytest.fixture(scope="module")
def task():
    return build_task()


@pytest.fixture(scope="module")
def result(task):
    return fit_prediction_baselines(task)


@pytest.mark.parametrize("inputs", ["rna", "adt"])
def test_all_methods_find_a_planted_signal_in_both_directions(inputs):
    task = build_task(inputs)
    result = fit_prediction_baselines(task)
    assert set(result.test) == {*PREDICTION_METHODS, OWN, AVERAGE} == set(result.val)
    for method, predicted in result.test.items():
        assert predicted.shape == ((ROLES == "test").sum(), P)
        assert score(task, predicted) >= FLOORS.get(method, 0.7), method
    assert score(task, result.test["mean"]) == 0


def test_neither_targets_nor_inputs_of_test_and_unused_cells_reach_others(task, result):
    hidden = np.isin(ROLES, ["test", ""])
    y = np.where(hidden[:, None], np.nan, task.y)
    hidden[np.flatnonzero(ROLES == "test")[5:]] = False
    changed = fit_prediction_baselines(build_task(x=np.where(hidden[:, None], 30.0, task.x), y=y))
    for method, predicted in result.test.items():
        np.testing.assert_allclose(changed.test[method][5:], predicted[5:], atol=1e-6)


def test_unobserved_targets_enter_no_fit(task):
    observed = np.random.default_rng(3).random(task.y.shape) > 0.4
    observed[:, :2] = observed[:, [0]]
    before = fit_prediction_baselines(build_task(y=np.where(observed, task.y, np.nan), observed=observed))
    after = fit_prediction_baselines(build_task(y=np.where(observed, task.y, 1e6), observed=observed))
    for method, predicted in before.test.items():
        np.testing.assert_allclose(after.test[method], predicted)
        assert np.isfinite(predicted).all()
        assert score(task, predicted) >= FLOORS.get(method, 0.7), method


def test_a_target_of_another_panel_is_learned_from_the_cells_that_have_it(task):
    """Two data sets: the second lacks half of the targets and some genes."""
    second = np.arange(N) % 2 == 1
    x, observed = task.x.copy(), task.observed.copy()
    x[np.ix_(second, np.arange(30, G))] = 0
    observed[second, 3:] = False
    result = fit_prediction_baselines(build_task(x=x, observed=observed))
    for method in (*AVERAGED, AVERAGE):
        assert score(task, result.test[method]) > 0.6, method


def test_a_target_that_no_training_cell_has_gets_the_mean_of_all_training_values(task):
    observed = task.observed.copy()
    observed[ROLES == "train", 1] = False
    train = ROLES == "train"
    mean = task.y[train][:, [0, 2, 3, 4, 5]].mean()
    result = fit_prediction_baselines(build_task(observed=observed))
    for method in result.test:
        np.testing.assert_allclose(result.test[method][:, 1], mean, rtol=1e-6, err_msg=method)


def test_sparse_and_dense_expression_give_the_same_predictions(task):
    x = np.where(task.x > 0, task.x, 0)
    dense = fit_prediction_baselines(build_task(x=x), LINEAR)
    for method, predicted in fit_prediction_baselines(build_task(x=sparse.csr_matrix(x)), LINEAR).test.items():
        np.testing.assert_allclose(predicted, dense.test[method], atol=1e-6)


def test_the_average_is_that_of_its_parts_asked_for_or_not(task, result):
    np.testing.assert_allclose(result.test[AVERAGE], np.mean([result.test[name] for name in AVERAGED], axis=0))
    alone = fit_prediction_baselines(task, [AVERAGE])
    assert list(alone.test) == [AVERAGE]
    np.testing.assert_array_equal(alone.val[AVERAGE], result.val[AVERAGE])


def test_noise_correlates_with_nothing(task):
    x = np.random.default_rng(2).normal(size=task.x.shape)
    for predicted in fit_prediction_baselines(build_task(x=x), LINEAR).test.values():
        assert abs(score(task, predicted)) < 0.25


def test_one_target_alone_can_be_predicted(task):
    result = fit_prediction_baselines(build_task(y=task.y[:, :1], observed=task.observed[:, :1], own_columns=[0]))
    assert {predicted.shape for predicted in result.test.values()} == {((ROLES == "test").sum(), 1)}


def test_wide_protein_panels_are_projected_and_missing_proteins_filled():
    train = np.arange(60)
    x = np.random.default_rng(0).normal(size=(80, 70))
    x[::3, 0], x[:, 1] = np.nan, np.nan
    task = PredictionTask(
        x, x[:, :2], np.ones((80, 2), bool), Partition(train, test=np.arange(60, 80)), [None, None], inputs="adt"
    )
    assert project_inputs(task).shape == (80, 50)
    filled = fill_missing(x, train)
    np.testing.assert_allclose(filled[::3, 0], np.nanmean(x[train, 0]))
    assert (filled[:, 1] == 0).all()
    assert np.isfinite(filled).all()


def test_kernel_ridges_agree_with_scikit_learn_on_each_target_s_cells():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 3))
    observed = np.ones((50, 3), bool)
    observed[:20, 1] = False
    targets = Targets.from_training(y, observed)
    candidates = [c for c in fit_kernel_ridges(x, targets) if c[0].startswith("RBF")]
    assert len(candidates) > 15
    for name, predict in candidates[::5]:
        gamma = predict.keywords["show"].keywords["kernel"].keywords["gamma"]
        for column, cells in enumerate(observed.T):
            centrer = KernelCenterer().fit(rbf_kernel(x[cells], x[cells], gamma))
            model = KernelRidge(kernel="precomputed", alpha=float(name.split("=")[1]))
            mean = y[cells, column].mean()
            model.fit(centrer.transform(rbf_kernel(x[cells], x[cells], gamma)), y[cells, column] - mean)
            reference = model.predict(centrer.transform(rbf_kernel(x, x[cells], gamma))) + mean
            np.testing.assert_allclose(predict(x)[:, column], reference, rtol=1e-4, atol=1e-4)


def test_kernel_ridge_of_many_cells_is_close_to_the_exact_one_and_holds_no_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = np.sin(x)
    targets = Targets.from_training(y, np.ones(y.shape, bool))
    exact = dict(fit_kernel_ridges(x, targets))
    monkeypatch.setattr("scfusion_fm.evaluation.baselines.kernels.MAX_LANDMARKS", 60)
    for name, predict in fit_kernel_ridges(x, targets):
        assert predict.keywords["show"].keywords["landmarks"].shape == (60, 2)
        if name == "RBF, 1 / median, alpha=0.1":
            assert np.abs(predict(x) - exact[name](x)).mean() < 0.01


def test_kernels_are_what_they_are_called():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    units = rng.normal(size=(200_000, 3))
    relu = np.maximum(a @ units.T, 0) @ np.maximum(b @ units.T, 0).T * 2 / len(units)
    np.testing.assert_allclose(arc_cosine_kernel(a, b), relu, atol=0.05)
    np.testing.assert_allclose(np.diag(arc_cosine_kernel(a, a)), np.square(a).sum(axis=1), rtol=1e-6)
    assert (arc_cosine_kernel(np.zeros((1, 3)), b) == 0).all()
    assert rbf_kernel(a, b, 0.3)[1, 2] == pytest.approx(np.exp(-0.3 * np.square(a[1] - b[2]).sum()))


def test_tasks_that_cannot_be_fitted_are_refused(task):
    with pytest.raises(ValueError, match=r"`methods` must be among .* got \['magic'\]"):
        fit_prediction_baselines(task, ["magic"])
    for changes, message in (
        ({"inputs": "atac"}, "`inputs` must be 'rna' or 'adt', got 'atac'"),
        ({"y": task.y[1:]}, r"`y` must have one row per cell \(240\), got 239"),
        ({"partition": Partition([0, 1], [2])}, r"got none for \['test'\] of 3 cells"),
        ({"partition": Partition([0], [1], [240])}, "must hold rows below 240, the number of cells, got 240"),
        ({"own_columns": [0, 1]}, "`own_columns` must have one entry per target, got 2 for 6"),
        ({"observed": np.ones((N, P))}, r"`observed` must be bool of shape \(240, 6\), got float64"),
        ({"observed": np.ones(P, bool)}, r"`observed` must be bool of shape \(240, 6\), got bool of shape \(6,\)"),
        ({"y": np.where(np.arange(P) == 1, np.nan, task.y)}, "`y` must be finite wherever `observed` is true, got 184"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_prediction_baselines(PredictionTask(**(vars(task) | changes)))
