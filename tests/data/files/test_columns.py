"""What columns are: the same cells in every usual layout are read as the same counts, and nothing is mixed up."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from make_files import make_counts, make_mudata, write

from scfusion_fm.data.files.columns import role_of_word, sort_columns
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.vocabulary.resolve import resolve_antibody_features, resolve_genes
from scfusion_fm.notices import ScFusionWarning

GENES = ["MT-CO1", "CD4", "CD3E", "GAPDH", "LYZ", "NKG7", "KLRG1", "CD19", "CD86", "ACTB", "AC002460.2"]
ANTIBODIES = ["CD4", "CD3", "CD45RA", "CD10", "HLA-DR", "KLRG1", "CD86", "IgG1"]
MOVED = "are antibodies by their names, for example"


def make_rna():
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(7)])
    return ad.AnnData(make_counts((7, len(GENES)), 0), obs=obs, var=pd.DataFrame(index=GENES))


def make_adt(names=ANTIBODIES):
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(7)])
    return ad.AnnData(make_counts((7, len(ANTIBODIES)), 1), obs=obs, var=pd.DataFrame(index=names))


def join(names=ANTIBODIES, types=None, first="rna"):
    """Put genes and antibodies into one AnnData."""
    parts = [make_rna(), make_adt(names)] if first == "rna" else [make_adt(names), make_rna()]
    with warnings.catch_warnings(action="ignore"):
        both = ad.AnnData(
            sp.csr_matrix(sp.hstack([part.X for part in parts])),
            obs=parts[0].obs,
            var=pd.DataFrame(index=[*parts[0].var_names, *parts[1].var_names]),
        )
        both.var_names_make_unique()
    if types is not None:
        both.var["feature_types"] = [types[0]] * len(GENES) + [types[1]] * len(ANTIBODIES)
    return both


def beside(key, as_table=True, **uns):
    """Put antibodies into obsm, as a table or an array."""
    rna, adt = make_rna(), make_adt()
    table = pd.DataFrame(adt.X.toarray(), index=adt.obs_names, columns=adt.var_names)
    rna.obsm[key] = table if as_table else adt.X
    rna.uns |= uns
    rna.obsm["X_pca"] = np.random.default_rng(0).normal(size=(7, 8))
    return rna


def with_types(adata, value="Gene Expression"):
    adata.var["feature_types"] = value
    return adata


def with_ids(adata):
    adata.var["gene_ids"] = [*resolve_genes(GENES).gene_id, *adata.var_names[len(GENES) :]]
    adata.var.loc["AC002460.2", "gene_ids"] = "ENSG00000223546"
    return adata


NAMES = np.array(ANTIBODIES)
WORDINGS = [
    ("GEX", "ADT"), ("Gene Expression", "Antibody Capture"), ("gene_expression", "antibody-capture"),
    ("gene", "protein"),
    ("genes", "proteins"), ("RNA", "CITE"), ("mRNA", "AbSeq"), ("rna", "prot"), ("Gene", "Surface Protein"),
    ("GENE EXPRESSION", "AB"), ("protein_coding", "antibody"),
]  # fmt: skip
MODALITIES = [
    ("RNA", "ADT"), ("rna", "cite"), ("Gene Expression", "Antibody Capture"), ("gex", "Antibody-Capture"),
    ("gene", "CITE-seq"), ("x", "y"), ("GEX", "protein_counts"),
]  # fmt: skip
LAYOUTS = {f"types {a}, {b}": (join(types=(a, b)), None) for a, b in WORDINGS}
LAYOUTS |= {f"modalities {a}, {b}": (make_mudata(**{a: make_rna(), b: make_adt()}), None) for a, b in MODALITIES}
LAYOUTS |= {
    "types that say nothing": (join(types=("a", "b")), "by their names"),
    "modality of both, and proteins": (make_mudata(rna=join(types=("GEX", "ADT")), adt=make_adt()), "are left out"),
    "modality of both": (make_mudata(rna=join(types=("GEX", "ADT"))), None),
    "two of both": (make_mudata(rna=join(types=("GEX", "ADT")), adt=join(types=("GEX", "ADT"))), "left out"),
    "modality of both without types": (make_mudata(rna=with_ids(join())), MOVED),
    "a table": (beside("protein_expression"), None),
    "a table, with types": (with_types(beside("protein_expression")), None),
    "another table": (beside("protein_counts"), "are read as antibodies"),
    "a table of a modality": (make_mudata(rna=beside("protein_expression")), None),
    "an array": (beside("protein_expression", as_table=False, protein_names=NAMES), None),
    "another array": (beside("X_adt", as_table=False, adt_var_names=NAMES, genes=np.array(GENES)), "as antibodies"),
    "names alone": (join(), MOVED),
    "names alone, antibodies first": (join(first="adt"), MOVED),
    "names and ids": (with_ids(join()), MOVED),
    "marked names": (join([f"{name}_TotalSeqB" for name in ANTIBODIES]), MOVED),
    "otherwise marked names": (join([f"ADT-{name}" for name in ANTIBODIES]), MOVED),
    "a block of antibodies called genes": (
        with_types(join()),
        "are called genes but named as antibodies",
    ),
    "marked names of genes by type": (
        with_types(join([f"{name}_TotalSeqB" for name in ANTIBODIES])),
        "are called genes but named as antibodies",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_same_cells_gives_the_same_counts(tmp_path, layout):
    adata, warning = LAYOUTS[layout]
    path = write(adata, tmp_path / f"a.{'h5ad' if isinstance(adata, ad.AnnData) else 'h5mu'}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cells = read_cells(path)
    told = [str(w.message) for w in caught if w.category is ScFusionWarning]
    assert bool(told) == (warning is not None), told
    assert all(warning in message and message.startswith(str(path)) for message in told)
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())
    np.testing.assert_array_equal(cells.adt.counts.toarray(), make_adt().X.toarray())
    proteins = resolve_antibody_features(cells.adt.var).protein
    assert proteins.tolist() == resolve_antibody_features(make_adt().var).protein.tolist()


@pytest.mark.parametrize("modality", ["rna", "adt"])
@pytest.mark.parametrize(
    "layout", ["types GEX, ADT", "modality of both", "another array", "names alone", "modalities x, y"]
)
def test_one_modality_of_every_layout_can_be_asked_for(tmp_path, layout, modality):
    adata = LAYOUTS[layout][0]
    path = write(adata, tmp_path / f"a.{'h5ad' if isinstance(adata, ad.AnnData) else 'h5mu'}")
    with warnings.catch_warnings(action="ignore"):
        cells = read_cells(path, modality)
    assert (cells.rna is None, cells.adt is None) == (modality != "rna", modality != "adt")
    found, expected = (cells.rna, make_rna()) if modality == "rna" else (cells.adt, make_adt())
    np.testing.assert_array_equal(found.counts.toarray(), expected.X.toarray())


def test_tables_of_proteins_that_are_not_clear_are_named(tmp_path):
    adata = beside("AB")
    adata.obsm["AB2"] = adata.obsm["AB"] * 2
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.warns(UserWarning, match=r'antibodies are not read: obsm\["AB"\] and obsm\["AB2"\] all hold counts of'):
        assert read_cells(path).adt is None
    with pytest.raises(ValueError, match=r'must hold adt counts, got none: obsm\["AB"\] and'):
        read_cells(path, "adt")
    adata = beside("protein_expression")
    adata.obsm["protein_expression"].columns = [str(i) for i in range(len(ANTIBODIES))]
    path = write(adata, tmp_path / "b.h5ad")
    with pytest.raises(
        ValueError, match=r"must have columns with names of antibodies, got \['0', '1', '2'\].*--modality rna"
    ):
        read_cells(path)
    adata = beside("X_adt", as_table=False)
    with pytest.warns(UserWarning, match=r'`obsm\["X_adt"\]` must be a DataFrame with a column per antibody'):
        assert read_cells(write(adata, tmp_path / "c.h5ad")).adt is None
    assert read_cells(write(beside("protein_expression", as_table=False), tmp_path / "d.h5ad"), "rna").adt is None


def test_antibodies_of_another_type_and_swapped_modalities_are_told(tmp_path):
    path = write(join(types=("Gene Expression", "Custom")), tmp_path / "a.h5ad")
    with pytest.warns(UserWarning, match="8 features of the type 'Custom' are left out, but named as antibodies"):
        assert read_cells(path).adt is None
    rna = make_rna()
    rna.var_names = ["GAPDH", "ACTB", "LYZ", "NKG7", "MT-CO1", "GNLY", "FCN1", "VCAN", "LEF1", "TCF7", "CCL5"]
    path = write(make_mudata(rna=make_adt(), adt=rna), tmp_path / "b.h5mu")
    with pytest.raises(
        ValueError, match="modality adt` must hold what its name says, got 100% human genes and 0% known"
    ):
        read_cells(path, "adt")


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix])
def test_one_modality_is_read_alone_where_the_other_is_no_counts(tmp_path, make):
    both = join(types=("GEX", "ADT"))
    values = both.X.toarray()
    values[:, len(GENES) :] -= 2.5
    both.X = make(values)
    path = write(both, tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"X` must hold raw counts .* The RNA can be read alone: .*--modality rna"):
        read_cells(path)
    cells = read_cells(path, "rna")
    assert cells.adt is None
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())
    with pytest.raises(ValueError, match=r"X` must hold raw counts"):
        read_cells(path, "adt")


def test_a_modality_without_counts_is_named_with_what_can_be_read(tmp_path):
    adt = make_adt()
    adt.X = adt.X * 0.3
    path = write(make_mudata(rna=make_rna(), prot=adt), tmp_path / "a.h5mu")
    with pytest.raises(ValueError, match=r"modality prot, X` must .* The RNA can be read alone: .*--modality rna"):
        read_cells(path)
    assert read_cells(path, "rna").adt is None
    path = write(make_mudata(rna=make_rna(), adt=make_adt(), other=make_rna(), hto=make_adt()), tmp_path / "b.h5mu")
    with pytest.raises(ValueError, match=r"must name its rna modality once, got \['rna', 'other'\]"):
        read_cells(path)
    logged = make_rna()
    logged.X = logged.X * 0.3
    path = write(make_mudata(RNA=make_rna(), ADT=make_adt(), SCT=make_rna(), other=logged), tmp_path / "c.h5mu")
    with pytest.warns(UserWarning, match="is left out") as caught:
        cells = read_cells(path)
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())
    told = " ".join(str(w.message) for w in caught)
    assert "modality SCT is left out: its 11 features are a transform or a part of other counts." in told
    assert "modality other (genes) is left out, since it holds no counts." in told


@pytest.mark.parametrize(
    "names",
    [
        [*GENES[:9], "CD3", "CD45RA", "HLA-DR"],  # the last genes or the first antibodies?
        [name for pair in zip(GENES, ["CD3", "CD45RA", "CD10", "HLA-DR"] * 3, strict=False) for name in pair],
    ],
)
def test_genes_and_antibodies_without_a_sure_border_are_refused(names):
    var = pd.DataFrame(index=list(dict.fromkeys(names)))
    with pytest.raises(
        ValueError, match=r"must say which .* got . genes and . antibodies, mixed: .*Set var\[.feature_ty"
    ):
        sort_columns(var, "a.h5ad")


def test_a_few_antibodies_among_many_genes_are_left_out_with_a_warning():
    names = [*GENES, *(f"ENSG000000{i}" for i in range(30000, 30030)), "CD45RA", "RPL3"]
    found = sort_columns(pd.DataFrame(index=names), "a.h5ad")
    assert [names[i] for i in found.of("unknown")] == ["CD45RA"]
    assert "1 of 43 features are named as antibodies among genes, and are left out: CD45RA." in found.told[0]


def test_other_types_are_left_out_and_unknown_ones_are_named():
    types = {"Gene Expression": 2, "Antibody Capture": 2, "Multiplexing Capture": 1, "Peaks": 1, "wizard": 2}
    var = pd.DataFrame({"feature_types": np.repeat(list(types), list(types.values()))}, index=list("abcdefgh"))
    found = sort_columns(var, "a.h5ad")
    assert [len(found.of(role)) for role in ("rna", "adt", "other", "unknown")] == [2, 2, 2, 2]
    assert found.told == ["2 features of the feature_types 'wizard' are left out: what is it? (g, h)."]


@pytest.mark.parametrize(
    ("role", "words"),
    {
        "rna": ["GEX", "Gene Expression", "rna_counts", "lncRNA", "IG_C_gene", "transcribed_unprocessed_pseudogene"],
        "adt": ["Antibody Capture", "ADT counts", "surface-protein", "Ab", "AbSeq", "proteins", "TotalSeq-B"],
        "other": ["HTO", "CRISPR Guide Capture", "Multiplexing Capture", "atac", "Peaks", "gene_activity", "VDJ-T"],
        "derived": ["SCT", "integrated", "spliced", "MAGIC"],
        "unknown": ["", "nan", "wizard", "counts", "X"],
    }.items(),
)
def test_words_for_features_are_understood(role, words):
    assert {word: role_of_word(word) for word in words} == dict.fromkeys(words, role)
