"""Where results go: into an object, or into a new file, all of them or nothing.

A healthy file is copied as it is, and results are written into the copy block by block, so that its size does not
matter (`copied`). Other files, of old formats or with broken parts, are read whole and written again (`writers`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.data.files.copied import FileCopy, can_copy
from scfusion_fm.data.files.readers import Container, OpenFile, read_container
from scfusion_fm.data.files.writers import (
    PROVENANCE,
    Added,
    check_added,
    check_writable,
    write_container,
    zarr_format_of,
)

__all__ = ["Added", "MemoryTarget", "Table", "Target", "open_target"]


class Table(Protocol):
    """An array of obsm that is filled from the first cell to the last."""

    def write(self, part: slice, values: NDArray[np.float32]) -> None:
        """Fill neighbouring rows; what is left out is NaN."""


class Target(Protocol):
    """Takes the results of a verb."""

    def add_table(self, key: str, width: int, names: list[str] | None = None) -> Table:
        """Begin an array of obsm, (n, width); a table where its columns have names."""

    def add_column(self, key: str, values: Any) -> None:
        """Add a column of obs, (n,)."""

    def finish(self, verb: str, record: Mapping[str, Any]) -> Container | None:
        """Keep the results, with a record of where they are from; what the user gets."""

    def close(self) -> None:
        """Let go of files; what was not finished is removed."""


def open_target(file: OpenFile, output: Path | None, added: Added, copy: bool = False) -> Target:
    """
    Choose where the results of a verb go.

    Parameters
    ----------
    file
        The file or object that was opened.
    output
        New file; None for an object.
    added
        Slots and names that will be added.
    copy
        Whether an object stays as it is, and a copy gets the results.

    Raises
    ------
    ValueError
        If a name is taken or none that a file can hold, or the output cannot be written.
    """
    if output is not None and can_copy(file, output):
        target = FileCopy(file, output, added)
        try:
            if target.open():
                return target
        except BaseException:  # a full disk, or Ctrl-C: a half copy is in nobody's way
            target.close()
            raise
        target.close()
    is_file = file.reader is not None
    container = read_container(file)
    file.warn_lost()
    check_added(container, added, is_file=is_file or output is not None)
    if output is not None:
        check_writable(container, output)
    elif copy and not is_file:
        container = container.copy()
    return MemoryTarget(container, output, added, file.path, gives=copy or (is_file and output is None))


class MemoryTarget:
    """
    Put results into an object, and write it in the end if a file is wanted.

    Parameters
    ----------
    container
        The object.
    output
        New file; None for none.
    added
        Slots and names that will be added.
    path
        The file that the object is of.
    gives
        Whether the object is given back.
    """

    def __init__(self, container: Container, output: Path | None, added: Added, path: str, gives: bool):
        self.container, self._output, self._added, self._path, self._gives = container, output, added, path, gives
        self._tables: dict[str, MemoryTable] = {}
        self._columns: dict[str, Any] = {}

    def add_table(self, key: str, width: int, names: list[str] | None = None) -> "MemoryTable":
        """Begin an array of obsm, (n, width); a table where its columns have names."""
        self._tables[key] = MemoryTable(np.full((self.container.n_obs, width), np.nan, dtype=np.float32), names)
        return self._tables[key]

    def add_column(self, key: str, values: Any) -> None:
        """Add a column of obs, (n,)."""
        self._columns[key] = values[: self.container.n_obs]  # a MuData may leave cells of its modalities out

    def finish(self, verb: str, record: Mapping[str, Any]) -> Container | None:
        """Put all into the object, and write it; the object where it is wanted."""
        container = self.container
        for key, table in self._tables.items():
            container.obsm[key] = table.as_frame(container.obs_names)
        for key, values in self._columns.items():
            container.obs[key] = values
        container.uns[PROVENANCE] = {**container.uns.get(PROVENANCE, {}), verb: dict(record)}
        if self._output is not None:
            write_container(container, self._output, self._added, zarr_format_of(Path(self._path)))
        return container if self._gives else None

    def close(self) -> None:
        """Nothing is open."""


class MemoryTable:
    """Hold an array of obsm in memory; see `Table`."""

    def __init__(self, values: NDArray[np.float32], names: list[str] | None):
        self.values, self.names = values, names

    def write(self, part: slice, values: NDArray[np.float32]) -> None:
        """Fill neighbouring rows."""
        room = len(self.values[part])
        self.values[part] = values[:room]

    def as_frame(self, index: pd.Index) -> pd.DataFrame | NDArray[np.float32]:
        """Give the array, or a table where its columns have names."""
        return self.values if self.names is None else pd.DataFrame(self.values, index=index, columns=self.names)
