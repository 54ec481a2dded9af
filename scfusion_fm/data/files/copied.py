"""A copy of a file, byte by byte, into which results are written block by block.

The format on disk is that of anndata: a table is a group with an array per column, and tells their order.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from scfusion_fm.data.files.arrays import Group, close_files, open_root, text_of
from scfusion_fm.data.files.container import find_broken
from scfusion_fm.data.files.readers import OpenFile
from scfusion_fm.data.files.writers import (
    PROVENANCE,
    RESERVED,
    Added,
    check_name,
    check_room,
    check_same,
    check_suffix,
    refuse_taken,
    same_values,
    writing,
)
from scfusion_fm.data.locations import is_remote
from scfusion_fm.data.scratch import Scratch

BLOCK_ROWS = 2**16  # rows that are written together, and of a chunk in a store
TABLE, VERSION = "dataframe", "0.2.0"


def can_copy(file: OpenFile, output: Path) -> bool:
    """
    Tell whether an output can be a copy of the file with something added: same kind, present format, nothing broken.

    Everything but matrices is read once to find out; matrices are opened alone.
    """
    path = Path(file.path)
    if file.reader is None or file.container is not None or is_remote(file.path) or path.suffix != output.suffix:
        return False
    if path.suffix not in (".h5ad", ".h5mu", ".zarr"):
        return False
    root = open_root(file.path)
    tables = [root["obs"], *(root["mod"][key]["obs"] for key in root.get("mod", ()))]
    if any(text_of(t.attrs.get("encoding-version", "")) != VERSION or RESERVED in _columns(t) for t in tables):
        return False
    slots = [root.get(slot) for slot in ("obsm", "uns")]
    if any(slot is not None and not isinstance(slot, Group) for slot in slots):
        return False
    return not find_broken(file.path, root)


class FileCopy:
    """
    Write results into a copy of a file; it gets its name when all of them are there.

    Parameters
    ----------
    file
        The open file.
    output
        New file of the same kind.
    added
        Slots and names that will be added.

    Raises
    ------
    ValueError
        If a name is taken or none that a file can hold, or there is no room.
    """

    def __init__(self, file: OpenFile, output: Path, added: Added):
        self._source = Path(file.path)
        root = open_root(file.path)
        check_suffix(output, is_mudata="mod" in root)
        for slot, key in added:
            check_name(slot, key, text_of(root["obs"].attrs["_index"]))
            if key in (_columns(root[slot]) if slot == "obs" else root.get(slot, ())):
                raise refuse_taken(slot, key)
        if not isinstance(root.get(f"uns/{PROVENANCE}", root), Group):
            raise ValueError(
                f"`uns[{PROVENANCE!r}]` must be a table of earlier results, got something else. Rename it."
            )
        self._names = ad.io.read_elem(root["obs"][text_of(root["obs"].attrs["_index"])])
        check_room(output, _bytes_of(self._source))
        close_files()
        self._tables: dict[str, CopyTable] = {}
        self._columns: dict[str, Any] = {}
        self._scratch = Scratch(output)
        self._root: Any = None

    def open(self) -> bool:
        """
        Copy the file, and make the places of the results; tell whether it can be written into and read as anndata does.

        Raises
        ------
        ValueError
            If another process is about to write the output.
        """
        self._scratch.open()
        _copy(self._source, self._scratch.path)
        try:
            self._root = _open(self._scratch.path)
            with writing():
                for name in ("obsm", "uns", f"uns/{PROVENANCE}"):
                    if name not in self._root:
                        ad.io.write_elem(self._root, name, {})
                self._consolidate()
            return np.array_equal(ad.io.read_elem(self._root["obs"]).index, self._names)
        except Exception:  # the libraries raise OSError, RuntimeError, TypeError and more on what is a little broken
            return False

    def add_table(self, key: str, width: int, names: list[str] | None = None) -> "CopyTable":
        """Begin an array of obsm, (n, width); a table where its columns have names."""
        with writing():
            self._tables[key] = CopyTable.create(self._root["obsm"], key, self._names, width, names)
        return self._tables[key]

    def add_column(self, key: str, values: Any) -> None:
        """Add a column of obs, (n,)."""
        self._columns[key] = values[: len(self._names)]  # a MuData may leave cells of its modalities out

    def finish(self, verb: str, record: Mapping[str, Any]) -> None:
        """Write all, read it back, and give the file its name."""
        obs = self._root["obs"]
        with writing():
            for table in self._tables.values():
                table.finish()
            for key, values in self._columns.items():
                values = pd.Series(values).array if isinstance(values, pd.Categorical) else np.asarray(values)
                ad.io.write_elem(obs, key, values)
            obs.attrs["column-order"] = [*_columns(obs), *self._columns]
            ad.io.write_elem(self._root[f"uns/{PROVENANCE}"], verb, dict(record))
            self._consolidate()
        self._close()
        self._read_back()
        self._scratch.publish()

    def close(self) -> None:
        """Close the copy, and remove it if it was not finished."""
        self._close()
        self._scratch.close()

    def _consolidate(self) -> None:
        if isinstance(self._root, zarr.Group) and _is_consolidated(self._source):
            zarr.consolidate_metadata(self._root.store)  # or readers would not see what is new

    def _close(self) -> None:
        if isinstance(self._root, h5py.File):
            self._root.close()
        self._root = None

    def _read_back(self) -> None:
        with _reading(self._scratch.path) as root:
            obs, path = ad.io.read_elem(root["obs"]), self._scratch.path
            check_same(np.array_equal(obs.index, self._names), path, "obs")
            for key, values in self._columns.items():
                check_same(same_values(obs[key], pd.Series(values, index=obs.index)), path, f"obs/{key}")
            for key, table in self._tables.items():
                check_same(table.is_in(root["obsm"][key]), path, f"obsm/{key}")


class CopyTable:
    """
    Write an array of obsm block by block; see `Table`.

    Parameters
    ----------
    arrays
        (n, width) array, or (n,) arrays of the columns.
    num_rows, width
        n, and the number of columns.
    """

    def __init__(self, arrays: list[Any], num_rows: int, width: int):
        self._arrays, self._num_rows = arrays, num_rows
        self._block = np.full((BLOCK_ROWS, width), np.nan, dtype=np.float32)
        self._start, self._sums = 0, []  # type: int, list[int]

    @classmethod
    def create(cls, obsm: Any, key: str, index: Any, width: int, names: list[str] | None) -> "CopyTable":
        """Begin it in a file; it is a table where its columns have names."""
        if names is None:
            arrays = [_create_array(obsm, key, (len(index), width))]
        else:
            group = obsm.create_group(key)
            ad.io.write_elem(group, RESERVED, np.asarray(index))
            group.attrs.update({"encoding-type": TABLE, "encoding-version": VERSION, "_index": RESERVED})
            group.attrs["column-order"] = names
            arrays = [_create_array(group, name, (len(index),)) for name in names]
        return cls(arrays, len(index), width)

    def write(self, part: slice, values: NDArray[np.float32]) -> None:
        """Fill neighbouring rows, in their order; what is left out is NaN."""
        first, last = part.start, min(part.stop, self._num_rows)
        while first < last:
            while first >= self._start + BLOCK_ROWS:
                self._flush()
            stop = min(last, self._start + BLOCK_ROWS)
            rows = slice(first - part.start, stop - part.start)
            self._block[first - self._start : stop - self._start] = values[rows]
            first = stop

    def finish(self) -> None:
        """Write what is left."""
        while self._start < self._num_rows:
            self._flush()

    def is_in(self, written: Any) -> bool:
        """Tell whether an element of a file holds what was written."""
        arrays = [written[text_of(n)] for n in written.attrs["column-order"]] if isinstance(written, Group) else written
        sums = []
        for start in range(0, self._num_rows, BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, self._num_rows))
            values = np.stack([a[part] for a in arrays], 1) if isinstance(arrays, list) else arrays[part]
            sums.append(zlib.crc32(np.ascontiguousarray(values, dtype=np.float32)))
        return sums == self._sums

    def _flush(self) -> None:
        part = slice(self._start, min(self._start + BLOCK_ROWS, self._num_rows))
        values = self._block[: part.stop - part.start]
        if len(self._arrays) == 1 and len(self._arrays[0].shape) == 2:
            self._arrays[0][part] = values
        else:
            for array, column in zip(self._arrays, values.T, strict=True):
                array[part] = np.ascontiguousarray(column)
        self._sums.append(zlib.crc32(np.ascontiguousarray(values)))
        self._start += BLOCK_ROWS
        self._block[:] = np.nan


def _create_array(group: Any, key: str, shape: tuple[int, ...]) -> Any:
    """Make an array of numbers as anndata does, with NaN in it."""
    settings: dict[str, Any] = {"shape": shape, "dtype": "f4"}
    if isinstance(group, zarr.Group):
        settings |= {"chunks": (min(BLOCK_ROWS, shape[0]), *shape[1:]), "fill_value": np.float32("nan")}
        array = group.create_array(key, **settings)
    else:
        array = group.create_dataset(key, **settings, fillvalue=np.float32("nan"))
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _columns(table: Any) -> list[str]:
    return [text_of(name) for name in table.attrs["column-order"]]


def _bytes_of(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _copy(source: Path, target: Path) -> None:
    """Copy a file or store, and not who may write it."""
    if source.is_file():
        shutil.copyfile(source, target)
        return
    target.mkdir()
    for entry in source.iterdir():
        _copy(entry, target / entry.name)


def _open(path: Path) -> Any:
    return h5py.File(path, "r+") if path.is_file() else zarr.open_group(path, mode="r+", use_consolidated=False)


def _is_consolidated(path: Path) -> bool:
    table = path / "zarr.json"
    if not table.exists():
        return (path / ".zmetadata").exists()
    return json.loads(table.read_text()).get("consolidated_metadata") is not None


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    root = h5py.File(path, "r") if path.is_file() else zarr.open_group(path, mode="r", use_consolidated=False)
    try:
        yield root
    finally:
        if isinstance(root, h5py.File):
            root.close()
