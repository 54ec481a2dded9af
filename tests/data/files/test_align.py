import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from make_files import ANTIBODIES, GENES, NUM_CELLS, make_cells

from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.data.vocabulary.resolve import resolve_genes
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary, build_vocabulary

DEMO_FILE = Path(__file__).parents[3] / "data" / "demo_teaseq_pbmc.h5mu"
VOCABULARY = build_vocabulary([make_cells(genes=[*GENES, "MS4A1", "CD8A"], antibodies=[*ANTIBODIES, "CD19"])])


def column(aligned: AlignedCells, vocabulary: Vocabulary, symbol: str) -> np.ndarray:
    return aligned.rna[:, vocabulary.gene_symbols.index(symbol)].toarray().ravel()


def test_counts_stand_where_the_vocabulary_says():
    cells = make_cells(genes=GENES, antibodies=ANTIBODIES)
    aligned = align_cells(cells, VOCABULARY)
    for i, symbol in enumerate(GENES):
        np.testing.assert_array_equal(column(aligned, VOCABULARY, symbol), cells.rna.counts[:, [i]].toarray().ravel())
    for i, name in enumerate(ANTIBODIES):
        if name != "IgG1":
            expected = cells.adt.counts[:, [i]].toarray().ravel()
            np.testing.assert_array_equal(aligned.adt[:, VOCABULARY.protein_names.index(name)], expected)
    np.testing.assert_array_equal(aligned.rna_total_counts, cells.rna.counts.toarray().sum(1))
    assert aligned.obs is cells.obs


def test_what_the_file_does_not_measure_is_marked():
    aligned = align_cells(make_cells(genes=GENES, antibodies=ANTIBODIES), VOCABULARY)
    unseen = [s for s, seen in zip(VOCABULARY.gene_symbols, aligned.rna_observed, strict=True) if not seen]
    assert unseen == ["CD8A", "MS4A1"]
    assert [p for p, seen in zip(VOCABULARY.protein_names, aligned.adt_observed, strict=True) if not seen] == ["CD19"]
    assert aligned.rna[:, ~aligned.rna_observed].nnz == 0
    assert not aligned.adt[:, ~aligned.adt_observed].any()


def test_types_and_shapes_are_as_documented():
    aligned = align_cells(make_cells(genes=GENES, antibodies=ANTIBODIES), VOCABULARY)
    assert isinstance(aligned.rna, sp.csr_matrix)
    assert aligned.rna.has_sorted_indices
    assert (aligned.rna.dtype, aligned.adt.dtype, aligned.rna_total_counts.dtype) == (
        np.float32,
        np.float32,
        np.float64,
    )
    assert aligned.rna.shape == (NUM_CELLS, VOCABULARY.num_genes)
    assert aligned.adt.shape == (NUM_CELLS, VOCABULARY.num_proteins)
    for mask in (aligned.rna_observed, aligned.rna_present, aligned.adt_observed, aligned.adt_present):
        assert mask.dtype == bool


@pytest.mark.parametrize("missing", ["rna", "adt"])
def test_a_missing_modality_is_absent_not_zero(missing):
    cells = make_cells(genes=GENES if missing == "adt" else None, antibodies=ANTIBODIES if missing == "rna" else None)
    aligned = align_cells(cells, VOCABULARY)
    assert not getattr(aligned, f"{missing}_present").any()
    assert not getattr(aligned, f"{missing}_observed").any()
    assert getattr(aligned, "adt_present" if missing == "rna" else "rna_present").all()


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(len(GENES))), st.permutations(range(len(ANTIBODIES))))
def test_permuting_features_with_their_names_changes_nothing(gene_order, antibody_order):
    cells = make_cells(genes=GENES, antibodies=ANTIBODIES)
    permuted = make_cells(
        genes=[GENES[i] for i in gene_order],
        antibodies=[ANTIBODIES[i] for i in antibody_order],
        rna=cells.rna.counts.toarray()[:, gene_order],
        adt=cells.adt.counts.toarray()[:, antibody_order],
    )
    one, two = align_cells(cells, VOCABULARY), align_cells(permuted, VOCABULARY)
    np.testing.assert_array_equal(one.rna.toarray(), two.rna.toarray())
    np.testing.assert_array_equal(one.adt, two.adt)
    np.testing.assert_array_equal(one.rna_observed, two.rna_observed)
    np.testing.assert_array_equal(one.rna_total_counts, two.rna_total_counts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(range(VOCABULARY.num_genes)), unique=True, min_size=1))
