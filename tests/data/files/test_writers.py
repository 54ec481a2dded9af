"""Files that are written again: all that can be is kept, the rest is refused before any work, nothing half-written."""

import datetime
import shutil
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import zarr
from make_files import make_adt, make_mudata, make_rna

from scfusion_fm.data.files import writers
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.files.writers import check_added, check_writable, write_container

pytestmark = pytest.mark.filterwarnings("ignore:.*(pull_on_update|Observation names).*")


def with_column(values):
    adata = make_rna()
    adata.obs["new"] = values
    return adata


def with_uns(value):
    adata = make_rna()
    adata.uns["new"] = value
    return adata


def with_obs_columns(names):
    adata = make_rna()
    adata.obs = pd.DataFrame(np.ones((adata.n_obs, len(names))), index=adata.obs_names, columns=names)
    return adata


def with_obsm(key, value):
    adata = make_rna()
    adata.obsm[key] = value
    return adata


def named_index(adata):
    adata.obs.index.name = "batch"
    return adata


SEVEN = pd.array(["a", "b", "c", "d", "e", "f", None])
REFUSED = {
    "dates": (with_column(pd.date_range("2020", periods=7)), r"`obs\['new'\]`"),
    "text and numbers": (with_column(["a", 1, "b", 2, "c", 3, "d"]), r"`obs\['new'\]`"),
    "repeated columns": (with_obs_columns(["x", "x"]), "`obs`"),
    "columns of numbers": (with_obs_columns([1, 2]), r"`obs\[1\]`"),
    "index named as another column": (named_index(make_rna()), "`obs`|`obs.*batch"),
    "a function": (with_uns({"deep": print}), r"`uns\['new'\]\['deep'\]`"),
    "a date": (with_uns(datetime.date(2020, 1, 1)), r"`uns\['new'\]`"),
    "a key of a number": (with_uns({1: "x"}), r"`uns\['new'\]\[1\]`"),
    "a matrix with a slash": (with_obsm("a/b", np.ones((7, 2))), r"`obsm\['a/b'\]` must have a name without '/'"),
    "a matrix of objects": (with_obsm("new", np.full((7, 2), None)), r"`obsm\['new'\]`"),
    "in a modality": (make_mudata(rna=with_uns({1, 2}), adt=make_adt()), r"`mod/rna/uns\['new'\]`"),
}


def with_named_index():
    adata = make_rna()
    adata.obs["new"] = adata.obs_names
    adata.obs.index.name = "new"
    return adata


KEPT = {
    "the index as a column of its name": with_named_index,
    "nullable text": lambda: with_column(SEVEN),
    "text with gaps": lambda: with_column(["a", None, "b", "a", "c", "d", "e"]),
    "nullable whole numbers": lambda: with_column(pd.array([1, 2, None, 4, 5, 6, 7], dtype="Int64")),
    "nullable truths": lambda: with_column(pd.array([True, None, False] + [True] * 4, dtype="boolean")),
    "categories": lambda: with_column(pd.Categorical(["x", None, "y", "x", "y", "x", "x"])),
    "a table in uns": lambda: with_uns(pd.DataFrame({"x": [1, 2]})),
    "in a modality": lambda: make_mudata(rna=with_column(SEVEN), adt=make_adt()),
}


