"""Unknown cell types: promised rates hold, and scores see what they should."""

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.unknown import CellOutputs, ClassGaussians, reject_thresholds, score_unknown


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


def test_mistakes_are_refused():
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
