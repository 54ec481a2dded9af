"""Files and stores, and the arrays in them: opened once, checked, and read when they are asked for."""

from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from scfusion_fm.data.files.broken import BrokenFileError, name_of, naming, refuse_element
from scfusion_fm.data.locations import file_system, is_remote, zarr_store

Array = h5py.Dataset | zarr.Array
Group = h5py.Group | zarr.Group
MAX_OPEN = 8
LARGE_CHUNK = 2**26
_open: dict[tuple, h5py.File | zarr.Group] = {}


def open_root(location: str) -> h5py.File | zarr.Group:
    """Open a file or store for reading, once per process."""
    facts = None if is_remote(location) else Path(location).stat()
    key = (location, facts and facts.st_mtime_ns, facts and facts.st_ino)  # another file may come to the same path
    if key not in _open:
        if len(_open) >= MAX_OPEN:
            _open.pop(next(iter(_open)))
        _open[key] = _open_root(location)
    return _open[key]


def close_files() -> None:
    """Close the files that this process has open, so that they can be written anew."""
    while _open:
        root = _open.popitem()[1]
        if isinstance(root, h5py.File):
            root.close()


def _open_root(location: str) -> h5py.File | zarr.Group:
    fs, path = file_system(location)
    if fs.isdir(path):
        # What is consolidated is read at a URL, where listing is slow or impossible; here it may contradict the arrays.
        return zarr.open_group(zarr_store(location), mode="r", use_consolidated=None if is_remote(location) else False)
    return h5py.File(fs.open(path, "rb") if is_remote(location) else path, "r")


class FileArray:
    """
    Name an array of numbers in a file, which is opened when it is read; can be sent to other processes.

    What is read is as the machine computes with: of its own byte order, float32 in place of float16.

    Parameters
    ----------
    location
        Path or URL of the file.
    array
        The array, as opened here.

    Raises
    ------
    ValueError
        If it holds no plain values, or is packed in a way that cannot be read here.
    """

    def __init__(self, location: str, array: Array):
        check_array(array, name_of(location, array))
        self.location, self.name = location, array.name
        self.shape, self.dtype = tuple(array.shape or ()), plain_type(array.dtype)

    def __getitem__(self, key: Any) -> NDArray:
        with naming(f"{self.location}, {self.name.strip('/')}"):
            return open_root(self.location)[self.name][key].astype(self.dtype, copy=False)

    def count_absent(self) -> int:
        """Count the values of chunks that a zarr store does not have, which read as zeros; of one dimension."""
        array = open_root(self.location)[self.name]
        if not isinstance(array, zarr.Array):
            return 0
        absent, length = array.nchunks - array.nchunks_initialized, array.chunks[0]
        last = self.shape[0] % length
        if absent and last and not np.any(self[-last:]):  # the last chunk is shorter
            return (absent - 1) * length + last
        return absent * length


def plain_type(dtype: Any) -> np.dtype:
    """Give the type in which values are computed with."""
    if dtype.kind not in "biuf":
        return dtype
    return np.dtype("f4") if dtype.kind == "f" and dtype.itemsize == 2 else dtype.newbyteorder("=")


def check_array(array: Array, name: str) -> None:
    """
    Check that the values of an array are in it, and can be unpacked here.

    Raises
    ------
    ValueError
        If they are references or objects of Python, packed by a filter that is not installed, or in chunks much larger
        than the array.
    """
    chunk, whole = (prod(shape) * array.dtype.itemsize for shape in (array.chunks or (), array.shape or ()))
    if chunk > max(LARGE_CHUNK, 8 * whole):  # each is unpacked whole, however little of it is read
        raise refuse_element(name, "have chunks of its own size", f"chunks of {chunk:,} bytes for {whole:,}")
    if isinstance(array, h5py.Dataset):
        if h5py.check_ref_dtype(array.dtype) is not None:
            raise refuse_element(name, "hold values", "references to other elements")
        _check_filters(array, name)
        return
    facts = str(array.metadata.to_dict())
    if "pickle" in facts:
        raise refuse_element(name, "hold plain values", "pickled objects, which can run anything")


def _check_filters(array: h5py.Dataset, name: str) -> None:
    settings = array.id.get_create_plist()
    filters = [settings.get_filter(i) for i in range(settings.get_nfilters())]
    for code, *_, label in filters:
        if not h5py.h5z.filter_avail(code):
            with suppress(ImportError):
                import hdf5plugin  # noqa: F401  brings the filters of other programs, where it is installed
        if not h5py.h5z.filter_avail(code):
            packed = label.decode(errors="replace").split(";")[0] or "an unknown filter"
            raise refuse_element(
                name,
                "be compressed in a way that is installed",
                f"the HDF5 filter {code} ({packed})",
                "Run `pip install hdf5plugin`, which is then used, or write the file again with compression='gzip'",
            )
    packers = [code for code, *_ in filters if code not in (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)]
    if len(packers) > 2 or len(set(packers)) < len(packers):  # each can unpack to a thousand times as much
        raise refuse_element(name, "be compressed once", f"{len(packers)} filters")


def text_of(value: Any) -> str:
    """Give an attribute as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def keys_of(group: Any) -> list[str]:
    """List the elements of a group, broken ones too."""
    try:
        return list(group)
    except Exception:  # zarr lists none where the metadata of one is broken; their directories have names all the same
        folder = getattr(getattr(getattr(group, "store", None), "root", None), "joinpath", None)
        if folder is None:
            raise
        return sorted(entry.name for entry in folder(group.path).iterdir() if entry.is_dir())


def modalities_of(mod: Any) -> list[str]:
    """List the modalities of a MuData in their order."""
    names = [text_of(name) for name in mod.attrs.get("mod-order", ())]
    found = keys_of(mod)
    return names if sorted(names) == sorted(found) else found


def member(group: Any, key: str, name: str) -> Any:
    """
    Give an element of a group; the key may lead down, as that of a column CD4/CD8 does, but nowhere else.

    Raises
    ------
    ValueError
        If there is none.
    """
    with naming(name):
        if isinstance(group, Group) and not {"", ".", ".."} & set(key.split("/")) and key in group:
            return group[key]
    raise BrokenFileError(f"`{name}` must have the element {key!r}, got none. Write the file again.")
