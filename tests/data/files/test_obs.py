"""Annotation of cells: one table of all modalities, with names that are unique."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from make_files import make_adt, make_mudata, make_rna, write
from missing_values import WITHOUT_VALUE

from scfusion_fm.data.files.obs import merge_obs
from scfusion_fm.data.files.readers import read_cells


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
            names = np.array(["a", "a", "b", "b", "c", "d", "e"], dtype=object)
            anndata.io.write_elem(file["mod/rna/obs"], index, names)
    with pytest.raises(ValueError, match=r"`obs_names` must be unique, got 'a' and 1 more|cannot be read"):
        read_cells(path)


@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_columns_with_missing_values_are_merged_where_they_agree(missing):
    column = WITHOUT_VALUE[missing].set_axis(["a", "b", "c"])
    same = merge_obs(pd.DataFrame(index=list("abc")), {"rna": column.to_frame("x"), "adt": column.to_frame("x")})
    assert list(same.columns) == ["x"]
    other = column[::-1].set_axis(["a", "b", "c"])
    differs = merge_obs(pd.DataFrame(index=list("abc")), {"rna": column.to_frame("x"), "adt": other.to_frame("x")})
    assert list(differs.columns) == ["rna:x", "adt:x"]


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")  # of mudata, with pandas 3.1
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
