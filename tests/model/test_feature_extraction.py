"""Normalisation and patches."""

import numpy as np
import pytest
import torch

from scfusion_fm import ScFusionTTTFeatureExtractor


@pytest.fixture
def extractor():
    genes = [f"ENSG{i:011d}" for i in range(10)]
    chromosomes = ["1"] * 5 + ["2"] * 1 + ["X"] * 4
    return ScFusionTTTFeatureExtractor(
        genes, [f"G{i}" for i in range(10)], chromosomes, ["CD3", "CD4", "CD19"], genes[:3], patch_size=3
    )


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return rng.poisson(3.0, (4, 10)) + 1, rng.poisson(30.0, (4, 3)) + 1


def test_patches_never_cross_a_chromosome(extractor):
    assert extractor.patch_genes().tolist() == [[0, 1, 2], [3, 4, 10], [5, 10, 10], [6, 7, 8], [9, 10, 10]]
    assert extractor.num_rna_tokens == 5


def test_patching_can_be_undone(extractor, counts):
    inputs = extractor(rna_counts=counts[0])
    assert inputs["rna_values"].shape == (4, 5, 3)
    expected = np.log1p(counts[0] / counts[0].sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(extractor.merge_patches(inputs["rna_values"]), expected, rtol=1e-6)
    assert inputs["rna_observed"].sum() == 40  # the empty places of patches are not observed


def test_library_size_is_that_of_the_whole_experiment(extractor, counts):
    totals = counts[0].sum(1) * 2.0
    values = extractor.merge_patches(extractor(rna_counts=counts[0], rna_total_counts=totals)["rna_values"])
    np.testing.assert_allclose(np.expm1(values).sum(1), 5000.0, rtol=1e-5)


def test_centred_log_ratio_is_over_observed_proteins(extractor, counts):
    observed = np.array([True, False, True])
    values = extractor(adt_counts=counts[1], adt_observed=observed)["adt_values"].numpy()
    logs = np.log1p(counts[1][:, observed])
    np.testing.assert_allclose(values[:, observed], logs - logs.mean(1, keepdims=True), rtol=1e-5, atol=1e-6)
    assert (values[:, 1] == 0).all()
    np.testing.assert_allclose(values[:, observed].sum(1), 0, atol=1e-5)


def test_what_was_not_observed_may_hold_anything(extractor, counts):
    adt = counts[1].astype(float)
    adt[:, 1] = np.nan
    observed = np.array([True, False, True])
    a = extractor(adt_counts=adt, adt_observed=observed)["adt_values"]
    assert torch.equal(a, extractor(adt_counts=counts[1], adt_observed=observed)["adt_values"])


def test_cell_without_counts_is_not_measured(extractor, counts):
    rna, adt = counts[0].copy(), counts[1].copy()
    rna[1], adt[2] = 0, 0
    inputs = extractor(rna_counts=rna, adt_counts=adt)
    assert inputs["rna_observed"].flatten(1).any(1).tolist() == [True, False, True, True]
    assert inputs["adt_observed"].any(1).tolist() == [True, True, False, True]
    assert all(x.isfinite().all() for x in (inputs["rna_values"], inputs["adt_values"]))


def test_features_are_found_by_name(extractor):
    assert extractor.index_genes(["G3", "ENSG00000000004.7", "nope"]).tolist() == [3, 4, -1]
    assert extractor.index_proteins(["CD19", "CD999"]).tolist() == [2, -1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give at least one modality"),
        ({"rna_counts": np.ones((2, 9))}, r"`rna_counts` must have the shape \(cells, 10\)"),
        ({"adt_counts": np.ones(3)}, r"`adt_counts` must have the shape \(cells, 3\)"),
        ({"adt_counts": np.array([[1, -1, 2]])}, "`adt_counts` must hold finite, non-negative raw counts, got -1.0"),
        ({"rna_counts": np.full((1, 10), np.nan)}, "`rna_counts` must hold finite"),
    ],
)
def test_wrong_counts_are_refused(extractor, arguments, message):
    with pytest.raises(ValueError, match=message):
        extractor(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gene_ids": ["a"]}, "`gene_ids`, `gene_symbols` and `gene_chromosomes` must be equally long"),
        ({"protein_names": ["a"]}, "`protein_names` and `protein_gene_ids` must be equally long"),
        ({"patch_size": 0}, "`patch_size` must be at least 1"),
        ({"target_sum": 0}, "`target_sum` positive"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScFusionTTTFeatureExtractor(**arguments)
