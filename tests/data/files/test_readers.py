"""Reading files: every format gives the same cells, and what is no whole file is refused."""

import shutil
import warnings
from pathlib import Path

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
        ValueError, match=r"a.zarr, X` must have all its chunks, got 42 absent values in X/data.*write_empty_chunks"
    ):
        read_cells(path)
    shutil.rmtree(path / "X")
    with pytest.raises(ValueError, match=r"`path` must be a complete|must hold raw counts"):
        read_cells(path)


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
