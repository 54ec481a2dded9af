"""What a small file declares is not believed."""

import h5py
import numpy as np
import pytest
from make_files import make_rna, write_zarr

from scfusion_fm.data.files import sizes
from scfusion_fm.data.files.readers import open_cells, read_cells

HUGE = 2**36


def make_file(folder):
    adata = make_rna()
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    adata.layers["other"] = adata.X.copy()
    adata.varm["pca"] = np.ones((6, 2))
    adata.uns["numbers"] = np.arange(3)
    adata.write_h5ad(folder / "a.h5ad")
    return folder / "a.h5ad"


def declare(path, place, shape, dtype="f4", **facts):
    with h5py.File(path, "r+") as file:
        attributes = dict(file[place].attrs) if place in file else {}
        if place in file:
            del file[place]
        file.create_dataset(place, shape=shape, dtype=dtype, **facts).attrs.update(attributes)


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        ("X/indptr", (HUGE,)),
        ("X/data", (HUGE,)),
        ("obs/_index", (HUGE,)),
        ("var/_index", (HUGE,)),
    ],
)
def test_what_is_needed_and_declares_too_much_is_refused(tmp_path, place, shape):
    path = make_file(tmp_path)
    declare(path, place, shape, chunks=(1024,))
    for read in (open_cells, read_cells):
        with pytest.raises(
            ValueError, match=r"a\.h5ad, (X|obs|var).* must (fit into memory|have the shape|have an index)"
        ):
            read(path)


@pytest.mark.parametrize(
    ("place", "shape", "named"),
    [
        ("obs/batch/codes", (HUGE,), r'obs\["batch"\]'),
        ("obs/batch/categories", (HUGE,), r'obs\["batch"\]'),
        ("layers/other/indptr", (HUGE,), "layers/other"),
        ("layers/other/indices", (HUGE,), "layers/other"),
        ("varm/pca", (HUGE, 2), "varm/pca"),
        ("varm/pca", (6, HUGE), "varm/pca"),
        ("uns/numbers", (HUGE,), "uns/numbers"),
    ],
)
def test_what_is_not_needed_and_declares_too_much_is_left_out(tmp_path, place, shape, named):
    path = make_file(tmp_path)
    declare(path, place, shape, dtype="i1", chunks=(1024,) if len(shape) == 1 else (6, 2))
    with pytest.warns(UserWarning, match=f"left out, because it is broken: {named}"):
        cells = read_cells(path)
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())


def test_what_is_stored_in_too_few_bytes_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "SMALL_BYTES", 1000)
    path = make_file(tmp_path)
    declare(path, "uns/numbers", (100_000,), chunks=(1024,))
    write_zarr(tmp_path / "a.zarr", make_rna(), version=3)
    with pytest.warns(UserWarning, match=r"uns/numbers` must declare what is stored, got .* declared by 0 bytes"):
        assert "numbers" not in read_cells(path).container.uns


def test_the_sum_of_what_is_declared_must_be_likely(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "ANY_BYTES", 10_000)
    monkeypatch.setitem(sizes.MOST_EXPANSION, h5py.Dataset, 0)
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file["uns/a"] = np.zeros(1000)
        file["uns/b"] = file["uns/a"]
    with pytest.warns(UserWarning, match=r"broken: uns/b\. .*uns/b` must declare what is stored, got .* declared by"):
        assert "a" in read_cells(path).container.uns
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = np.zeros((7, 6))
        file["layers/counts"] = file["X"]
    monkeypatch.setattr(sizes, "ANY_BYTES", 900)
    with pytest.raises(ValueError, match=r"declare what is stored"):
        open_cells(path)


def test_all_of_a_file_must_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "available_bytes", lambda: 100)
    with pytest.raises(ValueError, match=r"must fit into memory, got 0 MiB declared, with 0 MiB to be had"):
        read_cells(make_file(tmp_path))


def test_memory_is_known():
    assert 2**20 < sizes.available_bytes() < 2**50


def test_chunks_that_are_much_larger_than_the_array_are_refused(tmp_path):
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        file["X"].create_dataset("data", shape=(42,), dtype="f4", chunks=(2**28,), maxshape=(None,))
    with pytest.raises(ValueError, match=r"X/data` must have chunks of its own size, got chunks of 1,073,741,824"):
        open_cells(path)


def test_filters_upon_filters_are_refused(tmp_path):
    path = make_file(tmp_path)
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((42,))
    settings.set_deflate(9)
    settings.set_deflate(9)
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        h5py.h5d.create(file["X"].id, b"data", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((42,)), settings)
    with pytest.raises(ValueError, match=r"X/data` must be compressed once, got 2 filters"):
        open_cells(path)
