import shutil
import warnings
from pathlib import Path

import anndata
import fsspec
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_files import GENES, make_adt, make_mudata, make_rna, write, write_h5ad, write_zarr

from scfusion_fm.data.files.readers import open_cells, read_cells
from scfusion_fm.data.schema import check_counts
from scfusion_fm.data.vocabulary.resolve import resolve_antibody_features, resolve_gene_features, resolve_genes

DEMO_FILE = Path(__file__).parents[3] / "data" / "demo_teaseq_pbmc.h5mu"


def test_every_format_gives_the_same_cells(file_of_each_format: Path):
    cells = read_cells(file_of_each_format)
    for found, expected in ((cells.rna, make_rna()), (cells.adt, make_adt())):
        assert found.counts.dtype == np.float32
        assert found.counts.has_canonical_format
        np.testing.assert_array_equal(found.counts.toarray(), expected.X.toarray())
        assert found.present.all()
    assert cells.obs.index.tolist() == make_rna().obs_names.tolist()
    assert resolve_gene_features(cells.rna.var).gene_id.tolist() == resolve_genes(GENES).gene_id.tolist()
    proteins = resolve_antibody_features(cells.adt.var).protein
    assert proteins.tolist() == ["CD4", "CD3", "CD45RA", "", "HLA-DR"]
    assert cells.path == str(file_of_each_format)
    assert list(cells.container.obs_names) == cells.obs.index.tolist()


def same_matrix(left, right):
    return left.shape == right.shape and (left != right).nnz == 0


