import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from scfusion_fm.evaluation.metrics.integration import (
    batch_asw,
    batch_entropy,
    clisi,
    graph_connectivity,
    ilisi,
    integration_scores,
    label_asw,
    lisi,
    weigh_to_perplexity,
)

N = 240
MIXING = ("batch_asw", "ilisi", "batch_entropy")
KEEPING = ("label_asw", "clisi", "graph_connectivity")


@pytest.fixture
def groups():
    rng = np.random.default_rng(0)
    return rng.permutation(np.repeat(["b1", "b2"], N // 2)), rng.permutation(np.repeat(["x", "y", "z"], N // 3))


def place(batch, labels, batch_gap=0.0, label_gap=0.0):
    rng = np.random.default_rng(1)
    gaps = label_gap * np.unique(labels, return_inverse=True)[1], batch_gap * np.unique(batch, return_inverse=True)[1]
    return np.column_stack([*gaps, np.zeros((N, 2))]) + rng.normal(size=(N, 4))


def test_scores_reach_their_ends_where_they_should(groups):
    good = integration_scores(place(*groups, label_gap=60), *groups)
    bad = integration_scores(place(*groups, batch_gap=300), *groups)
    for name in MIXING:
        assert good[name] > 0.85, name
        assert bad[name] < 0.05, name
    assert good["label_asw"] > 0.95
    assert good["clisi"] > 0.99
    assert good["graph_connectivity"] == 1
    assert bad["label_asw"] < 0.55
    assert bad["clisi"] < 0.2
    assert set(good) == {*MIXING, *KEEPING}
    assert all(0 <= value <= 1 for value in (*good.values(), *bad.values()))


def test_neither_the_order_of_cells_nor_names_nor_moving_the_embedding_matter(groups):
    batch, labels = groups
    embedding = place(batch, labels, 1.0, 2.0)
    before = integration_scores(embedding, batch, labels)
    order = np.random.default_rng(2).permutation(N)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))[0]
    after = integration_scores(3 * embedding[order] @ rotation + 7, np.char.add("q", batch[order]), labels[order])
    assert after == pytest.approx(before, abs=1e-6)


def test_batch_asw_is_the_mean_over_types_of_the_mean_over_cells(groups):
    batch, labels = groups
    embedding = place(batch, labels, 2.0)
    expected = [
        1 - np.abs(silhouette_samples(embedding[labels == name], batch[labels == name])).mean() for name in "xyz"
    ]
    assert batch_asw(embedding, batch, labels) == pytest.approx(np.mean(expected))
    only_one = np.where(labels == "z", "b1", batch)
    assert batch_asw(embedding, only_one, labels) == pytest.approx(np.mean(expected[:2]))
    assert np.isnan(batch_asw(embedding, np.where(labels == "x", "b1", "b2"), labels))


def test_lisi_counts_groups_with_the_weights_of_the_neighbours(groups):
    batch, labels = groups
    embedding = place(batch, labels, 1.0)
    cell = 17
    distances = np.linalg.norm(embedding - embedding[cell], axis=1)
    nearest = np.argsort(distances)[1:91]
    weights = weigh_to_perplexity(distances[nearest][None], 30)[0]
    shares = [weights[batch[nearest] == name].sum() for name in ("b1", "b2")]
    assert lisi(embedding, batch)[cell] == pytest.approx(1 / np.square(shares).sum())
    values = lisi(embedding, batch)
    assert (values >= 1).all()
    assert (values <= 2).all()
    assert ilisi(embedding, batch) == pytest.approx(np.median(values) - 1)
    assert clisi(embedding, labels) == pytest.approx((3 - np.median(lisi(embedding, labels))) / 2)


def test_weights_have_the_perplexity_and_fall_with_distance():
    distances = np.sort(np.random.default_rng(0).gamma(2, size=(20, 90)), axis=1) * np.logspace(-3, 3, 20)[:, None]
    weights = weigh_to_perplexity(distances, 30)
    np.testing.assert_allclose(np.exp(-(weights * np.log(weights)).sum(axis=1)), 30, rtol=1e-4)
    assert (np.diff(weights, axis=1) <= 0).all()
    np.testing.assert_allclose(weigh_to_perplexity(np.zeros((2, 9)), 3), 1 / 9)


def test_unequal_batches_that_are_mixed_have_full_entropy():
    rng = np.random.default_rng(0)
    embedding, batch = rng.normal(size=(600, 3)), np.where(np.arange(600) % 6 == 0, "small", "large")
    assert batch_entropy(embedding, batch) > 0.9
    assert batch_entropy(embedding, np.where(embedding[:, 0] > 0, "a", "b")) < 0.5


def test_a_type_in_two_far_pieces_is_half_connected():
    embedding = np.random.default_rng(0).normal(size=(120, 2))
    labels = np.repeat(["whole", "split"], 60)
    embedding[:60] += 1000
    embedding[60:90] -= 1000
    assert graph_connectivity(embedding, labels) == pytest.approx((1 + 0.5) / 2)


def test_silhouettes_of_many_cells_come_from_a_sample(groups, monkeypatch):
    embedding = place(*groups, 1.0, 2.0)
    full = integration_scores(embedding, *groups)
    monkeypatch.setattr("scfusion_fm.evaluation.metrics.integration.MAX_SILHOUETTE_CELLS", 150)
    sampled = integration_scores(embedding, *groups)
    assert sampled["label_asw"] != full["label_asw"]
    assert sampled["label_asw"] == pytest.approx(full["label_asw"], abs=0.05)
    assert sampled["ilisi"] == full["ilisi"]
    assert sampled == integration_scores(embedding, *groups)


def test_few_cells_do_not_break_the_scores():
    embedding = np.arange(10.0).reshape(5, 2)
    scores = integration_scores(embedding, ["a", "b", "a", "b", "a"], ["x", "x", "y", "y", "y"])
    assert all(0 <= value <= 1 for value in scores.values())
    assert np.isnan(label_asw(embedding, list("abcde")))


@pytest.mark.parametrize(
    ("embedding", "batch", "message"),
    [
        (np.zeros((3, 2)), ["a", "b"], r"one entry of `batch` per cell, got \(3, 2\) and \(2,\)"),
        (np.full((3, 2), np.nan), ["a", "a", "b"], "`embedding` must be finite"),
        (np.zeros((3, 2)), ["a", "a", "a"], r"`batch` must hold at least two groups, got \['a'\]"),
    ],
)
def test_an_embedding_that_cannot_be_scored_is_refused(embedding, batch, message):
    with pytest.raises(ValueError, match=message):
        integration_scores(embedding, batch, ["x", "y", "x"])