def test_a_smaller_vocabulary_selects_columns(kept):
    content = VOCABULARY.to_dict()
    rows = sorted(kept)
    part = Vocabulary(**content | {k: [content[k][i] for i in rows] for k in content if k.startswith("gene")})
    cells = make_cells(genes=[*GENES, "MS4A1", "CD8A"], antibodies=ANTIBODIES)
    whole, some = align_cells(cells, VOCABULARY), align_cells(cells, part)
    np.testing.assert_array_equal(some.rna.toarray(), whole.rna.toarray()[:, rows])
    np.testing.assert_array_equal(some.rna_total_counts, whole.rna_total_counts)


def test_spellings_and_ids_of_a_gene_meet():
    ids = resolve_genes(GENES).gene_id.tolist()
    reference = align_cells(make_cells(genes=GENES), VOCABULARY)
    for names in (ids, [f"{gene_id}.7" for gene_id in ids], [f"GRCh38_{gene}" for gene in GENES]):
        np.testing.assert_array_equal(
            align_cells(make_cells(genes=names), VOCABULARY).rna.toarray(), reference.rna.toarray()
        )
    var = pd.DataFrame({"gene_ids": ids}, index=[f"feature {i}" for i in range(len(GENES))])
    aligned = align_cells(make_cells(genes=list(var.index), var=var), VOCABULARY)
    np.testing.assert_array_equal(aligned.rna.toarray(), reference.rna.toarray())


def test_two_features_of_one_gene_are_summed_with_a_warning():
    names = ["CD4", resolve_genes(["CD4"]).gene_id.item(), "LYZ"]
    cells = make_cells(genes=names)
    with pytest.warns(UserWarning, match=r"gene: 2 columns share 1 name\(s\) and were summed: CD4 \(2\)\."):
        aligned = align_cells(cells, VOCABULARY)
    expected = cells.rna.counts[:, :2].toarray().sum(1)
    np.testing.assert_array_equal(column(aligned, VOCABULARY, "CD4"), expected)


def test_two_clones_of_one_antibody_are_summed_with_a_warning():
    cells = make_cells(antibodies=["CD4-1", "cd4.2", "CD45RA", "CD45RO"])
    vocabulary = build_vocabulary([cells])
    assert vocabulary.protein_names == ("CD45RA", "CD45RO", "CD4")
    with pytest.warns(UserWarning, match=r"protein: 2 columns share 1 name\(s\) and were summed: CD4 \(2\)"):
        aligned = align_cells(cells, vocabulary)
    np.testing.assert_array_equal(aligned.adt[:, 2], cells.adt.counts[:, :2].toarray().sum(1))


def test_a_copied_feature_is_refused():
    counts = np.ones((NUM_CELLS, 3))
    with pytest.raises(ValueError, match="gene `CD4` must not be counted twice, got features 'CD4' and 'GRCh38_CD4'"):
        align_cells(make_cells(genes=["CD4", "GRCh38_CD4", "LYZ"], rna=counts), VOCABULARY)
    with pytest.raises(ValueError, match="protein `CD4` must not be counted twice, got features 'CD4' and 'CD4-1'"):
        align_cells(make_cells(antibodies=["CD4", "CD4-1", "CD3"], adt=counts), VOCABULARY)
    counts[:, :2] = 0  # two empty columns are no copies of a measurement
    with pytest.warns(UserWarning, match="were summed"):
        align_cells(make_cells(genes=["CD4", "GRCh38_CD4", "LYZ"], rna=counts), VOCABULARY)


