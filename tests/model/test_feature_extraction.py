"""Normalisation and patches."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
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
    extractor.gene_symbols[3] = ""
    assert extractor.index_genes(["", ".1", "G3"]).tolist() == [-1, -1, -1]
    assert extractor.index_proteins(["CD19", "CD999"]).tolist() == [2, -1]


RNA = np.ones((2, 10))


class Polars:
    """A table without an index, as those of polars."""

    def __init__(self, columns):
        self.columns = columns

    def to_numpy(self):
        return np.arange(4).reshape(2, 2)


def test_a_table_without_names_of_cells_is_matched_too(extractor):
    found = extractor(rna_counts=Polars(["G1", "G0"]))
    assert same(found, extractor(rna_counts=table([[0, 1], [2, 3]], ["G1", "G0"])))


def table(values, names, cells=("a", "b")):
    return pd.DataFrame(values, index=list(cells), columns=names)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("names", ["gene_ids", "gene_symbols"])
def test_tables_are_matched_by_name_whatever_their_order(extractor, counts, names):
    ordered = extractor(rna_counts=counts[0], adt_counts=counts[1])
    cells = list("abcd")
    rna = table(counts[0], getattr(extractor, names), cells).iloc[:, np.random.default_rng(1).permutation(10)]
    rna.columns = [f"{name}.3" if name.startswith("ENSG") else name for name in rna.columns]
    adt = table(counts[1], extractor.protein_names, cells)[["CD19", "CD3", "CD4"]]
    assert same(ordered, extractor(rna_counts=rna, adt_counts=adt))
    assert same(ordered, extractor(rna_counts=rna, adt_counts=adt, rna_observed=np.ones(10, bool)))


def test_columns_decide_what_was_measured_and_all_of_them_the_library_size(extractor, counts):
    rna = table(counts[0][:, :4], extractor.gene_ids[:4], "abcd").assign(unknown=[5, 0, 2, 1])
    ordered = np.where(np.arange(10) < 4, counts[0], 0)
    totals = rna.sum(axis=1)
    expected = extractor(rna_counts=ordered, rna_observed=np.arange(10) < 4, rna_total_counts=totals)
    assert same(extractor(rna_counts=rna), expected)
    assert same(extractor(rna_counts=rna, rna_total_counts=totals), expected)
    adt = extractor(adt_counts=table(counts[1][:, 1:], ["CD4", "CD19"], "abcd"))
    assert not adt["adt_observed"][:, 0].any()


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_array, sp.coo_matrix, torch.tensor, np.int64, np.uint8])
def test_every_kind_of_matrix_gives_the_same(extractor, counts, form):
    assert same(extractor(rna_counts=form(counts[0])), extractor(rna_counts=counts[0]))


def test_what_was_checked_is_prepared_alike(extractor, counts):
    assert same(
        extractor(rna_counts=counts[0], adt_counts=counts[1]), extractor.prepare(counts[0], adt_counts=counts[1])
    )
    with pytest.raises(ValueError, match=r"`adt_counts` must hold finite, non-negative raw counts, got -1.0"):
        extractor.prepare(adt_counts=-np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"`rna_counts` must have the shape \(cells, 10\)"):
        extractor.prepare(np.ones((2, 9)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give at least one modality"),
        ({"rna_counts": np.ones((2, 9))}, r"`rna_counts` must have the shape \(cells, 10\)"),
        ({"rna_counts": np.ones(10)}, r"\(cells, 10\) of the vocabulary, got \(10,\).*one cell is a row"),
        ({"adt_counts": np.ones(3)}, r"`adt_counts` must have the shape \(cells, 3\)"),
        ({"rna_counts": ad.AnnData(RNA)}, "`rna_counts` must hold numbers, got AnnData.*to_df"),
        ({"rna_counts": RNA.astype(str)}, "`rna_counts` must hold numbers, got ndarray of dtype <U"),
        ({"rna_counts": RNA > 0}, "`rna_counts` must hold numbers, got ndarray of dtype bool"),
        ({"adt_counts": np.array([[1, -1, 2]])}, r"`adt_counts` must hold raw counts \(non-negative counts\), got -1"),
        ({"rna_counts": np.full((1, 10), np.nan)}, r"raw counts \(finite numbers\), got nan \(10 such entries\)"),
        ({"rna_counts": RNA * 0.5}, r"\(whole numbers\), got 0.5 \(20 such entries\). Give the raw counts, not normal"),
        ({"rna_counts": RNA * 2**25}, r"raw counts \(counts up to 16,777,216\), got 33554432"),
        ({"rna_counts": table(RNA, [f"X{i}" for i in range(10)])}, r"columns that the model knows, got \['X0', 'X1'"),
        ({"rna_counts": table(RNA, range(10))}, r"`rna_counts` must have columns that the model knows, got \['0', '1'"),
        (
            {"rna_counts": table(RNA[:, :2], ["G1", "ENSG00000000001"])},
            r"each feature once, got the columns \['G1', 'EN",
        ),
        ({"rna_counts": table(RNA[:, :2] / 2, ["G1", "unknown"])}, r"\(whole numbers\), got 0.5 \(4 such entries\)"),
        (
            {"rna_counts": RNA, "rna_observed": np.ones(9, bool)},
            r"`rna_observed` must have the shape \(2, 10\) or \(10,\)",
        ),
        (
            {"rna_counts": RNA, "rna_observed": np.ones(10)},
            "`rna_observed` must hold true and false, got dtype float64",
        ),
        ({"rna_counts": RNA, "rna_observed": pd.Series(RNA[0] > 0)}, "must be an array in the order of the vocabulary"),
        ({"rna_counts": RNA, "rna_total_counts": [10, 9]}, "at least the counts of the cell, got 9.0 for 10 "),
        ({"rna_counts": RNA, "rna_total_counts": [np.inf, 10]}, "`rna_total_counts` must be finite"),
        ({"rna_counts": RNA, "rna_total_counts": [[10, 10]]}, r"must have the shape \(2,\) of the cells, got \(1, 2\)"),
        ({"rna_counts": table(RNA[:, :2], ["G1", "CD19"])}, "must hold one modality, got columns of .* such as 'CD19'"),
        ({"rna_counts": Polars(["X1", "X0"])}, "must have columns that the model knows"),
        ({"rna_counts": RNA, "adt_counts": np.ones((3, 3))}, "must hold the same cells, got 2 and 3"),
        (
            {"rna_counts": table(RNA, [f"G{i}" for i in range(10)]), "adt_counts": table([[1], [1]], ["CD3"], "ba")},
            "`adt_counts` must have the same index as `rna_counts`",
        ),
        (
            {
                "rna_counts": table(RNA, [f"G{i}" for i in range(10)]),
                "rna_total_counts": pd.Series([10, 10], index=["b", "a"]),
            },
            "`rna_total_counts` must have the same index as `rna_counts`",
        ),
    ],
)
def test_wrong_counts_are_refused(extractor, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        extractor(**arguments)
    assert "\n" not in str(caught.value)


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
