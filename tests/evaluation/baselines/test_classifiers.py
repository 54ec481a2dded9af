import numpy as np
import pytest
from scipy import sparse
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from scfusion_fm.evaluation.baselines.classifiers import Features, annotate_baselines, tune_classifier
from scfusion_fm.evaluation.baselines.features import build_inputs, project_rna, standardise_proteins
from scfusion_fm.evaluation.baselines.regressors import Targets, fit_neighbours, fit_ridges, predict_protein_baselines
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.metrics.proteins import protein_scores

N, G, P = 240, 40, 5
METHODS = ("majority", "PCA + logistic regression", "PCA + kNN")
INPUTS = ("rna", "adt", "rna+adt")


@pytest.fixture
def split():
    return np.array(["train", "train", "train", "val", "test"] * (N // 5))


@pytest.fixture
def labels():
    return np.random.default_rng(0).choice(["B", "NK", "T"], N, p=[0.3, 0.2, 0.5])


@pytest.fixture
def planted(labels):
    """Expression and protein that both tell the types apart."""
    rng = np.random.default_rng(1)
    codes = np.unique(labels, return_inverse=True)[1]
    rna = rng.normal(size=(N, G)) + 4 * rng.normal(size=(3, G))[codes]
    adt = rng.normal(size=(N, P)) + 4 * rng.normal(size=(3, P))[codes]
    return rna.astype(np.float32), adt.astype(np.float32)


@pytest.fixture
def noise():
    rng = np.random.default_rng(2)
    return rng.normal(size=(N, G)).astype(np.float32), rng.normal(size=(N, P)).astype(np.float32)


def score(predictions, labels, split):
    truth = labels[split == "test"]
    return {key: annotation_scores(truth, predicted) for key, predicted in predictions.items()}


def predict_proteins(rna, adt, split, observed=None, own=(0, 1, 2, 3, None)):
    observed = np.ones(adt.shape[1], bool) if observed is None else observed
    return predict_protein_baselines(rna, adt, observed, list(own), split)


def test_every_method_sees_every_input_and_finds_a_planted_signal(planted, labels, split):
    scores = score(annotate_baselines(Features(*planted), labels, split), labels, split)
    assert set(scores) == {(method, inputs) for method in METHODS for inputs in INPUTS}
    for (method, _), values in scores.items():
        assert (values["macro_f1"] > 0.9) == (method != "majority")


def test_pure_noise_is_no_better_than_guessing(noise, labels, split):
    scores = score(annotate_baselines(Features(*noise), labels, split), labels, split)
    for values in scores.values():
        assert values["balanced_accuracy"] < 1 / 3 + 0.2


def test_majority_predicts_the_most_frequent_type_of_the_training_cells(noise, labels, split):
    labels = labels.copy()
    labels[split != "train"] = "B"
    names, counts = np.unique(labels[split == "train"], return_counts=True)
    predicted = annotate_baselines(Features(*noise), labels, split)["majority", "rna"]
    assert set(predicted) == {names[counts.argmax()]}


@pytest.mark.parametrize("given", [("rna",), ("adt",)])
def test_only_the_inputs_that_are_there_are_used(planted, labels, split, given):
    rna, adt = planted
    features = Features(rna=rna if "rna" in given else None, adt=adt if "adt" in given else None)
    assert {inputs for _, inputs in annotate_baselines(features, labels, split)} == set(given)


def test_sparse_and_dense_expression_give_the_same_predictions(planted, labels, split):
    rna = np.where(planted[0] > 0, planted[0], 0)
    dense = annotate_baselines(Features(rna), labels, split)
    for matrix in (sparse.csr_matrix(rna), sparse.csr_array(rna)):
        for key, predicted in annotate_baselines(Features(matrix), labels, split).items():
            np.testing.assert_array_equal(predicted, dense[key])


def test_labels_of_test_cells_are_never_read(noise, labels, split):
    before = annotate_baselines(Features(*noise), labels, split)
    after = annotate_baselines(Features(*noise), np.where(split == "test", "?", labels), split)
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])


def test_a_test_cell_has_no_say_in_the_predictions_of_others(noise, labels, split):
    rna, adt = (array.copy() for array in noise)
    before = annotate_baselines(Features(rna, adt), labels, split)
    changed = np.flatnonzero(split == "test")[:20]
    rna[changed], adt[changed] = 50.0, -50.0
    after = annotate_baselines(Features(rna, adt), labels, split)
    for key in before:
        np.testing.assert_array_equal(before[key][20:], after[key][20:])


def test_validation_cells_choose_but_do_not_fit(noise, split):
    train = split == "train"
    changed = [np.where(train[:, None], array, 9.0) for array in noise]
    for before, after in zip(
        build_inputs(Features(*noise), split).values(),
        build_inputs(Features(*changed), split).values(),
        strict=True,
    ):
        np.testing.assert_allclose(before[train], after[train], atol=1e-6)


