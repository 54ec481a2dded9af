"""Which matrix holds the counts of which modality: told by slots, feature types and names, or refused."""

from contextlib import nullcontext

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from make_files import GENES, make_adt, make_mudata, make_rna, write

from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.vocabulary.resolve import resolve_genes


@pytest.mark.parametrize(("make", "kind"), [(make_rna, "rna"), (make_adt, "adt")])
def test_names_tell_the_modality_of_a_plain_file(tmp_path, make, kind):
    names = ["CD45RA", "CD10", "CD56", "HLA-DR", "CD8A"] if kind == "adt" else GENES
    cells = read_cells(write(make(names), tmp_path / "a.h5ad"))
    assert getattr(cells, kind) is not None
    assert (cells.rna is None) != (cells.adt is None)


def test_names_in_a_column_tell_the_modality(tmp_path):
    adata = make_rna()
    adata.var["gene_ids"] = resolve_genes(GENES).gene_id.to_numpy()
    adata.var_names = [f"feature {i}" for i in range(adata.n_vars)]
    assert read_cells(write(adata, tmp_path / "a.h5ad")).rna is not None


@pytest.mark.parametrize("names", [["CD4", "CD19", "CD33"], ["Gapdh", "Actb", "Cd4"]])
def test_an_unclear_modality_is_refused_and_can_be_told(tmp_path, names):
    path = write(make_rna(names), tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"`modality` cannot be told from the names.*human genes"):
        read_cells(path)
    assert read_cells(path, modality="adt").adt.var.index.tolist() == names


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["x", "y", "z"], "Give symbols or Ensembl ids"),
        (["gapdh", "actb", "lyz"], "They look like symbols in lower case"),
        (["Gapdh", "Actb", "Lyz2"], "They look like mouse symbols"),
    ],
)
def test_names_of_nothing_known_are_refused_with_a_hint(tmp_path, names, hint):
    with pytest.raises(ValueError, match=f"`var_names` must name human genes or antibodies, got 0% .*{hint}"):
        read_cells(write(make_rna(names), tmp_path / "a.h5ad"))


def test_a_modality_that_contradicts_the_names_warns(tmp_path):
    path = write(make_adt(["CD45RA", "CD10", "CD56", "HLA-DR"]), tmp_path / "a.h5ad")
    with pytest.warns(
        UserWarning, match="read as rna as `modality` says, but 0% of the 4 names are human genes and 100%"
    ):
        read_cells(path, modality="rna")


def with_slots(**slots: np.ndarray) -> anndata.AnnData:
    """Give an AnnData whose slots are filled as told: X, raw, counts."""
    adata = make_rna()
    if "raw" in slots:
        adata.X = slots["raw"]
        adata.raw = adata
    adata.X = slots.get("X")
    if "counts" in slots:
        adata.layers["counts"] = slots["counts"]
    return adata


COUNTS = make_rna().X
OTHER = COUNTS * 2
LOGGED = COUNTS.log1p()


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ({"counts": COUNTS, "raw": OTHER, "X": OTHER}, COUNTS),
        ({"raw": COUNTS, "X": OTHER}, COUNTS),
        ({"raw": COUNTS, "X": LOGGED}, COUNTS),
        ({"raw": LOGGED, "X": COUNTS}, COUNTS),
        ({"counts": COUNTS}, COUNTS),
        ({"X": COUNTS.toarray()}, COUNTS),
        ({"X": COUNTS.tocsc()}, COUNTS),
        ({"X": COUNTS.astype(np.int64)}, COUNTS),
    ],
)
def test_counts_are_looked_up_in_the_documented_order(tmp_path, slots, expected):
    path = write(with_slots(**slots), tmp_path / "a.h5ad")
    differs = any(matrix is OTHER for matrix in slots.values())
    with pytest.warns(UserWarning, match="holds others, which are not read") if differs else nullcontext():
        cells = read_cells(path)
    np.testing.assert_array_equal(cells.rna.counts.toarray(), expected.toarray())


def test_raw_may_hold_more_genes_than_the_file(tmp_path):
    adata = make_rna()
    adata.var["gene_ids"] = resolve_genes(GENES).gene_id.to_numpy()
    adata.raw = adata
    part = adata[:, 2:4].copy()
    cells = read_cells(write(part, tmp_path / "a.h5ad"))
    assert cells.rna.var.index.tolist() == GENES
    assert "gene_ids" in cells.rna.var


