import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from scfusion_fm.evaluation.metrics.probabilities import (
    auroc,
    expected_calibration_error,
    probability_scores,
    risk_coverage,
)

CLASSES = np.array(["B", "NK", "T"])


@pytest.fixture
def drawn():
    """Probabilities, and labels that are drawn from them."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], 4000)
    labels = CLASSES[(rng.random(4000)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1).clip(0, 2)]
    return probabilities, labels


def test_labels_drawn_from_the_probabilities_are_calibrated_and_sharpened_ones_are_not(drawn):
    probabilities, labels = drawn
    assert expected_calibration_error(probabilities, CLASSES, labels) < 0.03
    sharp = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)
    assert expected_calibration_error(sharp, CLASSES, labels) > 0.1


def test_calibration_error_with_one_bin_is_confidence_less_accuracy(drawn):
    probabilities, labels = drawn
    gap = probabilities.max(axis=1).mean() - (CLASSES[probabilities.argmax(axis=1)] == labels).mean()
    assert expected_calibration_error(probabilities, CLASSES, labels, n_bins=1) == pytest.approx(abs(gap))


def test_certain_and_right_is_perfect_and_certain_and_wrong_the_worst():
    labels = np.array(["B", "NK", "T", "T"])
    right = np.eye(3)[[0, 1, 2, 2]]
    scores = probability_scores(right, CLASSES, labels)
    assert scores == pytest.approx({"ece": 0, "auroc": 1, "aurc": 0, "brier": 0, "log_loss": 0})
    wrong = probability_scores(np.eye(3)[[1, 2, 0, 0]], CLASSES, labels)
    assert (wrong["ece"], wrong["aurc"], wrong["brier"]) == (1, 1, 2)
    assert wrong["auroc"] < 0.5


def test_scores_agree_with_scikit_learn(drawn):
    probabilities, labels = drawn
    scores = probability_scores(probabilities, CLASSES, labels)
    assert scores["auroc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert scores["log_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-4)


def test_neither_the_order_of_cells_nor_of_classes_matters(drawn):
    probabilities, labels = (array[:300] for array in drawn)
    order, columns = np.random.default_rng(1).permutation(300), [2, 0, 1]
    before = probability_scores(probabilities, CLASSES, labels)
    after = probability_scores(probabilities[order][:, columns], CLASSES[columns], labels[order])
    assert after == pytest.approx(before)


def test_types_that_no_column_has_are_wrong_at_any_probability():
    scores = probability_scores(np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), CLASSES, ["new", "NK"])
    assert scores["brier"] == pytest.approx((0.81 + 0.01 + 1 + 0.04 + 0.04) / 2)
    assert scores["log_loss"] == pytest.approx(-(np.log(1e-9) + np.log(0.8)) / 2)
    assert scores["auroc"] == 1
    assert np.isnan(auroc([[1.0]], ["B"], ["B"]))


def test_risk_ends_at_the_error_rate_and_equal_confidence_shares_errors(drawn):
    probabilities, labels = drawn
    curve = risk_coverage(probabilities, CLASSES, labels)
    error = (CLASSES[probabilities.argmax(axis=1)] != labels).mean()
    assert curve["risk"].iloc[-1] == pytest.approx(error)
    assert curve["risk"].iloc[500] < error / 2
    assert curve["coverage"].iloc[-1] == 1
    assert (np.diff(curve["threshold"]) <= 0).all()
    half = risk_coverage(np.tile([0.6, 0.4, 0.0], (4, 1)), CLASSES, ["NK", "NK", "B", "B"])
    np.testing.assert_allclose(half["risk"], 0.5)


def test_what_are_no_probabilities_is_refused():
    with pytest.raises(ValueError, match=r"`probabilities` must be \(cells, classes\), here \(2, 3\), .* got \(1, 3\)"):
        probability_scores(np.eye(3)[:1], CLASSES, ["B", "T"])
    with pytest.raises(ValueError, match="not empty"):
        probability_scores(np.zeros((0, 3)), CLASSES, [])
    with pytest.raises(ValueError, match="must be at least 0 and add up to 1 in every row, got -1 as the smallest"):
        probability_scores([[-1.0, 1.0, 1.0]], CLASSES, ["B"])
    with pytest.raises(ValueError, match="sums from 2 to 2; apply a softmax"):
        probability_scores([[1.0, 1.0, 0.0]], CLASSES, ["B"])
