"""What is wrong with a file is told with its remedy, and what nothing depends on does not stop a run."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from make_files import make_adt, make_mudata, make_rna, write, write_zarr

from scfusion_fm.data.files.arrays import close_files
from scfusion_fm.data.files.broken import explain_element, explain_file
from scfusion_fm.data.files.readers import open_cells, read_cells

WRITER = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); input()"


def test_a_file_that_another_program_writes_is_named_so(tmp_path):
    path = write(make_rna(), tmp_path / "a.h5ad")
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        for read in (read_cells, open_cells):
            with pytest.raises(ValueError, match=r"which is open for writing in another program. Close it"):
                read(path)
        writer.communicate("\n")
    read_cells(path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError("no"), "which you may not read"),
        (MemoryError("1 GiB"), "must fit into memory"),
        (OSError("truncated file: eof = 3"), "which is cut off .* Copy it again"),
        (OSError("required filter 'zstd' is not registered"), "pip install hdf5plugin"),
        (KeyError("X"), "which cannot be read .* Write it again"),
    ],
)
def test_errors_of_libraries_are_told_with_a_remedy(error, told):
    with pytest.raises(ValueError, match=told):
        raise explain_file("a.h5ad", ".h5ad", error)
    with pytest.raises(ValueError, match=r"`a.h5ad, X` must (be readable|fit into memory|be compressed)"):
        raise explain_element("a.h5ad, X", error)


def test_a_filter_that_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    path = write(make_rna(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        values = file["X/data"][:]
        del file["X/data"]
        file["X"].create_dataset("data", data=values, compression="lzf")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != h5py.h5z.FILTER_LZF)
    with pytest.raises(ValueError, match=r"X/data` must be .*, got the HDF5 filter 32000 \(lzf\). Run `pip"):
        read_cells(path)


def test_other_formats_are_told_what_to_do(tmp_path):
    path = write(make_rna(), tmp_path / "a.h5ad")
    for name in ("a.h5ad.gz", "b.h5ad"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(ValueError, match="It is compressed: `gunzip` it"):
            read_cells(tmp_path / name)
    (tmp_path / "mtx").mkdir()
    (tmp_path / "mtx" / "matrix.mtx.gz").touch()
    with pytest.raises(ValueError, match=r"holds no zarr group. Make it one file: `scanpy.read_10x_mtx\("):
        read_cells(tmp_path / "mtx")
    write_zarr(tmp_path / "s.zarr" / "tables" / "cells", make_rna(), version=3)
    zarr.create_group(tmp_path / "s.zarr", overwrite=False)
    zarr.create_group(tmp_path / "s.zarr" / "tables", overwrite=False)
    with pytest.raises(ValueError, match=r"It looks like SpatialData: give .*s.zarr/tables/cells\."):
        read_cells(tmp_path / "s.zarr")


def test_values_that_are_references_or_pickles_are_refused(tmp_path):
    path = write(make_rna(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        file["X"].create_dataset("data", data=[file["obs"].ref] * 42, dtype=h5py.ref_dtype)
    with pytest.raises(ValueError, match="X/data` must hold values, got references to other elements"):
        open_cells(path)
    write_zarr(tmp_path / "a.zarr", make_rna(), version=2)
    file = next((tmp_path / "a.zarr" / "var" / "_index").rglob(".zarray"))
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"compressor": {"id": "pickle"}}))
    with pytest.raises(ValueError, match=r'var\["_index"\].*` must hold plain values, got pickled objects'):
        open_cells(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_stored_zeros_that_zarr_leaves_out_are_read(tmp_path, version):
    adata, path = make_rna(num_cells=40), tmp_path / "a.zarr"
    adata.layers["ambient"] = adata.X * 0  # keeps its indices
    adata.X.data[:100] = 0
    write_zarr(path, adata, version)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    values = adata.X.data
    del group["X/data"]
    group["X"].create_array("data", shape=values.shape, dtype=values.dtype, chunks=(40,))[:] = values
    cells = read_cells(path)
    np.testing.assert_array_equal(cells.rna.counts.toarray(), adata.X.toarray())
    assert cells.container.layers["ambient"].nnz == adata.X.nnz


def test_cut_chunks_are_named(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, make_rna(), version=3)
    for chunk in (path / "X" / "data" / "c").rglob("*"):
        os.truncate(chunk, 5)
    with pytest.raises(ValueError, match=r"a\.zarr, X/data` must be readable, got"):
        read_cells(path)


def test_broken_columns_of_obs_and_other_parts_are_left_out_and_named(tmp_path):
    adata = make_rna()
    adata.obs["score"] = np.arange(7.0)
    adata.varm["pca"] = np.ones((6, 2))
    adata.uns = {"deep": {"a": np.arange(3), "b": "kept"}, "nothing": None}
    path = write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs/batch/codes"]
        file["uns/deep/a"].attrs["encoding-type"] = "unheard-of"
        del file["varm/pca"]
        file["varm/pca"] = np.ones((7, 2))
    with pytest.warns(UserWarning, match=r'broken: obs\["batch"\], varm/pca, uns/deep/a\. `.*a\.h5ad, obs\["batch"\]`'):
        cells = read_cells(path)
    assert list(cells.container.obs.columns) == list(cells.obs.columns) == ["score"]
    assert cells.container.uns["deep"] == {"b": "kept"}
    assert "pca" not in cells.container.varm
    with h5py.File(path, "r+") as file:
        file["var"].attrs["column-order"] = ["absent"]
    with pytest.raises(ValueError, match=r'var\["absent"\]` must have the element \'absent\', got none'):
        open_cells(path)


@pytest.mark.parametrize(
    ("place", "values", "told"),
    [
        ("obs/_index", None, r'obs\["_index"\]` must have the element'),
        ("X", np.ones((7, 5)), "X` must have the shape 7 x 6, got 7 x 5"),
        ("X", np.ones(7), "X` must have the shape 7 x 6, got 7"),
        ("var", np.ones(7), "var` must be a table, got ndarray"),
    ],
)
def test_what_everything_depends_on_is_refused(tmp_path, place, values, told):
    path = write(make_rna(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file[place]
        if values is not None:
            file[place] = values
    for read in (read_cells, open_cells):
        with pytest.raises(ValueError, match=told):
            read(path)


def test_matrices_of_no_known_kind_are_refused(tmp_path):
    path = write(make_rna(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-type"] = "coo_matrix"
    with pytest.raises(ValueError, match="X` must be a dense, CSR or CSC matrix, got 'coo_matrix'"):
        open_cells(path)
    close_files()
    with h5py.File(path, "r+") as file:
        file["X"].attrs.update({"encoding-type": "csr_matrix", "shape": [7, 6, 1]})
    with pytest.raises(ValueError, match=r"X` must have rows and columns, got the shape \(7, 6, 1\)"):
        open_cells(path)


def test_broken_parts_of_a_mudata_are_made_anew(tmp_path):
    path = write(make_mudata(rna=make_rna(), adt=make_adt()), tmp_path / "a.h5mu")
    whole = read_cells(path).container
    with h5py.File(path, "r+") as file:
        del file["var/_index"]
        file["obsmap/rna"][2] = 99
    with pytest.warns(UserWarning, match="left out, because it is broken: var, .*obsmap"):
        container = read_cells(path).container
    assert container.var_names.equals(whole.var_names)
    assert container.obsmap["rna"].max() == 7


@pytest.mark.parametrize(
    ("slot", "values", "told"),
    [
        ("X", np.ones((7, 6, 2)), r"a\.h5ad, X` must (be a matrix|have rows and columns), got .*\(7, 6, 2\)"),
        ("raw/X", None, "raw/X` must be a (dense|matrix)"),
        ("varm/pca", None, "varm/pca` must be a matrix or a table, got a group of elements"),
    ],
)
def test_matrices_beside_the_counts_may_be_anything(tmp_path, slot, values, told):
    adata = make_rna()
    adata.layers["counts"], adata.raw, adata.varm["pca"] = adata.X.copy(), adata.copy(), np.ones((6, 2))
    path = write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file[slot]
        if values is None:
            file.create_group(f"{slot}/inner")
        else:
            file[slot] = values
    with pytest.warns(UserWarning, match=told):
        cells = read_cells(path)
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())


def test_a_modality_that_is_not_read_may_be_broken(tmp_path):
    atac = make_rna([f"chr1:{i}00-{i}50" for i in range(6)])
    path = write(make_mudata(rna=make_rna(), adt=make_adt(), atac=atac), tmp_path / "a.h5mu")
    with h5py.File(path, "r+") as file:
        file["mod/atac/X/indptr"][3] = -1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cells = read_cells(path)
    assert any("left out, because it is broken: mod/atac/X." in str(warning.message) for warning in told)
    assert cells.container.mod["atac"].X is None
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())


def test_old_files_are_checked_before_the_libraries_read_them(tmp_path):
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"h5sparse_format": "csc", "h5sparse_shape": [2, 2]})
        for key, values in (("data", [1.0, 2.0]), ("indices", [0, 9]), ("indptr", [0, 1, 2])):
            group[key] = values
    with pytest.raises(ValueError, match=r"old.h5ad, X` must be a valid sparse matrix, got one whose"):
        open_cells(path)


def test_a_file_can_be_written_anew_after_it_was_read(tmp_path):
    path = write(make_rna(), tmp_path / "a.h5ad")
    read_cells(path)
    write(make_rna(num_cells=5), path)
    assert len(read_cells(path).obs) == 5
    shutil.rmtree(tmp_path)


def test_all_of_a_table_is_read_as_anndata_reads_it(tmp_path):
    adata = make_rna()
    adata.obs["category"] = pd.Categorical(list("abcabca"), categories=list("cba"), ordered=True)
    adata.obs["flag"] = pd.array([True, None] * 3 + [False], dtype="boolean")
    adata.obs["whole"] = pd.array([1, None] * 3 + [3], dtype="Int64")
    if int(version("anndata").split(".")[1]) < 13:  # later ones write no such name
        adata.obs["CD4/CD8"] = 1.5
    adata.obs.index.name = "cell"
    adata.var.index.name = "gene"
    with warnings.catch_warnings(action="ignore"):  # of the slash
        path = write(adata, tmp_path / "a.h5ad")
    found = read_cells(path).container
    pd.testing.assert_frame_equal(
        found.obs, type(adata)(obs=adata.obs).obs, check_column_type=False, check_categorical=False
    )
    assert found.obs["category"].cat.ordered
    assert found.var.index.name == "gene"
