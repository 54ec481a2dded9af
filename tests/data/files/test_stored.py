"""Parts of an AnnData: opened when they are asked for, the same in memory and in files."""

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from make_files import make_rna, write_zarr

from scfusion_fm.data.files.elements import ElementReader
from scfusion_fm.data.files.opened import open_anndata
from scfusion_fm.data.files.stored import StoredTable, store_anndata

BROKEN = "must have the element .*, got none. Write the file again"


def make_full():
    """Give an AnnData with something in every slot."""
    adata = make_rna()
    adata.layers["spliced"] = adata.X * 2
    adata.obsm["table"] = pd.DataFrame({"CD3": 1, "b c": np.arange(7)}, index=adata.obs_names)
    adata.obsm["array"] = np.ones((7, 2))
    adata.obsm["sparse"] = sp.csr_matrix(np.eye(7, 3))
    adata.uns |= {"names": np.array(["a", "b"]), "list": ["c"], "number": 3, "nested": {"x": 1}, "table": np.eye(2)}
    return adata


@pytest.fixture(params=["memory", "full.h5ad", "full.zarr"])
def stored(request, tmp_path):
    adata, path = make_full(), tmp_path / request.param
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
        with h5py.File(path) as file:
            yield open_anndata(ElementReader(str(path)), file)
    elif path.suffix == ".zarr":
        write_zarr(path, adata, version=3)
        yield open_anndata(ElementReader(str(path)), zarr.open_group(path, mode="r"))
    else:
        yield store_anndata(adata)


def test_all_slots_are_there_in_memory_and_in_files(stored):
    assert set(stored.layers) == {"spliced"}
    assert (stored.layers["spliced"].rows(0, 7) != make_rna().X * 2).nnz == 0
    table = stored.obsm["table"]
    assert isinstance(table, StoredTable)
    assert table.names == ["CD3", "b c"] == list(table.read().columns)
    assert stored.obsm["array"].shape == (7, 2)
    np.testing.assert_array_equal(stored.obsm["sparse"].rows(0, 7).toarray(), np.eye(7, 3))
    assert {key: stored.uns[key] for key in stored.uns} == {"names": ["a", "b"], "list": ["c"]}
    assert "absent" not in stored.obsm


def test_what_is_broken_is_named_by_who_asks_for_it(tmp_path):
    make_full().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file["layers/spliced/indptr"], file["obsm/table/CD3"], file["obsm/sparse/data"]
    with h5py.File(tmp_path / "a.h5ad") as file:
        stored = open_anndata(ElementReader(str(tmp_path / "a.h5ad")), file)
        assert stored.obsm["array"].shape == (7, 2)
        with pytest.raises(ValueError, match=f"layers/spliced` {BROKEN}"):
            _ = stored.layers["spliced"]
        with pytest.raises(ValueError, match=f"obsm/sparse` {BROKEN}"):
            _ = stored.obsm["sparse"]
        with pytest.raises(ValueError, match=rf'obsm/table\["CD3"\]` {BROKEN}'):
            stored.obsm["table"].read()