def suffix_of(container):
    return ".h5mu" if isinstance(container, md.MuData) else ".h5ad"


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_named_before_any_work(case, tmp_path):
    container, message = REFUSED[case]
    for suffix in (suffix_of(container), ".zarr"):
        with pytest.raises(ValueError, match=message):
            check_writable(container, tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_zarr", [False, True])
@pytest.mark.parametrize("case", KEPT)
def test_what_can_be_written_comes_back(case, is_zarr, tmp_path):
    container = KEPT[case]()
    output = tmp_path / f"out{'.zarr' if is_zarr else suffix_of(container)}"
    container.obsm["added"] = np.full((7, 3), np.nan, dtype=np.float32)
    container.obs["named"] = pd.Categorical(["a", None, "b", "a", "b", "a", "a"])
    check_writable(container, output)
    write_container(container, output, [("obsm", "added"), ("obs", "named")])
    assert list(tmp_path.iterdir()) == [output]
    after = read_cells(output).container
    for before, now in ((container, after), *((container.mod[k], after.mod[k]) for k in getattr(container, "mod", {}))):
        if "new" in before.obs:
            missing = before.obs["new"].isna()
            assert now.obs["new"].isna().tolist() == missing.tolist()
            assert now.obs["new"][~missing].tolist() == before.obs["new"][~missing].tolist()
        assert set(now.uns) == set(before.uns)


def test_reserved_column_is_renamed_with_a_warning(tmp_path):
    adata = make_rna()
    adata.raw = adata.copy()
    adata.raw.var["_index"] = adata.raw.var_names
    adata.raw.var.index.name = "index_"
    with pytest.warns(UserWarning, match="raw/var: the column '_index' .* written as 'index__'"):
        check_writable(adata, tmp_path / "out.h5ad")
    write_container(adata, tmp_path / "out.h5ad", [])
    assert ad.read_h5ad(tmp_path / "out.h5ad").raw.var["index__"].tolist() == list(adata.var_names)


@pytest.mark.parametrize("key", ["a/b", "", " ", "_index", ".", "x\0y", "a\x1b[31m", "\u202e", "\ud800"])
def test_names_that_a_file_cannot_hold_are_refused(key):
    with pytest.raises(ValueError, match="`key_added` must be a printable name without '/'"):
        check_added(make_rna(), [("obsm", key)])


def test_names_that_are_taken_are_refused():
    adata = make_rna()
    adata.obs.index.name = "barcode"
    with pytest.raises(ValueError, match=r"`obs\['batch'\]` is already in the input"):
        check_added(adata, [("obs", "batch")])
    with pytest.raises(ValueError, match="`key_added` must not be the name of the index of obs, got 'barcode'"):
        check_added(adata, [("obs", "barcode")])


def test_suffix_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"`output` must end in \.h5ad or \.zarr for this input"):
        check_writable(make_rna(), tmp_path / "out.h5mu")


def test_full_disk_is_told_before_any_work(monkeypatch, tmp_path):
    adata = make_rna()
    full = shutil._ntuple_diskusage(10**12, 10**12, adata.X.data.nbytes)
    monkeypatch.setattr(writers.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ValueError, match=r"`output` needs 0\.0 GB, but .* has 0\.0 GB left"):
        check_writable(adata, tmp_path / "out.h5ad")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_store_comes_back_in_its_format(zarr_format, tmp_path):
    with warnings.catch_warnings(action="ignore"), ad.settings.override(zarr_write_format=zarr_format):
        make_rna().write_zarr(tmp_path / "in.zarr")
    found = writers.zarr_format_of(tmp_path / "in.zarr")
    write_container(make_rna(), tmp_path / "out.zarr", [], found)
    assert zarr.open_group(tmp_path / "out.zarr", mode="r").metadata.zarr_format == found == zarr_format
    assert writers.zarr_format_of(tmp_path / "file.h5ad") is None


def test_output_that_comes_back_otherwise_is_not_kept(monkeypatch, tmp_path):
    adata = make_rna()
    adata.obsm["added"] = np.ones((7, 2))

    def lose(path):
        changed = adata.copy()
        changed.obsm["added"][3, 1] = 2
        changed.write_h5ad(path)

    monkeypatch.setattr(adata, "write", lose, raising=False)
    with pytest.raises(ValueError, match="`output` must hold what was written, but obsm/added"):
        write_container(adata, tmp_path / "out.h5ad", [("obsm", "added")])
    assert list(tmp_path.iterdir()) == []


def test_tables_that_no_file_can_hold_are_named():
    tables = {"obs": with_column(pd.date_range("2020", periods=7)).obs, "var": make_rna().var}
    (found,) = writers.find_unwritable(tables.items())
    assert found.startswith("`obs['new']` must be something that a file can hold")
