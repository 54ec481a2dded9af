import numpy as np
import pytest

from scfusion_fm.evaluation.baselines.annotation import (
    ANNOTATION_METHODS,
    AnnotationTask,
    MlpEnsemble,
    choose_classifier,
    fit_annotation,
)
from scfusion_fm.evaluation.baselines.classifiers import Features, annotate_baselines
from scfusion_fm.evaluation.baselines.networks import MlpSettings, train_until_worse

N, G, P = 200, 30, 5
QUICK = MlpSettings(hidden_sizes=(16,), alphas=(0.1,), n_members=2, learning_rate=0.02, max_epochs=12)


def build_task(seed=0, **changes):
    rng = np.random.default_rng(seed)
    labels = rng.choice(["B", "NK", "T"], N, p=[0.3, 0.2, 0.5])
    codes = np.unique(labels, return_inverse=True)[1]
    rna = rng.normal(size=(N, G)) + 3 * rng.normal(size=(3, G))[codes]
    adt = rng.normal(size=(N, P)) + 4 * rng.normal(size=(3, P))[codes]
    split = np.array(["train", "train", "train", "val", "test"] * (N // 5))
    split[:10] = ""
    return AnnotationTask(
        **({"features": Features(rna, adt), "labels": labels, "split": split, "mlp": QUICK} | changes)
    )


@pytest.fixture(scope="module")
def task():
    return build_task()


@pytest.fixture(scope="module")
def result(task):
    return fit_annotation(task)


def test_every_method_finds_a_planted_signal_and_gives_probabilities(task, result):
    truth = task.labels[task.split == "test"]
    assert set(result.test) == {(m, i) for m in ANNOTATION_METHODS for i in ("rna", "adt", "rna+adt")}
    for (method, inputs), probability in result.test.items():
        assert probability.shape == (len(truth), 3)
        np.testing.assert_allclose(probability.sum(axis=1), 1)
        assert ((result.labels(method, inputs) == truth).mean() > 0.9) == (method != "majority")
    assert result.val["majority", "rna"].shape == ((task.split == "val").sum(), 3)


def test_the_majority_gives_the_shares_of_the_training_cells(task, result):
    shares = np.unique(task.labels[task.split == "train"], return_counts=True)[1] / (task.split == "train").sum()
    np.testing.assert_allclose(
        result.test["majority", "adt"], np.tile(shares, (len(result.test["majority", "adt"]), 1))
    )


def test_the_methods_shared_with_the_plain_baselines_agree_with_them(task, result):
    used = task.split != ""
    features = Features(task.features.rna[used], task.features.adt[used])
    for (method, inputs), predicted in annotate_baselines(features, task.labels[used], task.split[used]).items():
        np.testing.assert_array_equal(result.labels(method, inputs), predicted)


def test_only_training_cells_are_fitted_and_it_is_written_down(task, result):
    assert {name for name in result.fitted_on if "rna+adt" not in name and "adt" not in name} == {
        "features (rna)",
        *(f"{method} (rna)" for method in ANNOTATION_METHODS),
    }
    for rows in result.fitted_on.values():
        np.testing.assert_array_equal(rows, np.flatnonzero(task.split == "train"))
    for rows in result.tuned_on.values():
        np.testing.assert_array_equal(rows, np.flatnonzero(task.split == "val"))


def test_neither_labels_nor_features_of_test_and_unused_cells_reach_others(task, result):
    hidden = np.isin(task.split, ["test", ""])
    hidden[np.flatnonzero(task.split == "test")[5:]] = False
    rna, adt = task.features.rna.copy(), task.features.adt.copy()
    rna[hidden], adt[hidden] = 40.0, -40.0
    labels = np.where(np.isin(task.split, ["test", ""]), "?", task.labels)
    changed = fit_annotation(build_task(features=Features(rna, adt), labels=labels))
    for key, probability in result.test.items():
        np.testing.assert_allclose(changed.test[key][5:], probability[5:], atol=1e-9)


def test_the_same_seed_gives_the_same_networks(task, result):
    again = fit_annotation(task, ["PCA + MLP"])
    for key, probability in again.test.items():
        np.testing.assert_array_equal(probability, result.test[key])


def test_a_class_without_validation_cells_or_only_there_does_no_harm(task):
    labels = task.labels.copy()
    labels[task.split == "val"] = np.where(labels[task.split == "val"] == "B", "new", labels[task.split == "val"])
    result = fit_annotation(build_task(labels=labels), ["PCA + MLP"])
    assert list(result.classes) == ["B", "NK", "T"]
    labels[task.split == "val"] = "new"
    assert fit_annotation(build_task(labels=labels), ["PCA + MLP"]).test["PCA + MLP", "rna"].shape[1] == 3


def test_balanced_networks_give_a_rare_class_more_probability():
    rng = np.random.default_rng(0)
    y = np.repeat(["many", "rare"], [180, 20])
    x = rng.normal(size=(200, 4)) + (y == "rare")[:, None]
    mean = {
        balanced: MlpEnsemble(QUICK, 0.1, balanced, seed=0).fit(x, y, x, y).predict_proba(x)[:, 1].mean()
        for balanced in (False, True)
    }
    assert mean[True] > 1.3 * mean[False]


def test_training_stops_at_patience_and_returns_to_the_best_pass():
    class Network:
        coefs_, intercepts_ = [0], [0]

    network, passes = Network(), iter(range(1, 100))

    def step():
        network.coefs_ = [next(passes)]

    def loss():
        return abs(network.coefs_[0] - 4)

    train_until_worse(network, step, loss, MlpSettings(patience=3))
    assert network.coefs_ == [4]
    assert next(passes) == 8


def test_the_first_of_equal_classifiers_is_kept():
    class Always:
        classes_ = np.array(["a", "b"])

        def __init__(self, column):
            self.column = column

        def predict_proba(self, x):
            return np.eye(2)[np.full(len(x), self.column)]

    candidates = [Always(1), Always(0), Always(0)]
    assert choose_classifier(candidates, np.zeros((3, 1)), np.array(["a", "a", "a"])) is candidates[1]


def test_tasks_that_cannot_be_fitted_are_refused(task):
    with pytest.raises(ValueError, match=r"`methods` must be among .* got \['PCA \+ magic'\]"):
        fit_annotation(task, ["PCA + magic"])
    with pytest.raises(ValueError, match=r"`labels` must have one row per cell \(200\), got 199"):
        fit_annotation(build_task(labels=task.labels[1:]))
    with pytest.raises(ValueError, match="`split` must hold 'train', 'val' and 'test'"):
        fit_annotation(build_task(split=np.where(task.split == "val", "", task.split)))
    with pytest.raises(ValueError, match=r"at least two cell types in the training cells, got \['B'\]"):
        fit_annotation(build_task(labels=np.full(N, "B")))
