"""Objects in place of files: the same counts, and nothing of the object changes."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from make_files import make_adt, make_mudata, make_rna, write, write_zarr

from scfusion_fm.data.files.readers import load_cells, open_cells, read_cells


def assert_same(found, expected):
    for name in ("rna", "adt"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one.counts.toarray(), other.counts.toarray())
            assert one.var.index.equals(other.var.index)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_an_object_gives_what_its_file_gives(suffix, tmp_path):
    rna = make_rna()
    rna.X = sp.csr_matrix(rna.X)
    write_zarr(tmp_path / "a.zarr", rna, version=3) if suffix == ".zarr" else rna.write(tmp_path / "a.h5ad")
    expected = read_cells(tmp_path / f"a{suffix}")
    cells = read_cells(rna)
    assert_same(cells, expected)
    assert cells.container is rna
    assert cells.path == "adata"
    assert_same(load_cells(open_cells(rna)), expected)


def test_a_mudata_gives_what_its_file_gives(tmp_path):
    mdata = make_mudata(rna=make_rna(), adt=make_adt())
    write(mdata, tmp_path / "a.h5mu")
    cells = read_cells(mdata)
    assert_same(cells, read_cells(tmp_path / "a.h5mu"))
    assert cells.container is mdata
    assert cells.path == "mdata"


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, lambda counts: counts.toarray()])
def test_a_backed_object_stays_in_its_file(form, tmp_path):
    rna = make_rna()
    rna.X = form(rna.X)
    rna.write(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    cells = open_cells(backed)
    assert_same(load_cells(cells), read_cells(tmp_path / "a.h5ad"))
    np.testing.assert_array_equal(cells.rna.read(1, 3).toarray(), np.asarray(sp.csr_matrix(rna.X).todense())[1:3])
    backed.file.close()


def test_a_view_is_read_as_it_is_seen():
    rna = make_rna()
    view = rna[[2, 0]]
    np.testing.assert_array_equal(read_cells(view).rna.counts.toarray(), read_cells(rna).rna.counts.toarray()[[2, 0]])
    assert view.is_view


def test_what_is_neither_object_nor_path_is_refused():
    with pytest.raises(ValueError, match="must be an AnnData, a MuData or the path of a file, got ndarray"):
        read_cells(np.ones((3, 3)))
