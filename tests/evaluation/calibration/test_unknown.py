"""Unknown cell types: promised rates hold, scores see what they should, leaving a type out leaves nothing of it."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from scfusion_fm.evaluation.baselines.features import Features
from scfusion_fm.evaluation.calibration.unknown import (
    SCORES,
    CellOutputs,
    ClassGaussians,
    reject_thresholds,
    score_unknown,
)
from scfusion_fm.evaluation.protocol.open_set import BASELINE, OpenSetTask, choose_score, leave_types_out

TYPES = np.array(["a", "b", "c", "d"])
CENTRES = 6 * np.eye(4, 5)


def make_task(n=400, seed=0):
    rng = np.random.default_rng(seed)
    code = rng.integers(4, size=n)
    x = CENTRES[code] + rng.normal(size=(n, 5))
    split = rng.choice(["train", "val", "calibration", "test"], size=n, p=[0.4, 0.2, 0.2, 0.2])
    return OpenSetTask(Features(adt=x), TYPES[code], split, rate=0.1), x


def fit_on(task, x, seen=None):
    def fit(known):
        if seen is not None:
            seen.append(known)
        train = known & (task.split == "train")
        model = LogisticRegression(max_iter=200).fit(x[train], task.labels[train])
        return CellOutputs(model.decision_function(x), x)

    return fit


def test_known_cells_are_rejected_as_seldom_as_promised():
    rng = np.random.default_rng(0)
    for rate in (0.05, 0.2):
        shares = []
        for _ in range(400):
            threshold = reject_thresholds(rng.gamma(2, size=39), [rate])[0]
            shares.append((rng.gamma(2, size=50) > threshold).mean())
        assert rate - 0.03 < np.mean(shares) <= rate + 0.01
    # The same as a conformal p-value of at most the rate, ties included.
    known, new = np.round(rng.normal(size=59), 1), np.round(rng.normal(size=200), 1)
    p = (1 + (known >= new[:, None]).sum(1)) / 60
    assert np.array_equal(new > reject_thresholds(known, [0.1])[0], p <= 0.1)
    assert np.isinf(reject_thresholds(known[:8], [0.1])[0])
    assert np.isfinite(reject_thresholds(known[:9], [0.1])[0])


def test_scores_are_what_they_are_named_after():
    rng = np.random.default_rng(1)
    cells = CellOutputs(rng.normal(size=(6, 3)), rng.normal(size=(6, 4)))
    shares = np.exp(cells.logits) / np.exp(cells.logits).sum(1, keepdims=True)
    np.testing.assert_allclose(score_unknown("max_softmax", cells), 1 - shares.max(1))
    np.testing.assert_allclose(score_unknown("energy", cells), -np.log(np.exp(cells.logits).sum(1)))
    training, codes = rng.normal(size=(5000, 4)) * [1, 0.5, 2, 1], rng.integers(2, size=5000)
    gaussians = ClassGaussians.fit(training, codes)
    means = np.stack([training[codes == c].mean(0) for c in range(2)])
    inverse = np.linalg.inv(np.cov((training - means[codes]).T, bias=True))
    delta = cells.embedding[:, None] - means
    expected = np.einsum("nkd,de,nke->nk", delta, inverse, delta).min(1)
    np.testing.assert_allclose(score_unknown("mahalanobis", cells, gaussians), expected, rtol=0.1)
    far = np.linalg.norm(cells.embedding[:, None] - training, axis=2)
    expected = np.sort(far, 1)[:, :10].mean(1)
    np.testing.assert_allclose(score_unknown("knn", cells, training=training), expected)


def test_a_class_of_one_cell_and_a_constant_embedding_have_a_distance():
    gaussians = ClassGaussians.fit(np.ones((3, 4)), [0, 0, 1])
    assert np.isfinite(gaussians.distance(np.zeros((2, 4)))).all()
    np.testing.assert_allclose(gaussians.distance(np.ones((2, 4))), 0)


def test_types_left_out_are_told_from_known_ones_and_never_trained_on():
    task, x = make_task()
    seen = []
    table = leave_types_out(task, fit_on(task, x, seen))
    assert [sorted(set(task.labels[~known])) for known in seen] == [["a"], ["b"], ["c"], ["d"]]
    assert list(table["left_out"].unique()) == list(TYPES)
    own = table[table["method"] == "model"]
    assert set(own["score"]) == set(SCORES)
    assert (own.groupby("score")["auroc"].mean() > 0.8).all()
    assert (own[own["score"] == "mahalanobis"]["auroc"] > 0.99).all()
    assert (own[own["score"] == "mahalanobis"]["false_accept"] < 0.1).all()
    assert table["false_reject"].mean() < 0.2
    assert (table["n_unknown"] + table["n_known"] == (task.split == "test").sum()).all()
    baseline = table[table["method"] == BASELINE]
    assert len(baseline) == 4
    assert (baseline["auroc"] > 0.7).all()
    assert choose_score(table) == own.groupby("score")["auroc_val"].mean().reindex(SCORES).idxmax()


def test_test_cells_choose_nothing():
    table = pd.DataFrame({"method": "model", "score": list(SCORES), "auroc_val": [0.5, 0.9, 0.8, np.nan]})
    assert choose_score(table.assign(auroc=[1, 0, 0, 1])) == "energy"


def test_baseline_does_not_depend_on_the_cells_left_out():
    task, x = make_task()
    first = leave_types_out(task, fit_on(task, x), ["a"])
    moved = x.copy()
    moved[(task.labels == "a") & (task.split != "test")] *= 3
    second = leave_types_out(OpenSetTask(Features(adt=moved), task.labels, task.split, 0.1), fit_on(task, x), ["a"])
    columns = ["auroc", "false_accept", "false_reject"]
    pd.testing.assert_frame_equal(first[columns], second[columns])


def test_mistakes_are_refused():
    task, x = make_task(100)
    cells = CellOutputs(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"`unknown_score` must be one of \['max_softmax'.*got 'odin'"):
        score_unknown("odin", cells)
    for name in ("mahalanobis", "knn"):
        with pytest.raises(ValueError, match=f"`unknown_score` '{name}' needs the training cells"):
            score_unknown(name, cells)
    for rates in ([], [0], [1.0], [0.1, 2]):
        with pytest.raises(ValueError, match=r"`reject_rates` must lie in \(0, 1\), at least one"):
            reject_thresholds([1, 2], rates)
    for embedding, codes in ((np.zeros((3, 2)), [0, 1]), (np.zeros((1, 2)), [0])):
        with pytest.raises(ValueError, match="`codes` must give the class of each of at least 2 cells"):
            ClassGaussians.fit(embedding, codes)
    with pytest.raises(ValueError, match=r"`leave_out_types` must be cell types with test cells.*got \['z'\]"):
        leave_types_out(task, fit_on(task, x), ["z"])
    two = OpenSetTask(task.features, np.where(task.labels == "a", "a", "b"), task.split)
    with pytest.raises(ValueError, match="of at least three types"):
        leave_types_out(two, fit_on(two, x))
