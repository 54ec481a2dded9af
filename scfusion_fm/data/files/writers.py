"""Write a file again with results added: what can go wrong is found before the work, and what was written is read."""

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from scfusion_fm.data.files.readers import Container
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.notices import warn

Added: TypeAlias = list[tuple[str, str]]  # slot (obs, obsm) and key of what a command adds

PROVENANCE = "scfusion_ttt"  # where uns tells which model made what
RESERVED = "_index"  # AnnData files keep the names of rows under it
_MATRICES = ("layers", "obsm", "varm", "obsp", "varp")


def check_added(container: Container, added: Added, is_file: bool = True) -> None:
    """
    Check the names of what will be added; in an object that is not of a file, results of before are replaced.

    Raises
    ------
    ValueError
        If a name is taken, or a file cannot hold it.
    """
    for slot, key in added:
        if is_file and key in getattr(container, slot):
            raise refuse_taken(slot, key)
        check_name(slot, key, container.obs.index.name)
    if not isinstance(container.uns.get(PROVENANCE, {}), Mapping):
        raise ValueError(f"`uns[{PROVENANCE!r}]` must be a table of earlier results, got something else. Rename it.")


def refuse_taken(slot: str, key: str) -> ValueError:
    """Say that a name is taken."""
    return ValueError(
        f"`{slot}[{key!r}]` is already in the input and would be lost; choose another name with `key_added` "
        "(--key-added)."
    )


def check_name(slot: str, key: str, index_name: Any) -> None:
    """
    Check the name of something that will be added.

    Raises
    ------
    ValueError
        If a file cannot hold it.
    """
    if not key.strip() or not key.isprintable() or "/" in key or key in (RESERVED, ".", ".."):
        raise ValueError(f"`key_added` must be a printable name without '/' that is not reserved, got {key!r}.")
    if slot == "obs" and key == index_name:
        raise ValueError(f"`key_added` must not be the name of the index of obs, got {key!r}.")


def check_writable(container: Container, output: Path) -> None:
    """
    Check that all of an object can be written, by a trial with everything but plain arrays of numbers.

    A column of the reserved name `_index` is renamed, with a warning.

    Raises
    ------
    ValueError
        If something cannot be written, or the disk is too full for it.
    """
    check_suffix(output, isinstance(container, md.MuData))
    for where, frame in _tables(container):
        _rename_reserved(frame, where)
    for where, key, element in _elements(container):
        _try(where, key, element, is_zarr=output.suffix == ".zarr")
    if output.suffix != ".zarr":  # HDF5 is written without compression
        check_room(output, sum(_bytes_of(m) for m in _matrices(container)))


def check_suffix(output: Path, is_mudata: bool) -> None:
    """
    Check the ending of an output.

    Raises
    ------
    ValueError
        If it is of another kind.
    """
    allowed = (".h5mu", ".zarr") if is_mudata else (".h5ad", ".zarr")
    if output.suffix not in allowed:
        raise ValueError(f"`output` must end in {' or '.join(allowed)} for this input, got {output.name!r}.")


def check_room(output: Path, needed: int) -> None:
    """
    Check that a disk has room.

    Raises
    ------
    ValueError
        If it is too full.
    """
    parent = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ValueError(
            f"`output` needs {needed / 1e9:,.1f} GB, but {str(parent)!r} has {free / 1e9:,.1f} GB left. "
            "Make room or choose another disk."
        )


def find_unwritable(tables: Iterable[tuple[str, pd.DataFrame]]) -> list[str]:
    """Say of which tables, given with their names, a file could not hold a column, and why."""
    found = []
    for where, column, element in _columns((where, table) for where, table in tables if RESERVED not in table):
        try:
            _try(where, column, element, is_zarr=False)
        except ValueError as error:
            found.append(str(error))
    return found


