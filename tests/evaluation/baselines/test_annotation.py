"""Baselines of annotation: they find what is there, from training cells alone."""

import numpy as np
import pytest
from scipy import sparse

from scfusion_fm.evaluation.baselines.annotation import (
    ANNOTATION_METHODS,
    AnnotationTask,
    choose_classifier,
    fit_annotation_baselines,
)
from scfusion_fm.evaluation.baselines.features import Features
from scfusion_fm.evaluation.baselines.gene_classifiers import GENE_METHODS, show_standardised
from scfusion_fm.evaluation.baselines.networks import MlpSettings
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.partition import Partition

N, G, P = 200, 30, 5
QUICK = MlpSettings(hidden_sizes=(16,), alphas=(0.1,), n_members=2, learning_rate=0.02, max_epochs=12)
ROLES = np.array([""] * 10 + ["train", "train", "train", "val", "test"] * (N // 5 - 2))
PARTITION = Partition.from_roles(ROLES)


def build_task(seed=0, **changes):
    rng = np.random.default_rng(seed)
    labels = rng.choice(["B", "NK", "T"], N, p=[0.3, 0.2, 0.5])
    codes = np.unique(labels, return_inverse=True)[1]
    rna = rng.normal(size=(N, G)) + 3 * rng.normal(size=(3, G))[codes]
    adt = rng.normal(size=(N, P)) + 4 * rng.normal(size=(3, P))[codes]
    task = {"features": Features(rna, adt), "labels": labels, "partition": PARTITION, "mlp": QUICK}
    return AnnotationTask(**(task | changes))


@pytest.fixture(scope="module")
def task():
    return build_task()


@pytest.fixture(scope="module")
def result(task):
    return fit_annotation_baselines(task)


def test_every_method_finds_a_planted_signal_and_gives_probabilities(task, result):
    truth = task.labels[ROLES == "test"]
    named = result.name_test_cells()
    both = {(m, i) for m in ANNOTATION_METHODS for i in ("rna", "adt", "rna+adt")}
    assert set(result.test) == both | {(m, "rna") for m in GENE_METHODS}
    for (method, inputs), probability in result.test.items():
        assert probability.shape == (len(truth), 3)
        np.testing.assert_allclose(probability.sum(axis=1), 1)
        assert ((named[method, inputs] == truth).mean() > 0.9) == (method != "majority")
    assert result.val["majority", "rna"].shape == ((ROLES == "val").sum(), 3)


def test_the_majority_gives_the_shares_of_the_training_cells(task, result):
    shares = np.unique(task.labels[ROLES == "train"], return_counts=True)[1] / (ROLES == "train").sum()
    np.testing.assert_allclose(
        result.test["majority", "adt"], np.tile(shares, (len(result.test["majority", "adt"]), 1))
    )
    assert set(result.name_test_cells()["majority", "adt"]) == {result.classes[shares.argmax()]}


def test_pure_noise_is_no_better_than_guessing(task):
    rng = np.random.default_rng(2)
    noise = build_task(features=Features(rng.normal(size=(N, G)), rng.normal(size=(N, P))))
    truth = task.labels[ROLES == "test"]
    methods = ["majority", "PCA + logistic regression", "PCA + kNN"]
    for named in fit_annotation_baselines(noise, methods).name_test_cells().values():
        assert annotation_scores(truth, named)["balanced_accuracy"] < 1 / 3 + 0.2


def test_neither_labels_nor_features_of_test_and_unused_cells_reach_others(task, result):
    hidden = np.isin(ROLES, ["test", ""])
    hidden[np.flatnonzero(ROLES == "test")[5:]] = False
    rna, adt = task.features.rna.copy(), task.features.adt.copy()
    rna[hidden], adt[hidden] = 40.0, -40.0
    labels = np.where(np.isin(ROLES, ["test", ""]), "?", task.labels)
    changed = fit_annotation_baselines(build_task(features=Features(rna, adt), labels=labels), [*ANNOTATION_METHODS])
    for key, probability in changed.test.items():
        np.testing.assert_allclose(probability[5:], result.test[key][5:], atol=1e-9)


def test_the_same_seed_gives_the_same_networks(task, result):
    again = fit_annotation_baselines(task, ["PCA + MLP"])
    for key, probability in again.test.items():
        np.testing.assert_array_equal(probability, result.test[key])


def test_a_class_without_validation_cells_or_only_there_does_no_harm(task):
    labels = task.labels.copy()
    labels[ROLES == "val"] = np.where(labels[ROLES == "val"] == "B", "new", labels[ROLES == "val"])
    result = fit_annotation_baselines(build_task(labels=labels), ["PCA + MLP"])
    assert list(result.classes) == ["B", "NK", "T"]
    labels[ROLES == "val"] = "new"
    assert fit_annotation_baselines(build_task(labels=labels), ["PCA + MLP"]).test["PCA + MLP", "rna"].shape[1] == 3


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
        fit_annotation_baselines(task, ["PCA + magic"])
    with pytest.raises(ValueError, match=r"`labels` must have one row per cell \(200\), got 199"):
        fit_annotation_baselines(build_task(labels=task.labels[1:]))
    with pytest.raises(ValueError, match=r"`adt` must have one row per cell \(200\), got 199"):
        fit_annotation_baselines(build_task(features=Features(task.features.rna, task.features.adt[1:])))
    with pytest.raises(ValueError, match=r"must leave cells for train, val and test, got none for \['val'\]"):
        fit_annotation_baselines(build_task(partition=Partition(PARTITION.train, test=PARTITION.test)))
    with pytest.raises(ValueError, match=r"at least two cell types in the training cells, got \['B'\]"):
        fit_annotation_baselines(build_task(labels=np.full(N, "B")))


def test_standardising_within_data_sets_finds_types_where_levels_and_spreads_are_others():
    task = build_task()
    new = ROLES == "test"
    rng = np.random.default_rng(5)
    rna = np.where(new[:, None], task.features.rna * rng.uniform(0.1, 5, G) + rng.normal(0, 60, G), task.features.rna)
    hidden = np.where(new, "B", task.labels)  # those of test cells are not read
    there = build_task(features=Features(rna), labels=hidden, study=new.astype(int))
    found = fit_annotation_baselines(there, [*GENE_METHODS, "PCA + logistic regression"])
    right = {key: (named == task.labels[new]).mean() for key, named in found.name_test_cells().items()}
    assert right.pop(("PCA + logistic regression", "rna")) < 0.7
    assert min(right.values()) > 0.75
    assert right["genes + balanced logistic regression", "rna"] > 0.95


@pytest.mark.parametrize("all_genes", [True, False])
def test_features_of_few_cells_are_the_products_of_standardised_genes(all_genes, monkeypatch):
    rng = np.random.default_rng(0)
    values, study = rng.poisson(1.0, (60, 12)).astype(float), np.repeat([0, 1, 2], 20)
    values[study == 1, :3] = 0
    values[study == 2, 3:5] = 0
    fit = np.flatnonzero(study < 2)
    x = show_standardised(sparse.csr_matrix(values), study, fit, all_genes, 0)
    scaled = np.zeros(values.shape)
    for code in range(3):
        own = values[study == code]
        spread = own.std(0)
        scaled[study == code] = (own - own.mean(0)) / np.where(spread > 0, spread, 1) * (spread > 0)
    shown = scaled[:, [*range(3), *range(5, 12)]]  # what the new study has
    np.testing.assert_allclose(x @ x[fit].T, shown @ shown[fit].T, atol=1e-6)
    monkeypatch.setattr("scfusion_fm.evaluation.baselines.gene_classifiers.MAX_LANDMARKS", 5)
    assert show_standardised(sparse.csr_matrix(values), study, fit, all_genes, 0).shape == (60, 5)