def test_components_are_the_training_cells_singular_vectors(planted, split):
    rna, train = planted[0].astype(np.float64), split == "train"
    projected = project_rna(rna, train)
    centred = rna - rna[train].mean(axis=0)
    vectors = np.linalg.svd(centred[train], full_matrices=False)[2][: projected.shape[1]]
    np.testing.assert_allclose(np.abs(projected), np.abs(centred @ vectors.T), atol=1e-6)


def test_missing_and_constant_proteins_are_standardised_to_zero(noise, split):
    adt, train = noise[1].copy(), split == "train"
    adt[::3, 0], adt[:, 1], adt[:, 2] = np.nan, 7.0, np.nan
    scaled = standardise_proteins(adt, train)
    assert (scaled[::3, 0] == 0).all()
    assert (scaled[:, 1:3] == 0).all()
    np.testing.assert_allclose(scaled[train, 3].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(scaled[train, 3].std(), 1, atol=1e-6)
    np.testing.assert_allclose(np.std(scaled[train & ~np.isnan(adt[:, 0]), 0]), 1, atol=1e-6)


def test_annotation_refuses_what_it_cannot_use(planted, labels, split):
    rna, adt = planted
    with pytest.raises(ValueError, match="`features` must hold at least one modality"):
        annotate_baselines(Features(), labels, split)
    with pytest.raises(ValueError, match=r"`split` must hold 'train', 'val' and 'test' .* got \['test', 'train'\]"):
        annotate_baselines(Features(rna), labels, np.where(split == "val", "train", split))
    with pytest.raises(ValueError, match=r"`split` must have one row per cell \(240\), got 239"):
        annotate_baselines(Features(rna), labels, split[1:])
    with pytest.raises(ValueError, match=r"`features.rna` must have one row per cell \(240\), got 239"):
        annotate_baselines(Features(rna[1:]), labels, split)
    with pytest.raises(ValueError, match=r"at least two cell types in the training cells, got \['B'\]"):
        annotate_baselines(Features(rna), np.where(split == "train", "B", labels), split)
    with pytest.raises(ValueError, match="`rna` must be finite"):
        annotate_baselines(Features(np.where(rna > 2, np.nan, rna)), labels, split)
    with pytest.raises(ValueError, match="`adt` must hold no infinity"):
        annotate_baselines(Features(adt=np.where(adt > 2, np.inf, adt)), labels, split)
    with pytest.raises(ValueError, match="`rna` must have at least two training cells and two genes, got 144 and 1"):
        annotate_baselines(Features(rna[:, :1]), labels, split)


def test_protein_baselines_find_a_planted_signal(planted, split):
    rna, adt = planted
    truth = adt[split == "test"]
    for method, predicted in predict_proteins(rna, adt, split).items():
        pearson = protein_scores(truth, predicted, np.ones_like(truth, bool))[1]["pearson_per_protein"]
        assert predicted.shape == truth.shape
        if method == "mean":
            assert pearson == 0
        if method.startswith("PCA"):
            assert pearson > 0.7


def test_protein_baselines_of_noise_correlate_with_nothing(noise, split):
    rna, adt = noise
    truth = adt[split == "test"]
    for predicted in predict_proteins(rna, adt, split).values():
        assert abs(protein_scores(truth, predicted, np.ones_like(truth, bool))[1]["pearson_per_protein"]) < 0.25


def test_own_gene_is_the_least_squares_line_and_the_mean_without_a_gene(planted, split):
    rna, adt = planted
    train, test = split == "train", split == "test"
    predictions = predict_proteins(rna, adt, split, own=(7, 0, 1, 2, None))
    line = LinearRegression().fit(rna[train][:, [7]], adt[train, 0])
    np.testing.assert_allclose(predictions["own gene RNA"][:, 0], line.predict(rna[test][:, [7]]), rtol=1e-4)
    np.testing.assert_allclose(predictions["own gene RNA"][:, 4], adt[train, 4].mean(), rtol=1e-5)


def test_a_gene_that_does_not_vary_predicts_the_mean(planted, split):
    rna, adt = planted[0].copy(), planted[1]
    rna[split == "train", 0] = 0
    predictions = predict_proteins(sparse.csr_matrix(rna), adt, split)
    np.testing.assert_array_equal(predictions["own gene RNA"][:, 0], predictions["mean"][:, 0])


def test_unobserved_values_enter_no_fit(planted, split):
    rna, adt = planted
    observed = np.random.default_rng(3).random(adt.shape) > 0.4
    before = predict_proteins(rna, np.where(observed, adt, np.nan), split, observed)
    after = predict_proteins(rna, np.where(observed, adt, 1e6), split, observed)
    for method in before:
        np.testing.assert_allclose(before[method], after[method])
        assert np.isfinite(before[method]).all()


def test_test_cells_proteins_are_never_read(planted, split):
    rna, adt = planted
    before = predict_proteins(rna, adt, split)
    after = predict_proteins(rna, np.where((split == "test")[:, None], np.nan, adt), split)
    for method in before:
        np.testing.assert_array_equal(before[method], after[method])


def test_a_test_cells_expression_has_no_say_in_the_predictions_of_others(planted, split):
    rna, adt = planted[0].copy(), planted[1]
    before = predict_proteins(rna, adt, split)
    rna[np.flatnonzero(split == "test")[:20]] = 50.0
    for method, predicted in predict_proteins(rna, adt, split).items():
        np.testing.assert_allclose(predicted[20:], before[method][20:], atol=1e-10)


def test_a_panel_for_all_cells_means_the_same_as_its_mask(planted, split):
    rna, adt = planted
    panel = np.array([True, False, True, True, True])
    by_panel = predict_proteins(rna, adt, split, panel)
    by_mask = predict_proteins(rna, adt, split, np.tile(panel, (N, 1)))
    for method in by_panel:
        np.testing.assert_array_equal(by_panel[method], by_mask[method])


def test_a_protein_that_no_training_cell_has_gets_the_mean_of_all_training_values(planted, split):
    rna, adt = planted
    observed = np.ones_like(adt, bool)
    observed[split == "train", 1] = False
    mean = adt[split == "train"][:, [0, 2, 3, 4]].mean()
    for predicted in predict_proteins(rna, adt, split, observed).values():
        np.testing.assert_allclose(predicted[:, 1], mean, rtol=1e-4)


def test_ridges_agree_with_one_fit_per_protein(noise):
    rng = np.random.default_rng(0)
    x, adt = noise[0][:, :8].astype(np.float64), noise[1].astype(np.float64)
    observed = rng.random(adt.shape) > 0.3
    observed[:, 1] = observed[:, 0]
    for name, predict in fit_ridges(x, Targets.from_training(adt, observed)):
        alpha = float(name.removeprefix("alpha="))
        for protein, cells in enumerate(observed.T):
            reference = Ridge(alpha=alpha).fit(x[cells], adt[cells, protein]).predict(x)
            np.testing.assert_allclose(predict(x)[:, protein], reference, atol=1e-8)


def test_neighbours_average_the_nearest_cells_in_which_the_protein_was_observed(noise):
    x, adt = noise[0][:100, :4].astype(np.float64), noise[1][:100].astype(np.float64)
    observed = np.random.default_rng(0).random(adt.shape) > 0.3
    query = noise[0][100:105, :4].astype(np.float64)
    nearest = np.argsort(np.linalg.norm(query[:, None] - x, axis=2), axis=1)
    means = np.ma.MaskedArray(adt, ~observed).mean(axis=0)
    for name, predict in fit_neighbours(x, Targets.from_training(adt, observed)):
        for cell, order in enumerate(nearest[:, : int(name.removeprefix("k="))]):
            for protein in range(P):
                values = adt[order[observed[order, protein]], protein]
                expected = values.mean() if len(values) else means[protein]
                assert predict(query)[cell, protein] == pytest.approx(expected)


def test_the_classifier_is_chosen_by_macro_f1_on_validation_and_the_first_of_equals_wins(planted, labels, split):
    rna, train, val = planted[0], split == "train", split == "val"
    candidates = [
        DummyClassifier(strategy="most_frequent"),
        KNeighborsClassifier(n_neighbors=3),
        KNeighborsClassifier(n_neighbors=3),
    ]
    chosen = tune_classifier(candidates, rna[train], labels[train], rna[val], labels[val])
    assert chosen is candidates[1]
    assert (chosen.predict(rna[train]) == labels[train]).mean() > 0.9


def test_tuning_prefers_what_predicts_the_validation_cells(noise):
    adt = noise[1].astype(np.float64)
    targets = Targets.from_training(adt, np.ones_like(adt, bool))
    candidates = [("zeros", np.zeros_like), ("truth", np.copy), ("late truth", np.positive)]
    assert targets.tune(candidates, adt, adt, np.ones_like(adt, bool)) is np.copy


def test_protein_baselines_refuse_what_they_cannot_use(planted, split):
    rna, adt = planted
    with pytest.raises(ValueError, match=r"`rna` must have one row per cell \(240\), got 239"):
        predict_proteins(rna[1:], adt, split)
    with pytest.raises(ValueError, match="`own_gene_columns` must have one entry per protein, got 2 for 5"):
        predict_proteins(rna, adt, split, own=(0, 1))
    with pytest.raises(ValueError, match=r"`adt_observed` must be bool of shape \(240, 5\) or \(5,\), got float64"):
        predict_proteins(rna, adt, split, np.ones(5))
    with pytest.raises(ValueError, match=r"`adt_observed` must be bool .* of shape \(4,\)"):
        predict_proteins(rna, adt, split, np.ones(4, bool))
    with pytest.raises(ValueError, match="`adt_observed` must hold a measured value in the training cells, got none"):
        predict_proteins(rna, adt, split, np.zeros(5, bool))
    with pytest.raises(ValueError, match="`adt` must be finite wherever `adt_observed` is true, got 192 values"):
        predict_proteins(rna, np.where(np.arange(5) == 1, np.nan, adt), split)