def write_container(container: Container, output: Path, added: Added, zarr_format: int | None = None) -> None:
    """
    Write to a path that does not exist and read it back; all of it or nothing.

    Parameters
    ----------
    container
        What to write.
    output
        New file or store.
    added
        What was added: it must come back with the same bits.
    zarr_format
        2 or 3 for a store; what anndata takes when None.

    Raises
    ------
    ValueError
        If something is at `output`, or what was written cannot be read.
    """
    with Scratch(output) as scratch:
        with writing(zarr_format):
            (container.write_zarr if output.suffix == ".zarr" else container.write)(scratch.path)
        _read_back(scratch.path, container, added)
        scratch.publish()


def zarr_format_of(path: Path) -> int | None:
    """Give the format of a zarr store, 2 or 3; None for a file."""
    return (3 if (path / "zarr.json").exists() else 2) if path.is_dir() else None


@contextmanager
def writing(zarr_format: int | None = None) -> Iterator[None]:
    """Let anndata and mudata write all that they can, and nothing that was not there."""
    wanted = {"allow_write_nullable_strings": True}
    if zarr_format is not None:
        wanted["zarr_write_format"] = zarr_format
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of the libraries, about what they will do one day
        stack.enter_context(ad.settings.override(**{k: v for k, v in wanted.items() if hasattr(ad.settings, k)}))
        # The columns of a MuData are the user's business. mudata 0.4 leaves them alone by itself.
        stack.enter_context(md.set_options(pull_on_update=False) if hasattr(md, "set_options") else nullcontext())
        yield


def _parts(container: Container) -> Iterator[tuple[str, Any]]:
    """Give the object itself, and the modalities of a MuData, each with the beginning of the names of its parts."""
    yield "", container
    for key, adata in getattr(container, "mod", {}).items():
        yield f"mod/{key}/", adata


def _mapping(part: Any, slot: str) -> Mapping:
    """Give a slot; an empty one where a MuData has none."""
    return getattr(part, slot, None) or {}


def _tables(container: Container) -> Iterator[tuple[str, pd.DataFrame]]:
    for prefix, part in _parts(container):
        yield f"{prefix}obs", part.obs
        yield f"{prefix}var", part.var
        if getattr(part, "raw", None) is not None:
            yield f"{prefix}raw/var", part.raw.var
        for slot in ("obsm", "varm"):
            for key, value in _mapping(part, slot).items():
                if isinstance(value, pd.DataFrame):
                    yield f"{prefix}{slot}/{key}", value


def _columns(tables: Iterable[tuple[str, pd.DataFrame]]) -> Iterator[tuple[str, Any, Any]]:
    """Give the parts of tables: where they are, the name of a column, and itself."""
    for where, table in tables:
        if not table.columns.is_unique:
            yield where, "", table.iloc[:1]
            continue
        yield where, "", table.iloc[:, :0]
        for column in table.columns:
            yield where, column, table[column]


def _elements(container: Container) -> Iterator[tuple[str, Any, Any]]:
    """Give all that a writer may refuse: where it is, its key, and itself."""
    yield from _columns(_tables(container))
    for prefix, part in _parts(container):
        for slot in _MATRICES:
            for key, value in _mapping(part, slot).items():
                if key is not None and not isinstance(value, pd.DataFrame):  # anndata 0.13 shows X among the layers
                    yield f"{prefix}{slot}", key, value
        for key, value in part.uns.items():
            yield f"{prefix}uns", key, value


