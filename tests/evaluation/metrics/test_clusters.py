"""Clusterings and neighbours of an embedding, compared with cell types."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from scfusion_fm.evaluation.metrics.clusters import cluster_scores, paper_protocol_scores, separation_scores


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(["a", "b", "c", "d"], 30))
    centres = 20 * np.eye(4)[np.unique(labels, return_inverse=True)[1]]
    return centres + rng.normal(size=(120, 4)), labels


def test_separate_types_are_found_and_noise_agrees_with_nothing(blobs):
    assert cluster_scores(*blobs) == {"ari": 1, "nmi": 1, "ari_ward": 1}
    scores = cluster_scores(np.random.default_rng(1).normal(size=(120, 4)), blobs[1])
    assert max(abs(scores["ari"]), abs(scores["ari_ward"])) < 0.1


@pytest.fixture
def mixed(blobs):
    """Blobs of which every fifth cell is labelled as any type."""
    rng = np.random.default_rng(2)
    return blobs[0], np.where(rng.random(120) < 0.2, rng.choice(["a", "b", "c", "d"], 120), blobs[1])


def test_the_order_of_cells_does_not_matter(mixed):
    embedding, labels = mixed
    order = np.random.default_rng(2).permutation(120)
    first, second = (cluster_scores(e, y) for e, y in ((embedding, labels), (embedding[order], labels[order])))
    assert first == pytest.approx(second)
    assert 0.5 < first["ari"] < 1


def test_many_cells_are_sampled(mixed, monkeypatch):
    whole = cluster_scores(*mixed)
    monkeypatch.setattr("scfusion_fm.evaluation.metrics.clusters.MAX_CLUSTERED_CELLS", 60)
    assert cluster_scores(*mixed) == cluster_scores(*mixed) != whole
    assert cluster_scores(*mixed, seed=1) != cluster_scores(*mixed)


def test_indices_on_a_umap_flatter_an_embedding_that_separates_little(blobs):
    rng = np.random.default_rng(3)
    labels = blobs[1]
    embedding = blobs[0] / 4 + rng.normal(size=(120, 4))
    scores = paper_protocol_scores(embedding, labels)
    assert scores["umap_silhouette"] > scores["full_silhouette"]
    assert scores["full_silhouette"] == pytest.approx(silhouette_score(embedding, labels))
    assert scores["ari"] == pytest.approx(cluster_scores(embedding, labels)["ari"])
    assert set(scores) == {"ari", "nmi"} | {
        f"{space}_{index}"
        for space in ("umap", "full")
        for index in ("silhouette", "calinski_harabasz", "davies_bouldin")
    }


def test_labels_that_do_not_repeat_are_refused(blobs):
    with pytest.raises(ValueError, match="`labels` must repeat, got 120 labels in 120 cells"):
        paper_protocol_scores(blobs[0], np.arange(120))


def test_separation_scores_agree_with_sklearn_and_a_plain_neighbour_count():
    rng = np.random.default_rng(0)
    embedding, labels = rng.normal(size=(50, 4)), rng.choice(["a", "b"], 50)
    scores = separation_scores(embedding, labels, n_neighbors=7)
    assert scores["silhouette"] == pytest.approx(silhouette_score(embedding, labels))
    distances = np.linalg.norm(embedding[:, None] - embedding, axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1:8]
    assert scores["knn_purity"] == pytest.approx((labels[nearest] == labels[:, None]).mean())


def test_separate_groups_score_near_one_and_shuffled_labels_do_not():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 30)
    embedding = rng.normal(size=(60, 3)) + 100 * (labels == "b")[:, None]
    scores = separation_scores(embedding, labels)
    assert scores["knn_purity"] == 1
    assert scores["silhouette"] > 0.9
    assert separation_scores(embedding, rng.permutation(labels))["silhouette"] < 0.2


def test_identical_cells_do_not_count_as_their_own_neighbours():
    labels = np.array(["a", "b"] * 10)
    assert separation_scores(np.zeros((20, 2)), labels, n_neighbors=19)["knn_purity"] == pytest.approx(9 / 19)


def test_the_silhouette_of_many_cells_comes_from_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b"], 400)
    embedding = rng.normal(size=(400, 3)) + 2 * (labels == "b")[:, None]
    full = separation_scores(embedding, labels)["silhouette"]
    monkeypatch.setattr("scfusion_fm.evaluation.metrics.clusters.MAX_SILHOUETTE_CELLS", 200)
    sampled = separation_scores(embedding, labels)["silhouette"]
    assert sampled != full
    assert sampled == pytest.approx(full, abs=0.05)
    assert sampled == separation_scores(embedding, labels)["silhouette"]


@pytest.mark.parametrize(
    ("embedding", "labels", "message"),
    [
        (np.zeros((3, 2)), ["a", "b"], r"one entry of `labels` per cell, got \(3, 2\) and \(2,\)"),
        (np.full((3, 2), np.nan), ["a", "a", "b"], "`embedding` must be finite"),
        (np.zeros((3, 2)), ["a", "a", "a"], r"at least two groups, got \['a'\]"),
        (np.zeros((3, 2)), ["a", "b", "c"], "`labels` must repeat, got 3 labels in 3 cells"),
    ],
)
def test_an_embedding_that_cannot_be_scored_is_refused(embedding, labels, message):
    with pytest.raises(ValueError, match=message):
        separation_scores(embedding, np.array(labels))