def test_unknown_genes_warn_and_stay_in_the_library_size():
    cells = make_cells(genes=[*GENES, "Nonsense1", "Nonsense2"])
    message = r"2 of 8 genes do not resolve and are left out .*: Nonsense1, Nonsense2\. 6 are in the vocabulary"
    with pytest.warns(UserWarning, match=message):
        aligned = align_cells(cells, VOCABULARY)
    np.testing.assert_array_equal(aligned.rna_total_counts, cells.rna.counts.toarray().sum(1))


def test_unknown_antibodies_warn_by_name_but_controls_and_hashtags_do_not():
    align_cells(make_cells(antibodies=["CD4", "IgG1", "Hashtag1"]), VOCABULARY)
    with pytest.warns(UserWarning, match=r"2 of 3 antibodies do not resolve and are left out: Foo-7, Bar\."):
        align_cells(make_cells(antibodies=["CD4", "Foo-7", "Bar"]), VOCABULARY)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (
            ["ENSMUSG00000023274", "ENSMUSG00000032093"],
            "got mouse genes such as 'ENSMUSG00000023274'. Mouse is not",
        ),
        (
            ["Cd4", "Cd3e", "Gapdh"],
            "3 genes of which 0 resolve; unknown are Cd4, Cd3e, Gapdh. They look like mouse",
        ),
        (["920", "916", "2597"], "They look like row numbers or Entrez ids"),
        (["ENST00000011653", "ENST00000361763"], "They look like transcripts"),
        (["ENSDARG00000000001", "ENSDARG00000000002"], "They look like genes of another species"),
        (["mm10_Cd4", "mm10___Lyz2"], "They are genes of mouse by their prefix"),
        (["cd4", "cd3e", "gapdh"], "They look like symbols in lower case"),
        (["ENSG00000000000", "ENSG00000000009_FOO"], "They look like human Ensembl ids that are no longer in use"),
        (["foo", "bar"], 'Give symbols or Ensembl ids as var_names or in var["gene_ids"]'),
    ],
)
def test_genes_that_are_not_human_are_refused_with_a_hint(names, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        align_cells(make_cells(genes=names), VOCABULARY)


def test_a_few_names_that_species_share_do_not_make_a_file_human():
    names = ["C3", *(f"Gene{i}" for i in range(40))]
    with pytest.raises(ValueError, match="41 genes of which 1 resolve"):
        align_cells(make_cells(genes=names), VOCABULARY)


def test_mouse_genes_behind_antibodies_are_refused():
    cells = make_cells(antibodies=["CD4", "CD19"])
    cells.adt.var["ensembl_id"] = ["ENSMUSG00000023274", "ENSMUSG00000030724"]
    with pytest.raises(ValueError, match="must be of human cells, got mouse genes"):
        align_cells(cells, VOCABULARY)


def test_genes_of_mice_beside_human_ones_are_named_and_never_read():
    genes = ["HUMAN_CD4", "HUMAN_LYZ", "MOUSE_Cd4", "MOUSE_CD3E"]
    told = r"2 of 4 genes are of mouse \(MOUSE_Cd4, MOUSE_CD3E\) and left out"
    with pytest.warns(UserWarning, match=told), pytest.warns(UserWarning, match="2 of 4 genes do not resolve"):
        aligned = align_cells(make_cells(genes=genes), VOCABULARY)
    assert aligned.rna_observed.sum() == 2


def test_a_panel_for_mice_is_refused_and_a_few_of_its_antibodies_are_not():
    vocabulary = build_vocabulary(None, genes="protein_coding", proteins="all")
    mice = ["CD45.1", "Ly-6C", "NK-1.1", "ADT_I-A/I-E_A0117"]
    with pytest.raises(ValueError, match=r"got 4 antibodies against antigens that only mice have \(CD45.1, Ly-6C"):
        align_cells(make_cells(antibodies=["CD4", "CD19", *mice]), vocabulary)
    with pytest.warns(UserWarning, match="2 of 4 antibodies do not resolve"):
        align_cells(make_cells(antibodies=["CD4", "CD19", *mice[:2]]), vocabulary)


def test_nothing_in_common_with_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"must share genes with the vocabulary \(8 genes\), got none of its 2 genes"):
        align_cells(make_cells(genes=["ACTB", "B2M"]), VOCABULARY)
    with pytest.raises(ValueError, match=r"must share proteins with the vocabulary \(5 proteins\), got none of CD14"):
        align_cells(make_cells(antibodies=["CD14", "CD16"]), VOCABULARY)
    with pytest.raises(
        ValueError, match="must name known antibodies, got 2 of which none resolves to a protein: Foo, IgG1"
    ):
        align_cells(make_cells(antibodies=["Foo", "IgG1"]), VOCABULARY)


