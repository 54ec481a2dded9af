"""Clusterings and neighbours of an embedding, compared with cell types."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from scfusion_fm.evaluation.metrics.clusters import cluster_scores, clustering_scores, paper_protocol_scores


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(["a", "b", "c", "d"], 30))
    centres = 20 * np.eye(4)[np.unique(labels, return_inverse=True)[1]]
    return centres + rng.normal(size=(120, 4)), labels


def test_separate_types_are_found_at_their_number_and_split_or_merged_at_others(blobs):
    table = cluster_scores(*blobs).set_index(["method", "n_clusters"])
    assert set(table.index) == {(method, n) for method in ("k-means", "Ward") for n in (2, 4, 6, 8)}
    for method in ("k-means", "Ward"):
        assert table.loc[(method, 4), "ari"] == table.loc[(method, 4), "nmi"] == 1
        assert table.loc[(method, 4), "silhouette"] == pytest.approx(silhouette_score(*blobs))
        assert table.loc[(method, 4), "silhouette"] == table.loc[method, "silhouette"].max()
        assert table.loc[(method, 8), "ari"] < 1


def test_noise_agrees_with_nothing_and_order_does_not_matter(blobs):
    embedding, labels = np.random.default_rng(1).normal(size=(120, 4)), blobs[1]
    assert cluster_scores(embedding, labels)["ari"].abs().max() < 0.1
    order = np.random.default_rng(2).permutation(120)
    first, second = (cluster_scores(e, y, [1.0]) for e, y in ((blobs[0], labels), (blobs[0][order], labels[order])))
    np.testing.assert_allclose(first[["ari", "nmi", "silhouette"]], second[["ari", "nmi", "silhouette"]])


def test_identical_cells_have_no_silhouette(blobs):
    with pytest.warns(UserWarning, match="distinct clusters"):
        table = cluster_scores(np.zeros((120, 2)), blobs[1], [0.5])
    assert table.loc[table["method"] == "k-means", "silhouette"].isna().all()


def test_many_cells_are_sampled(blobs, monkeypatch):
    monkeypatch.setattr("scfusion_fm.evaluation.metrics.clusters.MAX_CLUSTERED_CELLS", 60)
    table = cluster_scores(*blobs, [1.0])
    assert table["ari"].tolist() == [1, 1]
    assert table["silhouette"].iloc[0] != pytest.approx(silhouette_score(*blobs), abs=1e-9)


def test_indices_on_a_umap_flatter_an_embedding_that_separates_little(blobs):
    rng = np.random.default_rng(3)
    labels = blobs[1]
    embedding = blobs[0] / 4 + rng.normal(size=(120, 4))
    scores = paper_protocol_scores(embedding, labels)
    assert scores["umap_silhouette"] > scores["full_silhouette"]
    assert scores["full_silhouette"] == pytest.approx(silhouette_score(embedding, labels))
    assert scores["ari"] == pytest.approx(cluster_scores(embedding, labels, [1.0])["ari"].iloc[0])
    assert set(scores) == {"ari", "nmi"} | {
        f"{space}_{index}"
        for space in ("umap", "full")
        for index in ("silhouette", "calinski_harabasz", "davies_bouldin")
    }


def test_labels_that_do_not_repeat_are_refused(blobs):
    with pytest.raises(ValueError, match="`labels` must repeat, got 120 labels in 120 cells"):
        paper_protocol_scores(blobs[0], np.arange(120))


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