def test_raw_takes_the_columns_that_only_the_file_has(tmp_path):
    adata = make_rna(["CD4", "CD3"])
    adata.raw = adata
    adata.var["feature_types"] = ["Gene Expression", "Antibody Capture"]
    cells = read_cells(write(adata, tmp_path / "a.h5ad"))
    assert (cells.rna.var.index.tolist(), cells.adt.var.index.tolist()) == (["CD4"], ["CD3"])


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"counts": LOGGED, "X": COUNTS}, r'layers\["counts"\]` must hold raw counts \(whole numbers\), got'),
        ({"X": LOGGED}, r'layers\["counts"\] missing, .*X` must hold raw counts \(whole numbers\)'),
        (
            {"raw": LOGGED, "X": -COUNTS},
            r"\.raw` must hold raw counts \(whole.*X` must hold raw counts \(non-neg",
        ),
        ({}, "all are empty"),
    ],
)
def test_a_file_without_counts_is_refused(tmp_path, slots, message):
    with pytest.raises(ValueError, match=message):
        read_cells(write(with_slots(**slots), tmp_path / "a.h5ad"))


def test_cells_of_one_modality_only_are_kept_with_a_warning(tmp_path):
    rna, adt = make_rna()[:5].copy(), make_adt()[3:].copy()
    path = write(make_mudata(rna=rna, adt=adt), tmp_path / "a.h5mu")
    with pytest.warns(
        UserWarning, match="of 7 cells 2 are in both modalities, 3 in RNA only, 2 in ADT only; all are kept"
    ):
        cells = read_cells(path)
    names = cells.obs.index
    assert sorted(names) == sorted(make_rna().obs_names)
    assert set(names[cells.rna.present]) == set(rna.obs_names)
    assert set(names[cells.adt.present]) == set(adt.obs_names)
    assert cells.adt.counts[~cells.adt.present].nnz == 0
    assert cells.obs.batch.notna().all()
    np.testing.assert_array_equal(
        cells.adt.counts[cells.adt.present].toarray(), adt[names[cells.adt.present]].X.toarray()
    )


def test_modalities_without_a_common_cell_are_refused(tmp_path):
    adt = make_adt()
    adt.obs_names = [f"{name}-1" for name in adt.obs_names]
    path = write(make_mudata(rna=make_rna(), adt=adt), tmp_path / "a.h5mu")
    with pytest.raises(ValueError, match=r"none in common.*RNA has names like 'cell0', ADT like 'cell0-1'"):
        read_cells(path)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_files_without_cells_or_features_are_refused(tmp_path, shape):
    path = write(anndata.AnnData(sp.csr_matrix(shape, dtype=np.float32)), tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"must name at least one cell|must have cells and features, got shape"):
        read_cells(path, modality="rna")


def test_files_without_the_modality_are_refused(tmp_path):
    path = write(make_mudata(atac=make_rna()), tmp_path / "a.h5mu")
    with pytest.raises(ValueError, match=r"a modality named rna or adt, or one .*, got \['atac'\]"):
        read_cells(path)
    path = write(make_mudata(rna=make_rna(), gex=make_rna()), tmp_path / "b.h5mu")
    with pytest.raises(ValueError, match=r"must name its rna modality once, got \['rna', 'gex'\]"):
        read_cells(path)
    adata = make_rna()
    adata.var["feature_types"] = "Gene Expression"
    path = write(adata, tmp_path / "c.h5ad")
    with pytest.raises(ValueError, match="`path` must hold adt counts, got none"):
        read_cells(path, modality="adt")
    adata.var["feature_types"] = "Peaks"
    path = write(adata, tmp_path / "d.h5ad")
    with pytest.raises(ValueError, match=r"`feature_types` must contain Gene Expression or .*, got \['Peaks'\]"):
        read_cells(path)


def test_proteins_without_names_are_refused(tmp_path):
    adata = make_rna()
    adata.obsm["protein_expression"] = np.ones((7, 2))
    with pytest.raises(ValueError, match="must be a DataFrame with a column per antibody, got an array"):
        read_cells(write(adata, tmp_path / "a.h5ad"))
    adata.obsm["protein_expression"] = pd.DataFrame(index=adata.obs_names)
    with pytest.raises(ValueError, match=r"must have columns, got none|cannot be read"):
        read_cells(write(adata, tmp_path / "b.h5ad"))
