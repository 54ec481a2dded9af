import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, recall_score, silhouette_score

from scfusion_fm.evaluation.metrics.clusters import clustering_scores
from scfusion_fm.evaluation.metrics.labels import annotation_scores, class_scores, confusion_table
from scfusion_fm.evaluation.metrics.proteins import protein_scores


@pytest.fixture
def labels():
    return np.random.default_rng(0).choice(["B", "NK", "T"], 60)


@pytest.fixture
def proteins():
    rng = np.random.default_rng(1)
    measured = rng.normal(size=(40, 6))
    return measured, measured + rng.normal(size=measured.shape), rng.random(measured.shape) > 0.3


def test_annotation_scores_agree_with_sklearn(labels):
    predicted = np.random.default_rng(1).permutation(labels)
    scores = annotation_scores(labels, predicted)
    assert scores["accuracy"] == pytest.approx((labels == predicted).mean())
    assert scores["balanced_accuracy"] == pytest.approx(recall_score(labels, predicted, average="macro"))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_a_class_that_is_only_predicted_is_an_error_but_no_class_of_the_mean():
    scores = annotation_scores(np.array(["a", "a", "b"]), np.array(["a", "c", "b"]))
    # a: precision 1, recall 1/2, F1 2/3; b: all 1; c is not averaged.
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)


def test_perfect_predictions_score_one(labels):
    assert set(annotation_scores(labels, labels).values()) == {1.0}


def test_confusion_table_counts_every_cell_once(labels):
    predicted = np.where(labels == "B", "X", labels)
    table = confusion_table(labels, predicted)
    assert list(table.index) == list(table.columns) == ["B", "NK", "T", "X"]
    assert table.to_numpy().sum() == len(labels)
    assert table.loc["B", "X"] == (labels == "B").sum()
    assert table.loc["X"].sum() == 0


def test_class_scores_average_to_the_annotation_scores(labels):
    predicted = np.where(np.arange(60) % 3 == 0, "X", labels)
    per_class, scores = class_scores(labels, predicted), annotation_scores(labels, predicted)
    assert per_class["f1"].mean() == pytest.approx(scores["macro_f1"])
    assert per_class["recall"].mean() == pytest.approx(scores["balanced_accuracy"])
    assert per_class["n"].to_dict() == {name: (labels == name).sum() for name in ("B", "NK", "T")}


@pytest.mark.parametrize("score", [annotation_scores, confusion_table, class_scores])
def test_labels_of_different_length_or_none_are_refused(score):
    with pytest.raises(ValueError, match=r"`labels` and `predicted` must be non-empty .* \(2,\) and \(1,\)"):
        score(np.array(["a", "b"]), np.array(["a"]))
    with pytest.raises(ValueError, match="non-empty"):
        score(np.array([]), np.array([]))


def test_protein_scores_agree_with_numpy_and_scipy_on_the_observed_values(proteins):
    measured, predicted, observed = proteins
    table, summary = protein_scores(measured, predicted, observed)
    pairs = [(measured[o, i], predicted[o, i]) for i, o in enumerate(observed.T)]
    np.testing.assert_allclose(table["pearson"], [np.corrcoef(*pair)[0, 1] for pair in pairs])
    np.testing.assert_allclose(table["spearman"], [spearmanr(*pair).statistic for pair in pairs])
    np.testing.assert_allclose(table["rmse"], [np.sqrt(np.mean((m - p) ** 2)) for m, p in pairs])
    assert list(table["n"]) == list(observed.sum(axis=0))
    assert summary["pearson_per_protein"] == pytest.approx(table["pearson"].mean())
    assert summary["rmse"] == pytest.approx(np.sqrt(np.mean((measured - predicted)[observed] ** 2)))


def test_pearson_per_cell_is_pearson_per_protein_of_the_transposed(proteins):
    measured, predicted, observed = proteins
    per_cell = protein_scores(measured, predicted, observed)[1]["pearson_per_cell"]
    assert per_cell == pytest.approx(protein_scores(measured.T, predicted.T, observed.T)[1]["pearson_per_protein"])


def test_what_was_not_observed_changes_nothing(proteins):
    measured, predicted, observed = proteins
    before = protein_scores(measured, predicted, observed)
    after = protein_scores(np.where(observed, measured, np.nan), np.where(observed, predicted, 1e6), observed)
    np.testing.assert_allclose(before[0], after[0])
    assert before[1] == pytest.approx(after[1])


