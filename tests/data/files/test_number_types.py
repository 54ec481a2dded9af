"""Numbers of all types are read as what they are, alike by all readers."""

import warnings

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from make_files import make_rna

from scfusion_fm.data.files.readers import open_cells, read_cells


@pytest.mark.parametrize("dtype", ["f2", ">f2", ">f4", ">f8", ">i4", ">u2", "u8", "u1", "?"])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_counts_of_every_type(tmp_path, dtype, kind):
    adata, path = make_rna(), tmp_path / "a.h5ad"
    dense = adata.X.toarray() if dtype != "?" else (adata.X.toarray() > 2).astype("f4")
    matrix = sp.csr_matrix(dense) if kind == "csr" else sp.csc_matrix(dense)
    adata.X = dense if kind == "dense" else matrix
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        where, key = (file, "X") if kind == "dense" else (file["X"], "data")
        attributes = dict(where[key].attrs)
        del where[key]
        where.create_dataset(key, data=(dense if kind == "dense" else matrix.data).astype(dtype))
        where[key].attrs.update(attributes)
        if kind != "dense":
            pointers = file["X/indptr"][:]
            del file["X/indptr"]
            file["X/indptr"] = pointers.astype(">i8")
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(read_cells(path).rna.counts.toarray(), dense)
        np.testing.assert_array_equal(open_cells(path).rna.load().counts.toarray(), dense)