def _try(where: str, key: Any, element: Any, *, is_zarr: bool) -> None:
    """Write one element to memory."""
    name = f"{where}[{key!r}]" if key != "" else where
    is_matrix = where.rpartition("/")[2] in _MATRICES
    if is_matrix and isinstance(key, str) and "/" in key:
        raise ValueError(f"`{name}` must have a name without '/', or the file cannot be read again. Rename it.")
    if isinstance(element, Mapping):
        for inner, value in element.items():
            _try(f"{name}", inner, value, is_zarr=is_zarr)
        return
    if isinstance(key, str) and _is_plain(element):
        return
    if isinstance(element, pd.Series):
        is_text = where.endswith(("obs", "var")) and pd.api.types.infer_dtype(element) == "string"
        repeats = is_text and element.nunique() < len(element)
        element = pd.DataFrame({key: element.astype("category") if repeats else element})  # as anndata does
    try:
        with writing(), h5py.File.in_memory() as file:
            # HDF5 also where a store is written: zarr would turn numbers among text into text without a word.
            for root in [file, zarr.open_group(zarr.storage.MemoryStore(), mode="w")][: 2 if is_zarr else 1]:
                ad.io.write_elem(root, key if isinstance(key, str) and key and not is_matrix else "element", element)
            if not isinstance(key, str):
                raise TypeError(f"keys are text, this is a {type(key).__name__}")
    except Exception as error:  # the libraries raise TypeError, ValueError, IORegistryError, AttributeError and more
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`{name}` must be something that a file can hold, got one that cannot be written ({reason}). "
            "Change or remove it."
        ) from error


def _is_plain(element: Any) -> bool:
    """Tell arrays of numbers, which can always be written."""
    values = element.data if sp.issparse(element) else element
    return isinstance(values, np.ndarray) and values.dtype.kind in "biufc"


def _rename_reserved(table: pd.DataFrame, where: str) -> None:
    if RESERVED not in table.columns:
        return
    name = "index_"
    while name in table.columns or name == table.index.name:
        name += "_"
    table.columns = [name if column == RESERVED else column for column in table.columns]
    warn(
        f"{where}: the column {RESERVED!r} has a name that AnnData files reserve; it is written as {name!r}.",
    )


def _matrices(container: Container) -> Iterator[Any]:
    for _, part in _parts(container):
        yield getattr(part, "X", None)
        if getattr(part, "raw", None) is not None:
            yield part.raw.X
        for slot in _MATRICES:
            yield from (value for key, value in _mapping(part, slot).items() if key is not None)


def _bytes_of(matrix: Any) -> int:
    if sp.issparse(matrix):
        return sum(getattr(matrix, name).nbytes for name in ("data", "indices", "indptr") if hasattr(matrix, name))
    return int(getattr(matrix, "nbytes", 0))


def _read_back(target: Path, container: Container, added: Added) -> None:
    """Check that a file holds what was written."""
    with h5py.File(target) if target.is_file() else nullcontext(zarr.open_group(target, mode="r")) as root:
        for prefix, part in _parts(container):
            for slot in ("obs", "var"):
                names = ad.io.read_elem(root[f"{prefix}{slot}"]).index
                check_same(names.equals(getattr(part, slot).index.astype(names.dtype)), target, f"{prefix}{slot}")
            for slot in _MATRICES:
                there = {key for key in _mapping(part, slot) if key is not None}
                check_same(there == set(root.get(f"{prefix}{slot}", ())), target, f"{prefix}{slot}")
        obs = ad.io.read_elem(root["obs"])
        for slot, key in added:
            written = obs[key] if slot == "obs" else ad.io.read_elem(root[f"{slot}/{key}"])
            check_same(same_values(written, getattr(container, slot)[key]), target, f"{slot}/{key}")


def same_values(first: Any, second: Any) -> bool:
    """Tell whether two columns, tables or arrays hold the same, missing values too."""
    if isinstance(first, pd.DataFrame):
        return first.columns.equals(second.columns) and same_values(first.to_numpy(), second.to_numpy())
    if isinstance(first, pd.Series):
        first, second = (column.astype(object).where(column.notna(), None) for column in (first, second))
        return first.tolist() == second.tolist()
    return np.array_equal(first, second, equal_nan=True)


def check_same(is_same: bool, target: Path, what: str) -> None:
    """
    Check that something came back as it was written.

    Raises
    ------
    ValueError
        If it did not.
    """
    if not is_same:
        raise ValueError(
            f"`output` must hold what was written, but {what} of {target.name!r} comes back otherwise. "
            "Nothing was kept; check the disk."
        )
