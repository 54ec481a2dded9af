"""The whole of a file in memory, so that results can be added to everything that was in it."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfusion_fm.data.files.arrays import Group, member, modalities_of, text_of
from scfusion_fm.data.files.broken import refuse_element
from scfusion_fm.data.files.elements import ElementReader, MatrixOpener
from scfusion_fm.data.files.stored import StoredAnnData

Container: TypeAlias = ad.AnnData | md.MuData
# Slots of mappings, with the lengths that their elements begin with.
ALIGNED = {"layers": "nm", "obsm": "n", "varm": "m", "obsp": "nn", "varp": "mm"}
Readers: TypeAlias = dict[str, Callable[[Any], Any]]


def read_container(reader: ElementReader, group: Group) -> Container:
    """
    Read an AnnData or a MuData element by element; what is broken is left out and noted.

    Raises
    ------
    ValueError
        If the names of cells or features are broken.
    """
    if text_of(group.attrs.get("encoding-type", "")).lower() == "mudata":
        return _read_mudata(reader, group)
    return read_anndata(reader, group)


def read_10x(parts: StoredAnnData) -> ad.AnnData:
    """Read all of a 10x file of Cell Ranger 3 or later that was opened."""
    assert parts.X is not None
    counts = sp.csr_matrix(parts.X.rows(0, parts.shape[0]), dtype=np.float32)
    return ad.AnnData(counts, obs=parts.obs, var=parts.var)


def read_anndata(reader: ElementReader, group: Group, prefix: str = "") -> ad.AnnData:
    """Read an AnnData; see `read_container`."""
    return ad.AnnData(**_read_parts(reader, group, prefix))


def find_broken(location: str, group: Group) -> dict[str, str]:
    """
    Say what is broken in an AnnData or a MuData of any size, and why; matrices are opened and not read.

    Raises
    ------
    ValueError
        If the names of cells or features are broken.
    """
    reader = MatrixOpener(location)
    if "mod" in group:
        _read_mudata_parts(reader, group, {key: _read_parts(reader, *part) for key, part in _modalities(reader, group)})
    else:
        _read_parts(reader, group, "")
    return reader.lost


def _read_parts(reader: ElementReader, group: Group, prefix: str) -> dict[str, Any]:
    obs, var = (
        reader.read_frame(member(group, key, reader.name(prefix or "/")), f"{prefix}{key}", is_strict=key == "var")
        for key in ("obs", "var")
    )
    lengths = {"n": len(obs), "m": len(var)}
    parts = _read_aligned(reader, group, prefix, lengths)
    shape = (len(obs), len(var))
    readers = {
        "X": lambda element: _read_matrix(reader, element, f"{prefix}X", shape),
        "raw": lambda element: _read_raw(reader, element, prefix, len(obs)),
        "uns": lambda element: reader.read_mapping(element, f"{prefix}uns"),
    }
    return {"obs": obs, "var": var, **parts, **_read_slots(reader, group, prefix, readers)}


def _read_matrix(reader: ElementReader, element: Any, slot: str, shape: tuple[int, int]) -> Any:
    if text_of(element.attrs.get("encoding-type", "")) == "null":
        return None
    found = reader.read_element(element, slot, shape)
    if tuple(found.shape) != shape or isinstance(found, pd.DataFrame):
        raise refuse_element(reader.name(slot), "be a matrix", f"{type(found).__name__} of shape {found.shape}")
    return found


def _read_slots(reader: ElementReader, group: Group, prefix: str, readers: Readers) -> dict[str, Any]:
    """Read the slots that are there and whole."""

    def read(slot: str) -> Any:
        return readers[slot](group[slot]) if slot in group else None

    found = {slot: reader.read_or_lose(f"{prefix}{slot}", partial(read, slot)) for slot in readers}
    return {slot: value for slot, value in found.items() if value is not None}


def _read_aligned(reader: ElementReader, group: Group, prefix: str, lengths: dict[str, int]) -> dict[str, Any]:
    """Read the slots of mappings that are aligned with axes that are there."""
    readers = {}
    for slot, letters in ALIGNED.items():
        if set(letters) <= set(lengths):
            shape = tuple(lengths[letter] for letter in letters)
            readers[slot] = partial(_read_mapping, reader, f"{prefix}{slot}", shape)
    return _read_slots(reader, group, prefix, readers)


def _read_mapping(reader: ElementReader, slot: str, shape: tuple[int, ...], group: Group) -> dict[str, Any]:
    return reader.read_mapping(group, slot, shape)


def _read_raw(reader: ElementReader, raw: Group, prefix: str, num_obs: int) -> dict[str, Any] | None:
    if not isinstance(raw, Group) or "X" not in raw:  # anndata writes a null where there is none
        return None
    var = reader.read_frame(raw["var"], f"{prefix}raw/var", is_strict=True)
    found = {"X": _read_matrix(reader, raw["X"], f"{prefix}raw/X", (num_obs, len(var))), "var": var}
    if "varm" in raw:
        found["varm"] = reader.read_mapping(raw["varm"], f"{prefix}raw/varm", (len(var),))
    return found


def _read_mudata(reader: ElementReader, group: Group) -> md.MuData:
    parts = {key: _read_parts(reader, *part) for key, part in _modalities(reader, group)}
    return md.MuData(
        {key: ad.AnnData(**part) for key, part in parts.items()}, **_read_mudata_parts(reader, group, parts)
    )


def _modalities(reader: ElementReader, group: Group) -> list[tuple[str, tuple[Group, str]]]:
    mod = member(group, "mod", reader.name("/"))
    return [(key, (member(mod, key, reader.name("mod")), f"mod/{key}/")) for key in modalities_of(mod)]


def _read_mudata_parts(reader: ElementReader, group: Group, mods: dict[str, dict[str, Any]]) -> dict[str, Any]:
    tables = {"obs": reader.read_frame(member(group, "obs", reader.name("/")), "obs", is_strict=False)}
    var = reader.read_or_lose("var", lambda: reader.read_frame(group["var"], "var", is_strict=False))
    if var is not None:  # else mudata makes it of the modalities
        tables["var"] = var
    axes = {"obs": "n", "var": "m"}
    lengths = {axes[axis]: len(table) for axis, table in tables.items()}
    readers: Readers = {"uns": lambda element: reader.read_mapping(element, "uns")}
    for axis in tables:
        sizes = {key: len(part[axis]) for key, part in mods.items()}
        readers[f"{axis}map"] = partial(_read_maps, reader, f"{axis}map", lengths[axes[axis]], sizes)
    parts = _read_aligned(reader, group, "", lengths) | _read_slots(reader, group, "", readers)
    if "axis" in group.attrs:
        parts["axis"] = int(group.attrs["axis"])
    return {**tables, **parts}


def _read_maps(reader: ElementReader, slot: str, length: int, sizes: dict[str, int], group: Group) -> dict[str, Any]:
    """Read where the cells or features of each modality are: 0 for nowhere, else from 1."""
    maps = reader.read_mapping(group, slot, (length,))
    for name, place in maps.items():
        place = np.asarray(place)
        if place.dtype.kind not in "iu" or not ((place >= 0) & (place <= sizes.get(name, 0))).all():
            raise refuse_element(reader.name(f"{slot}/{name}"), "name rows of its modality", f"{place[:3]}")
    return maps
