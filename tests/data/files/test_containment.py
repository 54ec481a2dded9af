"""Files that lead elsewhere are refused before anything is read of where they lead."""

import os
import socket

import h5py
import numpy as np
import pytest
import zarr
from make_files import make_adt, make_rna, write_10x_h5, write_zarr

from scfusion_fm.data.files.containment import check_hdf5_inside, check_store_inside
from scfusion_fm.data.files.readers import open_cells, read_cells

SECRET = "secret.h5"


def link_to_file(file, folder, place):
    file[place] = h5py.ExternalLink(str(folder / SECRET), "x")


def link_to_place_with_link(file, folder, place):
    file["away"] = h5py.ExternalLink(str(folder / SECRET), "/")
    file[place] = h5py.SoftLink("/away/x")


def lie_outside(file, folder, place):
    file.create_dataset(place, shape=(7,), dtype="i8", external=[(str(folder / SECRET), 0, 56)])


def be_virtual(file, folder, place):
    layout = h5py.VirtualLayout(shape=(7,), dtype="i8")
    layout[:] = h5py.VirtualSource(str(folder / SECRET), "x", shape=(7,))
    file.create_virtual_dataset(place, layout)


WAYS = [link_to_file, link_to_place_with_link, lie_outside, be_virtual]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with h5py.File(folder / SECRET, "w") as file:
        file["x"] = np.arange(7)
    make_rna().write_h5ad(folder / "whole.h5ad")
    return folder


@pytest.mark.parametrize("place", ["obs/secret", "uns/secret", "layers/counts/data", "X/data"])
@pytest.mark.parametrize("way", WAYS)
def test_files_that_read_others_are_refused(folder, tmp_path, way, place):
    path = tmp_path / "a.h5ad"
    path.write_bytes((folder / "whole.h5ad").read_bytes())
    with h5py.File(path, "r+") as file:
        if place in file:
            del file[place]
        way(file, folder, place)
    with pytest.raises(ValueError, match=r"` must (lie in this file|hold its own values), got .* Write everything"):
        open_cells(path)


def test_10x_files_that_read_others_are_refused(folder, tmp_path):
    write_10x_h5(tmp_path / "a.h5", make_rna(), make_adt())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["matrix/barcodes"]
        lie_outside(file, folder, "matrix/barcodes")
    with pytest.raises(ValueError, match="matrix/barcodes` must lie in this file, got values that lie in another file"):
        read_cells(tmp_path / "a.h5")


def test_columns_of_10x_files_that_declare_too_much_are_left_out(tmp_path):
    write_10x_h5(tmp_path / "a.h5", make_rna(), make_adt())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["matrix/features/genome"]
        file.create_dataset("matrix/features/genome", shape=(2**50,), dtype="S6", chunks=(1024,))
    with pytest.warns(UserWarning, match=r"left out, because it is broken: matrix/features/genome\."):
        cells = read_cells(tmp_path / "a.h5")
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())


def test_links_inside_of_a_file_are_fine(folder, tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_bytes((folder / "whole.h5ad").read_bytes())
    with h5py.File(path, "r+") as file:
        file.move("X", "stored")
        file["X"] = h5py.SoftLink("/stored")
        file["uns/nowhere"] = h5py.SoftLink("/nothing/here")
        file["uns/itself"] = h5py.SoftLink("/uns/itself")
    with pytest.warns(UserWarning, match=r"left out, because it is broken: uns/itself, uns/nowhere"):
        cells = read_cells(path)
    np.testing.assert_array_equal(cells.rna.counts.toarray(), make_rna().X.toarray())


@pytest.mark.parametrize("link", [h5py.SoftLink("/uns"), None])
def test_circles_and_endless_depths_are_refused(tmp_path, link):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("uns/inner")
        group["up"] = link or file["uns"]
        with pytest.raises(ValueError, match="uns/inner/up` must not lead back to itself"):
            check_hdf5_inside(file, "a.h5")
        del group["up"]
        for number in range(40):  # 2^40 ways through few groups
            group["left"] = group["right"] = group = file.create_group(f"g{number}")
        with pytest.raises(ValueError, match="must lie in a file of a usual size, got more than"):
            check_hdf5_inside(file, "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_group("/".join("a" * 300))
        with pytest.raises(ValueError, match="must lie in a file of a usual size, got more than"):
            check_hdf5_inside(file, "b.h5")


def test_heaps_in_which_hdf5_would_search_for_ever_are_refused(folder, tmp_path):
    content = bytearray((folder / "whole.h5ad").read_bytes())
    at = content.find(b"GCOL") + 16
    content[at : at + 64] = bytes(64)
    (tmp_path / "a.h5ad").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.h5ad' with a damaged heap at byte {at:,}"):
        read_cells(tmp_path / "a.h5ad")


def test_stores_with_links_out_of_them_are_refused(folder, tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path, make_rna(), version=3)
    (tmp_path / "link.zarr").symlink_to(path)
    assert open_cells(tmp_path / "link.zarr").rna is not None  # which the user named
    for target in (folder / SECRET, path / "obs"):
        (path / "uns" / "secret").symlink_to(target)
        with pytest.raises(ValueError, match=r"uns/secret` must lie in this store, got a symbolic link"):
            read_cells(path)
        (path / "uns" / "secret").unlink()
    os.mkfifo(path / "X" / "pipe")
    with pytest.raises(ValueError, match=r"X/pipe` must be a file, got a pipe, a socket or a device"):
        check_store_inside(str(path))


def test_names_that_leave_a_store_are_refused(tmp_path):
    write_zarr(tmp_path / "a.zarr", make_rna(), version=2)
    write_zarr(tmp_path / "b.zarr", make_rna(), version=2)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+", use_consolidated=False)
    group["obs"].attrs["_index"] = "../../b.zarr/obs/_index"
    with pytest.raises(ValueError, match=r"must have the element '../../b.zarr/obs/_index', got none"):
        open_cells(tmp_path / "a.zarr")


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.h5ad")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        server.bind("b.h5ad")
    for path, kind in (("a.h5ad", "a pipe"), ("b.h5ad", "a socket"), ("/dev/zero", "a device")):
        with pytest.raises(ValueError, match=f"`path` must be a file or a zarr directory, got .*, which is {kind}"):
            read_cells(path)
