"""Refuse files and stores that lead elsewhere, before anything in them is read.

A file of a stranger may name other files of the reader: by links, by raw data that lies outside, by virtual data sets,
by symbolic links and by names with `..` in them. What they point to would be taken for its content.
"""

import mmap
import os
import stat
import struct
from collections.abc import Iterator

import h5py

from scfusion_fm.data.files.broken import BrokenFileError, naming, refuse_element
from scfusion_fm.data.locations import is_remote

MAX_DEPTH = 64
MAX_ELEMENTS = 1_000_000  # with repetitions, as a reader meets them
MAX_SCANNED = 2**28  # bytes of a file that are looked through
HEAP = b"GCOL\x01\x00\x00\x00"
ADVICE = "Write everything into one file"
_KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


def check_regular(path: str) -> None:
    """
    Refuse pipes, sockets and devices, which may never end or hold nothing.

    Raises
    ------
    ValueError
        If the path is one.
    """
    if is_remote(path):
        return
    mode = os.stat(path).st_mode
    for is_kind, kind in _KINDS.items():
        if is_kind(mode):
            raise BrokenFileError(f"`path` must be a file or a zarr directory, got {path!r}, which is {kind}.")


def check_hdf5_inside(file: h5py.File, path: str) -> None:
    """
    Refuse an HDF5 file that leads out of itself, or around in circles.

    Soft links to other places of the same file are fine.

    Raises
    ------
    ValueError
        If it does.
    """
    for follows_soft in (False, True):  # a soft link may pass through a link to another file: those are refused first
        _Hdf5Walk(path, follows_soft).visit(file.id, "", ())


class _Hdf5Walk:
    """Go along all links once; what can be reached is counted as often as a reader would meet it."""

    def __init__(self, path: str, follows_soft: bool):
        self.path, self.follows_soft = path, follows_soft
        self.sizes: dict[int, int] = {}  # address of a group: elements below it

    def visit(self, group: h5py.h5g.GroupID, name: str, above: tuple[int, ...]) -> int:
        """Check a group and what is below; give the number of elements."""
        address = h5py.h5o.get_info(group).addr
        if address in self.sizes:
            return self.sizes[address]
        number = 1
        for key in self._keys(group, name):
            inner = f"{name}/{key.decode(errors='replace')}".lstrip("/")
            if number > MAX_ELEMENTS or len(above) > MAX_DEPTH:
                limits = f"more than {MAX_ELEMENTS:,} elements or {MAX_DEPTH} levels"
                raise refuse_element(f"{self.path}, {inner[:40]}", "lie in a file of a usual size", limits)
            number += self._visit_link(group, key, inner, (*above, address))
        self.sizes[address] = number
        return number

    def _keys(self, group: h5py.h5g.GroupID, name: str) -> list[bytes]:
        with naming(f"{self.path}, {name or '/'}"):
            return list(group)

    def _visit_link(self, group: h5py.h5g.GroupID, key: bytes, name: str, above: tuple[int, ...]) -> int:
        where, kind = f"{self.path}, {name}", group.links.get_info(key).type
        if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
            raise refuse_element(where, "lie in this file", "a link to another file", ADVICE)
        if kind == h5py.h5l.TYPE_SOFT and not self.follows_soft:
            return 1
        try:
            found = h5py.h5o.open(group, key)
        except Exception:  # leads nowhere, or is broken: that is an error where it is read, and only there
            return 1
        if isinstance(found, h5py.h5d.DatasetID):
            _check_dataset(found, where)
        elif isinstance(found, h5py.h5g.GroupID):
            if h5py.h5o.get_info(found).addr in above:
                raise refuse_element(where, "not lead back to itself", "a link to a group that it is in")
            return self.visit(found, name, above)
        return 1


def _check_dataset(dataset: h5py.h5d.DatasetID, where: str) -> None:
    settings = dataset.get_create_plist()
    if settings.get_layout() == h5py.h5d.VIRTUAL:
        raise refuse_element(where, "hold its own values", "a virtual data set", ADVICE)
    if settings.get_external_count():
        raise refuse_element(where, "lie in this file", "values that lie in another file", ADVICE)


def check_heaps(path: str) -> None:
    """
    Refuse an HDF5 file with damaged heaps, in which its library would look for an end for ever.

    Raises
    ------
    ValueError
        If an entry of a heap has no size.
    """
    if is_remote(path) or not 0 < os.path.getsize(path) <= MAX_SCANNED:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(HEAP)
        while start >= 0:
            at, end = start + 16, start + int.from_bytes(content[start + 8 : start + 16], "little")
            while at + 16 <= min(end, len(content)):
                index, size = struct.unpack_from("<H6xQ", content, at)
                if index == 0 and size == 0:
                    raise BrokenFileError(
                        f"`path` must be a complete HDF5 file, got {path!r} with a damaged heap at byte {at:,}. "
                        "Copy it again."
                    )
                at += size if index == 0 else 16 + -(-size // 8) * 8
            start = content.find(HEAP, start + 1)


def check_store_inside(path: str) -> None:
    """
    Refuse a zarr directory with symbolic links that lead out of it or to directories, or with pipes and devices.

    Raises
    ------
    ValueError
        If it has one.
    """
    if is_remote(path):
        return
    root = os.path.realpath(path)
    for number, entry in enumerate(_walk(root)):
        where = f"{path}, {os.path.relpath(entry.path, root)}"
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not target.startswith(root + os.sep) or os.path.isdir(target):
                raise refuse_element(where, "lie in this store", "a symbolic link", "Copy the store with `cp -rL`")
        elif not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
            raise refuse_element(where, "be a file", "a pipe, a socket or a device", "Remove it")
        if number > 100 * MAX_ELEMENTS:
            raise refuse_element(where, "lie in a store of a usual size", f"more than {number:,} files")


def _walk(directory: str) -> Iterator[os.DirEntry[str]]:
    open_ = [directory]
    while open_:
        with os.scandir(open_.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    open_.append(entry.path)