def test_a_modality_that_the_file_lacks_is_not_given_to_a_feature_extractor():
    rows = np.array([2, 0])
    rna = align_cells(make_cells(genes=["CD4", "LYZ"]), VOCABULARY).as_counts(rows)
    assert rna.keys() == {"rna_counts", "rna_observed", "rna_total_counts"}
    assert rna["rna_counts"].shape == (2, VOCABULARY.num_genes)
    assert align_cells(make_cells(antibodies=["CD4"]), VOCABULARY).as_counts(rows).keys() == {
        "adt_counts",
        "adt_observed",
    }


def test_cells_without_any_count_warn_and_stay():
    counts = np.ones((NUM_CELLS, 2))
    counts[:3] = 0
    with pytest.warns(UserWarning, match="3 of 7 cells have no count in any modality, and are kept"):
        aligned = align_cells(make_cells(genes=["CD4", "LYZ"], rna=counts), VOCABULARY)
    assert aligned.rna_present.tolist() == [False] * 3 + [True] * 4
    assert len(aligned.obs) == NUM_CELLS


@pytest.mark.filterwarnings("ignore:.* genes do not resolve:UserWarning", "ignore:.*were summed:UserWarning")
def test_the_demo_file_aligns_to_itself_without_losing_a_count():
    cells = read_cells(DEMO_FILE)
    vocabulary = build_vocabulary([cells])
    aligned = align_cells(cells, vocabulary)
    assert aligned.rna_observed.all()
    assert aligned.adt_observed.all()
    assert vocabulary.num_proteins == 45
    assert 0.99 < aligned.rna.sum() / cells.rna.counts.sum() <= 1
    is_control = cells.adt.var.index.str.startswith("IgG")
    assert aligned.adt.sum() == cells.adt.counts[:, ~is_control].sum()


REFUSED = {"sln_mouse.h5mu": "got mouse genes such as 'ENSMUSG"}


def test_every_real_file_aligns_or_is_refused_with_the_true_reason(shared_data: Path):
    whole = build_vocabulary(None, genes="protein_coding", proteins="all")
    paths = sorted(p for p in shared_data.iterdir() if p.suffix in (".h5ad", ".h5mu"))
    assert paths
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(do not resolve|were summed|named as antibodies among genes)", UserWarning)
        for path in paths:
            cells = read_cells(path)
            if path.name in REFUSED:
                with pytest.raises(ValueError, match=REFUSED[path.name]):
                    align_cells(cells, whole)
                continue
            aligned = align_cells(cells, build_vocabulary([cells]))
            only_adt = "_adt" in path.name
            assert (cells.rna is None) == only_adt, path.name
            assert (cells.adt is None) == (path.suffix == ".h5ad" and not only_adt), path.name
            if cells.rna is not None:
                assert aligned.rna.sum() > 0.95 * cells.rna.counts.sum(), path.name
            if cells.adt is not None:
                assert aligned.adt_observed.all(), path.name
            align_cells(cells, whole)
