"""What elements of a file declare to hold, compared with what is stored and with the memory of this machine.

A small file can declare an array of any size: values that were never written, or that unpack to the same number over
and over. Before an element is read, its declared size is taken from a budget.
"""

import os
import resource
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import h5py
import zarr

from scfusion_fm.data.files.arrays import check_array
from scfusion_fm.data.files.broken import BrokenFileError, refuse_element
from scfusion_fm.data.locations import is_remote

SMALL_BYTES = 2**26  # what every machine has
TEXT_BYTES = 64  # of a text in Python, beside its characters
# How often larger than its bytes in the file an element can be: deflate packs 1,032 to 1, the codecs of zarr more.
MOST_EXPANSION = {h5py.Dataset: 1_100, zarr.Array: 50_000}
ANY_BYTES = 2**30  # what a file of any size may hold
SHARE = 0.8  # of the memory that is free


class Budget:
    """Count down the memory that the elements of a file may take."""

    def __init__(self, location: str):
        self.location = location
        self.left = int(SHARE * available_bytes())
        self._taken = 0
        self._stored: int | None = None

    def take(self, array: h5py.Dataset | zarr.Array, name: str, shape: tuple[int | None, ...] | None = None) -> None:
        """
        Take one array; call it before the array is read.

        Parameters
        ----------
        array
            The array, which is not read.
        name
            What to call it in errors.
        shape
            The shape that it must have, None for any length; any shape when None. An array with one length that is
            not given has to be stored in a likely number of bytes.

        Raises
        ------
        ValueError
            If it has another shape, does not fit into memory, or cannot be what is stored.
        """
        check_array(array, name)
        found = tuple(array.shape or ())
        if shape is not None and (
            len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=False))
        ):
            wanted = " x ".join("any" if n is None else f"{n:,}" for n in shape)
            raise refuse_element(name, f"have the shape {wanted}", " x ".join(f"{n:,}" for n in found) or "one value")
        size = declared_bytes(array)
        if size > self.left:
            raise refuse_element(
                name,
                "fit into memory",
                f"{_text(size)} declared, with {_text(self.left)} to be had",
                "Use a larger machine, or remove it from the file",
            )
        if shape is None or None in shape:
            self._check_expansion(array, name, size)
        self.check_likely(size, name)
        self.left -= size
        self._taken += size

    def check_likely(self, size: int, name: str) -> None:
        """
        Check that a file of this size can hold so much, beside what was taken; of what is read by rows, too.

        Raises
        ------
        ValueError
            If it cannot, by far.
        """
        if self._taken + size <= ANY_BYTES or is_remote(self.location):
            return
        if self._stored is None:
            self._stored = _bytes_below(Path(self.location))
        if self._taken + size > ANY_BYTES + MOST_EXPANSION[h5py.Dataset] * self._stored:
            raise _refuse_size(name, self._taken + size, self._stored)

    def _check_expansion(self, array: h5py.Dataset | zarr.Array, name: str, size: int) -> None:
        if size <= SMALL_BYTES or is_remote(self.location):
            return
        stored, kind = stored_bytes(self.location, array), h5py.Dataset if is_hdf5(array) else zarr.Array
        if size > MOST_EXPANSION[kind] * stored:
            raise _refuse_size(name, size, stored)


def _refuse_size(name: str, size: int, stored: int) -> BrokenFileError:
    got = f"{_text(size)} declared by {stored:,} bytes"
    return refuse_element(name, "declare what is stored", got, "Remove it, or write the file again")


def is_hdf5(array: Any) -> bool:
    """Tell an array of an HDF5 file from one of a zarr store."""
    return isinstance(array, h5py.Dataset)


def declared_bytes(array: h5py.Dataset | zarr.Array) -> int:
    """Give the bytes that an array takes in memory by what it declares."""
    number = prod(int(n) for n in array.shape or ())
    is_text = array.dtype.kind not in "biufcmM"
    return number * (array.dtype.itemsize + (TEXT_BYTES if is_text else 0))


def stored_bytes(location: str, array: h5py.Dataset | zarr.Array) -> int:
    """Give the bytes that an array takes on disk; texts of HDF5 lie elsewhere in the file."""
    if is_hdf5(array):
        is_text = array.dtype.kind == "O"
        return os.path.getsize(location) if is_text else int(array.id.get_storage_size())
    return _bytes_below(Path(location, array.name.strip("/")))


def _bytes_below(path: Path) -> int:
    """Give the size of a file, or of all files of a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(os.path.getsize(file) for file in files if file.is_file())


def arrays_of(element: Any) -> Iterator[h5py.Dataset | zarr.Array]:
    """Give all arrays of an element: itself, or those below the group."""
    if isinstance(element, h5py.Dataset | zarr.Array):
        yield element
        return
    for key in element:
        yield from arrays_of(element[key])


def available_bytes() -> int:
    """Give the memory that this process can still take."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    facts = _read_facts("/proc/meminfo")
    if "MemAvailable" in facts:
        limits.append(1024 * facts["MemAvailable"])
    ours = resource.getrlimit(resource.RLIMIT_AS)[0]
    if ours != resource.RLIM_INFINITY:
        limits.append(ours - 1024 * _read_facts("/proc/self/status").get("VmSize", 0))
    group = Path("/sys/fs/cgroup/memory.max")  # of a container, which sees all memory of its machine
    text = group.read_text().strip() if group.exists() else "max"
    if text.isdigit():
        limits.append(int(text) - _read_facts("/sys/fs/cgroup/memory.stat").get("anon", 0))
    return max(min(limits), 0)


def _read_facts(path: str) -> dict[str, int]:
    """Read lines such as `MemAvailable: 1024 kB`."""
    try:
        lines = [line.replace(":", " ").split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _text(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