def check_open_equals_read(path: Path):
    """Compare a file that is read by rows with the same file read whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cells in one modality only
        opened, read = open_cells(path), read_cells(path)
    pd.testing.assert_frame_equal(opened.obs, read.obs, check_names=False, check_column_type=False)
    for stored, whole in ((opened.rna, read.rna), (opened.adt, read.adt)):
        assert (stored is None) == (whole is None)
        if stored is None:
            continue
        assert stored.slot == whole.slot
        pd.testing.assert_frame_equal(
            stored.var, whole.var, check_like=True, check_names=False, check_column_type=False
        )
        assert same_matrix(sp.vstack(list(stored.blocks())), whole.counts)
        middle = len(stored) // 2
        assert same_matrix(stored.read(middle, len(stored) - 1), whole.counts[middle : len(stored) - 1])


def test_an_open_file_gives_what_reading_it_whole_gives(file_of_each_format: Path):
    if file_of_each_format.name == "cellranger.h5":
        opened, read = open_cells(file_of_each_format), read_cells(file_of_each_format)
        assert same_matrix(opened.rna.read(1, 6), read.rna.counts[1:6])
        assert same_matrix(opened.adt.load().counts, read.adt.counts)
        assert opened.rna.var.index.equals(read.rna.var.index)
    else:
        check_open_equals_read(file_of_each_format)


def test_open_modalities_with_other_orders_give_what_reading_them_gives(tmp_path: Path):
    rna, adt = make_rna(), make_adt()
    path = write(make_mudata(rna=rna[[3, 1, 0, 5]].copy(), adt=adt[[6, 5, 4, 3, 2]].copy()), tmp_path / "a.h5mu")
    check_open_equals_read(path)


@pytest.mark.parametrize("where", ["raw", "counts", "dense", "csc"])
def test_open_files_take_the_same_slot(tmp_path: Path, where: str):
    adata = make_rna()
    counts = adata.X.copy()
    if where == "raw":
        adata.raw = adata.copy()
        adata = adata[:, :4].copy()
        adata.X = adata.X * 0.5
    elif where == "counts":
        adata.layers["counts"], adata.X = counts, counts * 0.5
    else:
        adata.X = counts.toarray() if where == "dense" else counts.tocsc()
    adata.write_h5ad(tmp_path / "a.h5ad")
    check_open_equals_read(tmp_path / "a.h5ad")


def test_every_shared_file_opens_as_it_reads(shared_data: Path):
    for path in sorted(shared_data.glob("*.h5*")):
        check_open_equals_read(path)


def test_damage_that_shows_only_when_rows_are_read_is_refused(tmp_path: Path):
    make_rna().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        file["X/indices"][3] = 99
    opened = open_cells(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"must be a valid sparse matrix"):
        opened.rna.load()
    make_rna().write_h5ad(tmp_path / "b.h5ad")
    with h5py.File(tmp_path / "b.h5ad", "a") as file:
        file["X/indptr"][3] = 1
    with pytest.raises(ValueError, match=r"cannot be read .*`indptr` must lead from 0 to"):
        open_cells(tmp_path / "b.h5ad")


def test_broken_chunks_are_refused(tmp_path: Path):
    make_rna(num_cells=200).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(tmp_path / "a.h5ad") as file:
        where = file["X/data"].id.get_chunk_info(0)
    content = bytearray((tmp_path / "a.h5ad").read_bytes())
    content[where.byte_offset : where.byte_offset + where.size] = bytes(where.size)
    (tmp_path / "a.h5ad").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.h5ad, X.* must be readable, got OSError"):
        open_cells(tmp_path / "a.h5ad")


def test_old_formats_are_not_read_at_a_url(tmp_path: Path):
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.ones((2, 2))
    fsspec.filesystem("memory").put_file(str(tmp_path / "old.h5ad"), "/old/old.h5ad")
    with pytest.raises(ValueError, match=r"`path` must be of a present format to be read at a URL, got 'memory://"):
        open_cells("memory://old/old.h5ad")


@pytest.mark.parametrize("modality", ["rna", "adt"])
def test_one_modality_can_be_asked_for(file_of_each_format: Path, modality):
    cells = read_cells(file_of_each_format, modality=modality)
    assert (cells.rna is None, cells.adt is None) == (modality != "rna", modality != "adt")


def test_the_container_stays_as_read(tmp_path):
    adata = make_rna()
    adata.X.data[0] = 0  # an explicit zero, and unsorted indices
    adata.X.indices[:2], adata.X.data[:2] = adata.X.indices[1::-1].copy(), adata.X.data[1::-1].copy()
    path = write(adata, tmp_path / "a.h5ad")
    container = read_cells(path).container
    np.testing.assert_array_equal(container.X.indices, adata.X.indices)
    np.testing.assert_array_equal(container.X.data, adata.X.data)


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


@pytest.mark.parametrize("names", [["CD4", "CD19", "CD33"], ["x", "y", "z"], ["Gapdh", "Actb", "Cd4"]])
def test_an_unclear_modality_is_refused_and_can_be_told(tmp_path, names):
    path = write(make_rna(names), tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"`modality` cannot be told from the names.*human genes"):
        read_cells(path)
    assert read_cells(path, modality="adt").adt.var.index.tolist() == names


def test_a_modality_that_contradicts_the_names_warns(tmp_path):
    path = write(make_adt(["CD45RA", "CD10", "CD56", "HLA-DR"]), tmp_path / "a.h5ad")
    with pytest.warns(
        UserWarning, match="read as rna as `modality` says, but 0% of the 4 names are human genes and 100%"
    ):
        read_cells(path, modality="rna")


# Where the counts are


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
    np.testing.assert_array_equal(read_cells(path).rna.counts.toarray(), expected.toarray())


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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"\(finite numbers\), got nan \(1 such entries\)"),
        (np.inf, r"\(finite numbers\), got inf"),
        (-3, r"\(non-negative counts\), got -3"),
        (0.25, r"\(whole numbers\), got 0.25"),
        (2.0**25, r"\(counts up to 16,777,216\), got 33554432"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_what_is_no_count_is_named(value, message, make):
    matrix = np.ones((3, 2), dtype=np.float64)
    check_counts(make(matrix), "counts")
    matrix[1, 1] = value
    with pytest.raises(ValueError, match=f"`counts` must hold raw counts {message}"):
        check_counts(make(matrix), "counts")


def test_text_is_no_count():
    with pytest.raises(ValueError, match="`X` must hold numbers, got dtype object"):
        check_counts(np.array([["a"]], dtype=object), "X")


def test_whole_numbers_of_any_type_are_counts():
    for dtype in (bool, np.uint8, np.int32, np.float64):
        check_counts(np.ones((2, 2), dtype=dtype), "X")


# Cells


def test_modalities_in_different_order_are_aligned_by_name(tmp_path):
    rna, adt = make_rna(), make_adt()[[3, 0, 6, 1, 5, 2, 4]].copy()
    cells = read_cells(write(make_mudata(rna=rna, adt=adt), tmp_path / "a.h5mu"))
    for found, adata in ((cells.rna, rna), (cells.adt, adt)):
        np.testing.assert_array_equal(found.counts.toarray(), adata[cells.obs.index].X.toarray())


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


def test_a_cell_without_counts_does_not_have_the_modality(tmp_path):
    rna = make_rna()
    rna.X = sp.csr_matrix(sp.diags([0.0] + [1.0] * 6) @ rna.X)
    cells = read_cells(write(make_mudata(rna=rna, adt=make_adt()), tmp_path / "a.h5mu"))
    assert cells.rna.present.tolist() == [False] + [True] * 6


def test_modalities_without_a_common_cell_are_refused(tmp_path):
    adt = make_adt()
    adt.obs_names = [f"{name}-1" for name in adt.obs_names]
    path = write(make_mudata(rna=make_rna(), adt=adt), tmp_path / "a.h5mu")
    with pytest.raises(ValueError, match=r"none in common.*RNA has names like 'cell0', ADT like 'cell0-1'"):
        read_cells(path)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("kind", ["h5ad", "h5mu"])
def test_repeated_names_of_cells_are_refused(tmp_path, kind):
    rna = make_rna()
    if kind == "h5ad":
        rna.obs_names = ["a", "a", "b", "b", "c", "d", "e"]
        path = write(rna, tmp_path / "a.h5ad")
    else:  # the library writes no such MuData: rename inside the file
        path = write(make_mudata(rna=rna, adt=make_adt()), tmp_path / "a.h5mu")
        with h5py.File(path, "r+") as file:
            index = file["mod/rna/obs"].attrs["_index"]
            file[f"mod/rna/obs/{index}"][:] = ["a", "a", "b", "b", "c", "d", "e"]
    with pytest.raises(ValueError, match=r"`obs_names` must be unique, got 'a' and 1 more|cannot be read"):
        read_cells(path)


def test_annotation_is_merged_without_copies(tmp_path):
    rna, adt = make_rna(), make_adt()
    adt.obs["isotype_counts"] = np.arange(7.0)
    rna.obs["n_counts"], adt.obs["n_counts"] = np.arange(7), np.arange(7) + 1
    mdata = make_mudata(rna=rna, adt=adt)
    mdata.pull_obs()
    mdata.obs["donor"] = pd.Categorical(["x"] * 7)
    cells = read_cells(write(mdata, tmp_path / "a.h5mu"))
    assert sorted(cells.obs.columns) == ["adt:n_counts", "batch", "donor", "isotype_counts", "rna:n_counts"]
    assert cells.obs["adt:n_counts"].tolist() == (np.arange(7) + 1).tolist()
    assert cells.obs.donor.dtype == "category"


# Files that are not what they should be


def test_missing_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must exist, got .*nowhere\.h5ad"):
        read_cells(tmp_path / "nowhere.h5ad")
    (tmp_path / "a.loom").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"`path` must end in one of \.h5ad, \.h5mu, \.h5, \.zarr, got .*a\.loom"):
        read_cells(tmp_path / "a.loom")
    with pytest.raises(ValueError, match="`modality` must be 'auto', 'rna' or 'adt', got 'atac'"):
        read_cells(tmp_path / "a.loom", modality="atac")


@pytest.mark.parametrize("suffix", [".h5ad", ".h5mu", ".h5"])
def test_files_that_are_not_hdf5_or_not_of_the_format_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"barcode,CD4\nA,1\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"`path` must be an HDF5 file, got .* bytes"):
            read_cells(path)
    with h5py.File(path, "w") as file:
        file["something"] = [1, 2]
    with pytest.raises(ValueError, match=r"`path` must be a complete|must have cells|must name at least|must hold"):
        read_cells(path)


def test_directories_that_are_not_zarr_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="`path` must be a file or a zarr directory"):
        read_cells(tmp_path)
    zarr.open_group(tmp_path / "a.zarr", mode="w")
    with pytest.raises(ValueError, match=r"`path` must hold an AnnData or a MuData, got the zarr group .* of type ''"):
        read_cells(tmp_path / "a.zarr")


def test_zarr_with_lost_chunks_is_refused(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, make_rna(), version=3)
    chunks = [
        p for p in (path / "X" / "data").rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")
    ]
    assert len(chunks) == 1
    chunks[0].unlink()
    with pytest.raises(
        ValueError, match=r"`path` must be a complete zarr directory, got .* with 0 of 1 chunks of X/data"
    ):
        read_cells(path)
    shutil.rmtree(path / "X")
    with pytest.raises(ValueError, match=r"`path` must be a complete|must hold raw counts"):
        read_cells(path)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("indices", [99, 1, 2], "`.*X` must be a valid sparse matrix, got one whose indices do not fit"),
        ("indices", [1, 1, 2], "`.*X` must store each entry once, got 1 repeated entries"),
    ],
)
def test_damaged_sparse_matrices_are_refused(tmp_path, key, values, message):
    path = write(make_rna(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file[f"X/{key}"][:3] = values
    with pytest.raises(ValueError, match=message):
        read_cells(path, modality="rna")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_files_without_cells_or_features_are_refused(tmp_path, shape):
    path = write(anndata.AnnData(sp.csr_matrix(shape, dtype=np.float32)), tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"must name at least one cell|must have cells and features, got shape"):
        read_cells(path, modality="rna")


def test_files_without_the_modality_are_refused(tmp_path):
    path = write(make_mudata(atac=make_rna()), tmp_path / "a.h5mu")
    with pytest.raises(ValueError, match=r"modality named rna or gex or adt or prot or protein, got \['atac'\]"):
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
    with pytest.raises(ValueError, match="must be a DataFrame with a column per antibody, got ndarray"):
        read_cells(write(adata, tmp_path / "a.h5ad"))
    adata.obsm["protein_expression"] = pd.DataFrame(index=adata.obs_names)
    with pytest.raises(ValueError, match=r"must have columns, got none|cannot be read"):
        read_cells(write(adata, tmp_path / "b.h5ad"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.9999))
def test_a_truncated_file_is_always_refused(tmp_path, share):
    content = DEMO_FILE.read_bytes()
    path = tmp_path / "cut.h5mu"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="`path` must be"):
        read_cells(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_give_counts_or_a_value_error(tmp_path, data):
    source = tmp_path / "whole.h5ad"
    if not source.exists():
        write_h5ad(source, make_rna(), make_adt())
    content = bytearray(source.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path = tmp_path / "flipped.h5ad"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cells = read_cells(path)
        except ValueError:
            return
    for modality in (cells.rna, cells.adt):
        if modality is not None:
            check_counts(modality.counts, "counts")
