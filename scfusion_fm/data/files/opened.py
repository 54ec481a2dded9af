"""The parts of a file from which counts are read, opened without reading the matrices."""

from functools import partial
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scfusion_fm.data.files.arrays import Array, Group, member, text_of
from scfusion_fm.data.files.broken import refuse_element
from scfusion_fm.data.files.elements import ElementReader
from scfusion_fm.data.files.stored import (
    Elements,
    StoredAnnData,
    StoredMatrix,
    StoredRaw,
    StoredTable,
    as_names,
    is_names,
)

FILTERED = "filtered_barcodes"
_COLUMNS_10X = ("name", "id", "gene_id", "feature_type", "_all_tag_keys")  # the last names columns that a panel adds


def open_anndata(reader: ElementReader, group: Group, prefix: str = "", is_needed: bool = True) -> StoredAnnData:
    """
    Open an AnnData of the present on-disk format (0.7 and later), in HDF5 or zarr.

    Parameters
    ----------
    reader
        Reads its elements.
    group
        The AnnData in the file.
    prefix
        Where it is, such as `mod/rna/`.
    is_needed
        Whether X and .raw are needed where there is no layer `counts`; else they may be broken.

    Raises
    ------
    ValueError
        If a part from which counts may be read is broken. Columns of obs that are broken are left out; layers, obsm
        and uns raise when they are asked for.
    """
    obs = reader.read_frame(_part(reader, group, "obs", prefix), f"{prefix}obs", is_strict=False)
    var = reader.read_frame(_part(reader, group, "var", prefix), f"{prefix}var", is_strict=True)

    def open_matrix(key: str) -> StoredMatrix | None:
        slot, _, name = key.rpartition("/")
        element = member(group[slot] if slot else group, name, reader.name(prefix + key))
        if text_of(element.attrs.get("encoding-type", "")) == "null":
            return None
        return reader.open_matrix(element, prefix + key, (len(obs), len(var)))

    can_lose = not is_needed or ("layers" in group and "counts" in group["layers"])
    needed = [("X", lambda: open_matrix("X")), ("raw", lambda: _open_raw(reader, group["raw"], prefix, len(obs)))]
    parts = {}
    for slot, read in needed:
        if slot not in group:
            parts[slot] = None
        else:
            parts[slot] = reader.read_or_lose(prefix + slot, read) if can_lose else read()
    beside = {
        key: partial(_open_beside, reader, group, f"{prefix}obsm/{key}", len(obs)) for key in _keys(group, "obsm")
    }
    uns = {
        key: partial(_read_names, reader, group["uns"], key, prefix)
        for key in _keys(group, "uns")
        if _may_be_names(group["uns"], key)
    }
    return StoredAnnData(
        obs=obs,
        var=var,
        X=parts["X"],
        layers=Elements("layers", {key: partial(open_matrix, f"layers/{key}") for key in _keys(group, "layers")}),
        raw=parts["raw"],
        obsm=Elements("obsm", beside),
        uns=Elements("uns", uns),
    )


def _part(reader: ElementReader, group: Any, key: str, prefix: str) -> Any:
    return member(group, key, reader.name(prefix.rstrip("/") or "/"))


def _keys(group: Any, slot: str) -> list[str]:
    return sorted(group[slot]) if slot in group and isinstance(group[slot], Group) else []  # zarr has no order


def _open_raw(reader: ElementReader, raw: Any, prefix: str, num_obs: int) -> StoredRaw | None:
    if not isinstance(raw, Group) or "X" not in raw:
        return None
    var = reader.read_frame(member(raw, "var", reader.name(f"{prefix}raw")), f"{prefix}raw/var", is_strict=True)
    return StoredRaw(reader.open_matrix(raw["X"], f"{prefix}raw/X", (num_obs, len(var))), var)


def _may_be_names(uns: Any, key: str) -> bool:
    try:
        return isinstance(uns[key], Array) and is_names(uns[key])
    except Exception:  # a broken element of `uns` is none that is read
        return False


def _read_names(reader: ElementReader, uns: Any, key: str, prefix: str) -> list[str]:
    return as_names(reader.read_element(uns[key], f"{prefix}uns/{key}"))


def _open_beside(reader: ElementReader, group: Any, slot: str, num_obs: int) -> StoredTable | StoredMatrix:
    """Open an element of `obsm`."""
    key = slot.rpartition("/")[2]
    element = member(group["obsm"], key, reader.name(slot))
    if text_of(element.attrs.get("encoding-type", "")) == "dataframe":
        names = [text_of(name) for name in element.attrs["column-order"]]
        return StoredTable(f'obsm["{key}"]', names, lambda: _read_table(reader, element, slot, num_obs))
    return reader.open_matrix(element, slot, (num_obs,))


def _read_table(reader: ElementReader, element: Any, slot: str, num_obs: int) -> pd.DataFrame:
    frame = reader.read_frame(element, slot, is_strict=True)
    if len(frame) != num_obs:
        raise refuse_element(reader.name(slot), f"have {num_obs:,} rows", f"{len(frame):,}")
    return frame


def open_10x(reader: ElementReader, matrix: h5py.Group) -> StoredAnnData:
    """Open the group `matrix` of a 10x file of Cell Ranger 3 or later; its columns are cells. Tables as in scanpy."""

    def read(group: Any, key: str, length: int | None) -> np.ndarray:
        name = reader.name(f"matrix/{key}")
        array = member(group, key, name)
        if not isinstance(array, Array):
            raise refuse_element(name, "be an array", "a group")
        reader.budget.take(array, name, (length,))
        return array[:]

    def read_column(group: Any, key: str, length: int) -> np.ndarray:
        values = read(group, key, length)
        return values if values.dtype.kind == "b" else values.astype(str)

    num_vars, num_obs = (int(n) for n in read(matrix, "shape", 2))
    table = member(matrix, "features", reader.name("matrix"))
    of_probes = "gene_id" in table
    needed = {"gene_ids": "gene_id" if of_probes else "id", "feature_types": "feature_type"}
    columns = {column: read_column(table, key, num_vars) for column, key in needed.items()}
    index = pd.Index(read_column(table, "name", num_vars))
    others = {key: key for key in table if key not in ("name", *_COLUMNS_10X)} | (
        {"probe_ids": "id"} if of_probes else {}
    )
    for column, key in others.items():
        found = reader.read_or_lose(f"matrix/features/{key}", lambda key=key: read_column(table, key, num_vars))
        if found is not None:
            columns[column] = found
    obs = pd.DataFrame(index=pd.Index(read_column(matrix, "barcodes", num_obs)))
    if FILTERED in matrix:
        found = reader.read_or_lose(f"matrix/{FILTERED}", lambda: read(matrix, FILTERED, num_obs).astype(bool))
        obs = obs if found is None else obs.assign(**{FILTERED: found})
    var = pd.DataFrame(columns, index=index)
    return StoredAnnData(obs, var, reader.open_csr(matrix, (num_obs, num_vars), reader.name("matrix")))
