"""Sparse matrices whose parts do not fit are refused before compiled code sees them, in every slot and format."""

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from make_files import make_adt, make_mudata, make_rna, write, write_10x_h5, write_zarr

from scfusion_fm.data.files.readers import open_cells, read_cells
from scfusion_fm.data.files.sparse import build_sparse, check_sparse
from scfusion_fm.data.files.stored import store_matrix

WRONG = {
    "index too large": ("indices", lambda old: np.where(np.arange(len(old)) == 3, 10**6, old)),
    "index negative": ("indices", lambda old: np.where(np.arange(len(old)) == 3, -5, old)),
    "indices of fractions": ("indices", lambda old: old.astype("f4")),
    "indices missing": ("indices", lambda old: old[:-1]),
    "pointer too large": ("indptr", lambda old: np.where(np.arange(len(old)) == 2, 2**31 - 1, old)),
    "pointer negative": ("indptr", lambda old: np.where(np.arange(len(old)) == 2, -(2**31), old)),
    "pointers not from 0": ("indptr", lambda old: old + 1),
    "pointers missing": ("indptr", lambda old: old[:-1]),
    "pointers of fractions": ("indptr", lambda old: old.astype("f8")),
    "pointers of two axes": ("indptr", lambda old: np.stack([old, old])),
    "values of two axes": ("data", lambda old: np.stack([old, old])),
    "values missing": ("data", lambda old: old[:-1]),
}


def spoil(group, wrong):
    key, change = WRONG[wrong]
    values, attributes = change(group[key][:]), dict(group[key].attrs)
    del group[key]
    if isinstance(group, h5py.Group):
        group[key] = values
    else:
        group.create_array(key, data=values)
    group[key].attrs.update(attributes)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_counts_that_do_not_fit_are_refused(tmp_path, kind, wrong):
    adata = make_rna()
    adata.X = kind(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        spoil(file["X"], wrong)
    with pytest.raises(ValueError, match=r"a\.h5ad, X.*` must "):
        read_cells(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"a\.h5ad, X.*` must "):
        open_cells(tmp_path / "a.h5ad").rna.load()


@pytest.mark.parametrize("wrong", ["index too large", "pointer negative"])
@pytest.mark.parametrize("slot", ["X", "layers/counts", "raw/X", "mod/rna/X", "zarr", "matrix"])
def test_columns_are_checked_in_every_slot(tmp_path, slot, wrong):
    adata = make_rna()
    adata.X = sp.csc_matrix(adata.X)
    name = {"mod/rna/X": "a.h5mu", "zarr": "a.zarr", "matrix": "a.h5"}.get(slot, "a.h5ad")
    path, place = tmp_path / name, "X" if slot == "zarr" else slot
    if slot == "layers/counts":
        adata.layers["counts"] = adata.X.copy()
    elif slot == "raw/X":
        adata.raw = adata.copy()
    if slot == "zarr":
        write_zarr(path, adata, version=3)
        spoil(zarr.open_group(path, mode="r+", use_consolidated=False)[place], wrong)
    else:
        if slot == "matrix":
            write_10x_h5(path, make_rna(), make_adt())
        else:
            write(make_mudata(rna=adata, adt=make_adt()) if slot == "mod/rna/X" else adata, path)
        with h5py.File(path, "r+") as file:
            spoil(file[place], wrong)
    with pytest.raises(ValueError, match=f"{place}.*` must "):
        read_cells(path)


@pytest.mark.parametrize("slot", ["layers/other", "obsp/near", "uns/table"])
def test_what_is_not_needed_is_checked_and_left_out(tmp_path, slot):
    adata, matrix = make_rna(), sp.csc_matrix(np.eye(7))
    adata.layers["other"], adata.obsp["near"] = sp.csc_matrix(adata.X), matrix
    adata.uns["table"] = matrix
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        spoil(file[slot], "index too large")
    with pytest.warns(UserWarning, match=f"left out, because it is broken: {slot}"):
        container = read_cells(tmp_path / "a.h5ad").container
    part, key = slot.split("/")
    assert key not in getattr(container, part)


def test_matrices_in_memory_are_checked():
    matrix = sp.csc_matrix(np.eye(4, 3))
    check_sparse(matrix, "m")
    matrix.indices[1] = 7
    with pytest.raises(ValueError, match="`matrix` must be a valid sparse matrix, got one whose indices do not fit"):
        store_matrix(matrix)
    matrix.indices = matrix.indices[:-1]
    with pytest.raises(ValueError, match="`m` must have an index for each value"):
        check_sparse(matrix, "m")


def test_numbers_without_sign_and_of_few_bits_are_indices():
    parts = (np.ones(2), np.array([1, 0], dtype="u1"), np.array([0, 1, 2], dtype="u8"))
    np.testing.assert_array_equal(build_sparse(parts, (2, 2), "csr", "m").toarray(), [[0, 1], [1, 0]])