def test_a_constant_prediction_scores_zero_and_a_constant_measurement_is_left_out(proteins):
    measured, predicted, observed = (array.copy() for array in proteins)
    predicted[:, 0] = 0.1
    measured[:, 1] = 0.1
    table, summary = protein_scores(measured, predicted, observed)
    assert list(table.loc[0, ["pearson", "spearman"]]) == [0, 0]
    assert table.loc[1, ["pearson", "spearman"]].isna().all()
    assert summary["pearson_per_protein"] == pytest.approx(table["pearson"].drop(1).sum() / 5)


def test_proteins_that_nobody_measured_give_nan_and_no_warning(proteins):
    measured, predicted, observed = proteins
    table, summary = protein_scores(measured, predicted, np.zeros_like(observed))
    assert table[["pearson", "spearman", "rmse"]].isna().all(axis=None)
    assert np.isnan(list(summary.values())).all()


def test_protein_arrays_that_do_not_fit_are_refused(proteins):
    measured, predicted, observed = proteins
    with pytest.raises(ValueError, match=r"must share one shape .* got \[\(40, 6\), \(39, 6\), \(40, 6\)\]"):
        protein_scores(measured, predicted[1:], observed)
    with pytest.raises(ValueError, match="`observed` must be bool, got int64"):
        protein_scores(measured, predicted, observed.astype(np.int64))
    measured = measured.copy()
    measured[tuple(np.argwhere(observed)[0])] = np.nan
    with pytest.raises(ValueError, match="`measured` must be finite wherever `observed` is true, got 1 values"):
        protein_scores(measured, predicted, observed)
    with pytest.raises(ValueError, match="`predicted` must be finite"):
        protein_scores(predicted, measured, observed)


def test_clustering_scores_agree_with_sklearn_and_a_plain_neighbour_count():
    rng = np.random.default_rng(0)
    embedding, labels = rng.normal(size=(50, 4)), rng.choice(["a", "b"], 50)
    scores = clustering_scores(embedding, labels, n_neighbors=7)
    assert scores["silhouette"] == pytest.approx(silhouette_score(embedding, labels))
    distances = np.linalg.norm(embedding[:, None] - embedding, axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1:8]
    assert scores["knn_purity"] == pytest.approx((labels[nearest] == labels[:, None]).mean())


def test_separate_groups_score_near_one_and_shuffled_labels_do_not():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 30)
    embedding = rng.normal(size=(60, 3)) + 100 * (labels == "b")[:, None]
    scores = clustering_scores(embedding, labels)
    assert scores["knn_purity"] == 1
    assert scores["silhouette"] > 0.9
    assert clustering_scores(embedding, rng.permutation(labels))["silhouette"] < 0.2


def test_identical_cells_do_not_count_as_their_own_neighbours():
    labels = np.array(["a", "b"] * 10)
    assert clustering_scores(np.zeros((20, 2)), labels, n_neighbors=19)["knn_purity"] == pytest.approx(9 / 19)


def test_the_silhouette_of_many_cells_comes_from_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b"], 400)
    embedding = rng.normal(size=(400, 3)) + 2 * (labels == "b")[:, None]
    full = clustering_scores(embedding, labels)["silhouette"]
    monkeypatch.setattr("scfusion_fm.evaluation.metrics.clusters.MAX_SILHOUETTE_CELLS", 200)
    sampled = clustering_scores(embedding, labels)["silhouette"]
    assert sampled != full
    assert sampled == pytest.approx(full, abs=0.05)
    assert sampled == clustering_scores(embedding, labels)["silhouette"]


@pytest.mark.parametrize(
    ("embedding", "labels", "message"),
    [
        (np.zeros((3, 2)), ["a", "b"], r"one of `labels` per cell, got \(3, 2\) and \(2,\)"),
        (np.full((3, 2), np.nan), ["a", "a", "b"], "`embedding` must be finite"),
        (np.zeros((3, 2)), ["a", "a", "a"], "got 1 classes in 3 cells"),
        (np.zeros((3, 2)), ["a", "b", "c"], "got 3 classes in 3 cells"),
    ],
)
def test_an_embedding_that_cannot_be_scored_is_refused(embedding, labels, message):
    with pytest.raises(ValueError, match=message):
        clustering_scores(embedding, np.array(labels))
