"""Scores of predicted cell types: against scikit-learn, and what counts as an error."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from scfusion_fm.evaluation.metrics.labels import annotation_scores, class_scores, confusion_table


@pytest.fixture
def labels():
    return np.random.default_rng(0).choice(["B", "NK", "T"], 60)


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
