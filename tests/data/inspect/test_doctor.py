"""The doctor: what it says about names, species, labels and shared cells is true."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from make_files import GENES, WRITERS, make_adt, make_mudata, make_rna, write
from missing_values import WITHOUT_VALUE

from scfusion_fm.data.inspect import doctor
from scfusion_fm.data.inspect.doctor import describe_columns, examine_files, guess_species, name_genes
from scfusion_fm.data.inspect.doctor_text import WIDTH, render_examination
from scfusion_fm.data.vocabulary.resolve import resolve_gene_features, resolve_genes
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary(None, "protein_coding", "all")
COUNTS = np.random.default_rng(0).poisson(3.0, (20, 30)).astype(float)
NORMALISED = COUNTS / COUNTS.sum(1, keepdims=True) * 1e4


def examine(*paths):
    return examine_files(paths, VOCABULARY)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_format_is_understood(tmp_path, name):
    WRITERS[name](tmp_path / name, make_rna(), make_adt())
    (file,) = examine(tmp_path / name).files
    assert file.verdict == "ok", file
    rna, adt = file.modalities
    assert (rna.name, rna.num_features, rna.num_cells, rna.species) == ("rna", len(GENES), 7, "human")
    assert rna.median_counts == np.median(make_rna().X.toarray().sum(1))
    assert adt.matches["isotype"] == 1
    assert adt.examples["isotype"] == ["f9" if name == "feature_types.h5ad" else "IgG1"]
    assert (adt.in_vocabulary, adt.vocabulary_size) == (4, VOCABULARY.num_proteins)


def test_refused_files_tell_what_their_slots_hold(tmp_path):
    adata = make_rna(num_cells=20)
    adata.raw = adata.copy()
    adata.raw.X.data *= 0.3
    adata.X = adata.X.toarray() - 3
    adata.layers["spliced"] = make_rna(num_cells=20).X
    adata.write_h5ad(tmp_path / "in.h5ad")
    (file,) = examine(tmp_path / "in.h5ad").files
    assert file.verdict == "refused"
    assert {s.slot: s.content.split()[0] for s in file.slots} == {
        'layers["spliced"]': "counts",
        ".raw": "fractions",
        "X": "negative",
    }


@pytest.mark.parametrize(
    ("names", "naming"),
    [
        (["CD4", "CD3E", "GAPDH"], "symbols"),
        (["ENSG00000010610", "ENSG00000111640"], "Ensembl ids"),
        (["ENSG00000010610.10", "ENSG00000111640.15"], "Ensembl ids with version"),
        (["ENSG00000010610", "GAPDH"], "mixed, 50% Ensembl ids"),
        (["ENSMUSG00000000001", "ENSMUSG00000000028"], "Ensembl ids"),
    ],
)
def test_kind_of_gene_names(names, naming):
    assert name_genes(pd.Index(names)) == naming


@pytest.mark.parametrize(
    ("names", "species"),
    [
        (["CD4", "CD3E", "GAPDH"], "human"),
        (["Cd4", "Cd3e", "Gapdh", "Rpl7"], "mouse"),
        (["ENSMUSG00000000001", "ENSMUSG00000000028"], "mouse"),
        (["thing1", "thing2"], "unknown"),
    ],
)
def test_species(names, species):
    var = pd.DataFrame(index=names)
    assert guess_species(var, resolve_gene_features(var)) == species


def test_ways_to_resolve_are_counted_with_examples(tmp_path):
    names = ["ENSG00000010610.7", "CD3E", "SMEK2", "nonsense", "LYZ"]
    expected = resolve_genes(names)["match"].value_counts().to_dict()
    make_rna(names).write_h5ad(tmp_path / "in.h5ad")
    (file,) = examine(tmp_path / "in.h5ad").files
    assert file.modalities[0].matches == expected == {"symbol": 2, "versioned_id": 1, "previous": 1, "unknown": 1}
    assert file.modalities[0].examples["previous"] == ["SMEK2 = PPP4R3B"]
    assert file.modalities[0].examples["unknown"] == ["nonsense"]
    assert file.verdict == "warnings"


def test_labels_and_groups_are_found_with_their_classes():
    obs = pd.DataFrame(
        {
            "Cell Type": ["a", "b", "nan", "a"],
            "donor_id": [1, 1, 2, 2],
            "n_counts": [1.0, 2.0, 3.0, 4.0],
            5: list("abcd"),
        }
    )
    found = {c.name: (c.role, c.num_classes, c.num_missing) for c in describe_columns(obs)}
    assert found == {"Cell Type": ("labels", 2, 1), "donor_id": ("groups", 2, 0)}
    for missing, column in WITHOUT_VALUE.items():
        (told,) = describe_columns(pd.DataFrame({"donor": column}))
        assert (told.num_classes, told.num_missing) == (2, 1), missing


def many_cells(seed, prefix):
    """Give cells with enough counts to be known again."""
    counts = np.random.default_rng(seed).poisson(200.0, (30, len(GENES)))
    obs = pd.DataFrame(index=[f"{prefix}{i}" for i in range(30)])
    return ad.AnnData(sp.csr_matrix(counts, dtype="f4"), obs=obs, var=pd.DataFrame(index=GENES))


def test_copies_of_cells_in_other_files_and_in_the_same_are_told(tmp_path):
    first, second = many_cells(0, "a"), many_cells(1, "b")
    second.X[:3] = first.X[5:8]
    second.X[4] = second.X[9]
    first.write_h5ad(tmp_path / "first.h5ad")
    second.write_h5ad(tmp_path / "second.h5ad")
    found = examine(tmp_path / "first.h5ad", tmp_path / "second.h5ad")
    (pair,) = found.shared
    assert (pair.rna, pair.adt, pair.barcodes) == (3, 0, 0)
    assert [len(file.warnings) for file in found.files] == [1, 2]
    assert "1 cells have the same RNA counts as another" in found.files[1].warnings[0]
    assert found.exit_code == 1
    assert examine(tmp_path / "first.h5ad").exit_code == 0


def test_rounded_normalised_values_are_told(tmp_path):
    counts = many_cells(0, "a").X.toarray()
    rounded = np.round(counts / counts.sum(1, keepdims=True) * 1e4)
    adata = ad.AnnData(sp.csr_matrix(rounded, dtype="f4"), var=pd.DataFrame(index=GENES))
    adata.write_h5ad(tmp_path / "in.h5ad")
    (file,) = examine(tmp_path / "in.h5ad").files
    assert "all cells have the same RNA total, 10,00" in file.warnings[-1]


def test_page_is_narrow_and_ends_with_the_sum(tmp_path):
    write(make_mudata(rna=make_rna([*GENES, "nonsense"]), adt=make_adt()), tmp_path / "in.h5mu")
    page = render_examination(examine(tmp_path / "in.h5mu", tmp_path / "missing.h5ad"))
    lines = page.splitlines()
    assert lines[0] == "in.h5mu: usable with warnings"
    assert any(line.startswith("! 1 of 7 genes do not resolve") for line in lines)
    assert any(line.startswith("x `path` must exist") for line in lines)
    assert lines[-1] == "2 files: 1 usable with warnings, 1 REFUSED"
    assert max(map(len, lines)) <= WIDTH or str(tmp_path) in max(lines, key=len)


def test_all_real_files_are_understood_or_refused_for_a_true_reason(shared_data):
    paths = sorted(shared_data.glob("*.h5*"))
    files = {p.name: f for p, f in zip(paths, examine(*paths).files, strict=True)}
    refused = {name: file.refusal for name, file in files.items() if file.verdict == "refused"}
    assert list(refused) == ["sln_mouse.h5mu"]
    assert "must be of human cells" in refused["sln_mouse.h5mu"]
    for name, file in files.items():
        kinds = {"rna_only": ["rna"], "_adt": ["adt"]}
        expected = next((v for k, v in kinds.items() if k in name), ["rna", "adt"] if "h5mu" in name else ["rna"])
        assert [m.name for m in file.modalities] == expected
        assert {s.content for s in file.slots} == {"counts"}
        for modality in file.modalities if name not in refused else ():
            assert modality.matches.get("unknown", 0) <= 0.02 * modality.num_features
            assert modality.species in ("human", "")
    demo = " ".join(files["demo_teaseq_pbmc.h5mu"].warnings)
    assert "1,262 barcodes are in both" in demo
    assert "1,262 the same ADT" in demo


def test_modality_must_be_one():
    with pytest.raises(ValueError, match="`modality` must be 'auto', 'rna' or 'adt', got 'atac'"):
        examine_files([], VOCABULARY, "atac")


def test_modality_of_unclear_names_can_be_told(tmp_path):
    make_rna(["CD4", "CD8A", "CD14", "CD19"]).write_h5ad(tmp_path / "in.h5ad")
    unclear = examine(tmp_path / "in.h5ad").files[0]
    assert "`modality` cannot be told from the names" in unclear.refusal
    told = examine_files([tmp_path / "in.h5ad"], VOCABULARY, "rna").files[0]
    assert [m.name for m in told.modalities] == ["rna"]


def test_tables_that_cannot_be_written_again_are_told(monkeypatch, tmp_path):
    make_rna().write_h5ad(tmp_path / "rna.h5ad")
    seen = []
    monkeypatch.setattr(doctor, "find_unwritable", lambda tables: seen.extend(tables) or ["`obs['x']` must be text."])
    assert examine(tmp_path / "rna.h5ad").files[0].verdict == "ok"  # a file of the present format is copied
    monkeypatch.setattr(doctor, "can_copy", lambda *_: False)
    seen.clear()
    (report,) = examine(tmp_path / "rna.h5ad").files
    assert [name for name, _ in seen] == ["obs", "var"]
    assert report.verdict == "warnings"
    assert f"{tmp_path}/rna.h5ad: embed and its like refuse it: `obs['x']` must be text." in report.warnings
