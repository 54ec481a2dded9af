"""Counts that stay in the file: read in the order of cells, and refused where they are damaged."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from make_files import make_adt, make_mudata, make_rna, write

from scfusion_fm.data.files.readers import open_cells, read_cells


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
    with pytest.raises(ValueError, match=r"b.h5ad, X` must have an `indptr` that leads from 0 to"):
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


def test_modalities_in_different_order_are_aligned_by_name(tmp_path):
    rna, adt = make_rna(), make_adt()[[3, 0, 6, 1, 5, 2, 4]].copy()
    cells = read_cells(write(make_mudata(rna=rna, adt=adt), tmp_path / "a.h5mu"))
    for found, adata in ((cells.rna, rna), (cells.adt, adt)):
        np.testing.assert_array_equal(found.counts.toarray(), adata[cells.obs.index].X.toarray())


def test_a_cell_without_counts_does_not_have_the_modality(tmp_path):
    rna = make_rna()
    rna.X = sp.csr_matrix(sp.diags([0.0] + [1.0] * 6) @ rna.X)
    cells = read_cells(write(make_mudata(rna=rna, adt=make_adt()), tmp_path / "a.h5mu"))
    assert cells.rna.present.tolist() == [False] + [True] * 6


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
