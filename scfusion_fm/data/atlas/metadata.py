"""`zarr.json` of groups and arrays: sealed by a checksum among their attributes, read and checked.

The seal is an attribute like others to zarr. It stands in the file that it seals, not in the manifest: while an atlas
grows, these files are replaced before the manifest is.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scfusion_fm.records import CHANGED, checksum_record, parse_record

METADATA = "zarr.json"
SEAL_ATTRIBUTE = "scfusion_crc32c"
MAX_CHUNK_BYTES = 2**28  # of one chunk in memory; those of an atlas are below 10 MB
MAX_CHUNKS_PER_SHARD = 2**20
MAX_LENGTH = 2**53
MAX_JSON_BYTES = 2**26  # of a `zarr.json` or a manifest; that of 100 million cells is below 10 MB
_TYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")


def seal_metadata(file: Path) -> None:
    """Give a `zarr.json` the checksum of what it says now."""
    meta = json.loads(file.read_text())
    meta["attributes"].pop(SEAL_ATTRIBUTE, None)
    meta["attributes"][SEAL_ATTRIBUTE] = checksum_record(meta)
    file.write_text(json.dumps(meta, indent=2))


def parse_metadata(data: bytes, name: str, sealed: bool = False) -> dict[str, Any]:
    """
    Read a `zarr.json`.

    Parameters
    ----------
    data
        Content of the file.
    name
        Its path in the store, for messages.
    sealed
        Whether it must have a seal; one that is there must fit in any case.

    Raises
    ------
    ValueError
        If it is not as it was written.
    """
    try:
        meta = parse_record(data)
    except ValueError as error:
        raise ValueError(f"`{name}` {error}; copy or prepare the atlas again.") from error
    attributes = meta.get("attributes", {})
    if not isinstance(attributes, dict):
        raise ValueError(_flaw(name, f"attributes of type {type(attributes).__name__}"))
    if sealed or SEAL_ATTRIBUTE in attributes:
        rest = {key: value for key, value in attributes.items() if key != SEAL_ATTRIBUTE}
        if attributes.get(SEAL_ATTRIBUTE) != checksum_record(meta | {"attributes": rest}):
            raise ValueError(f"`{name}` {CHANGED}; copy or prepare the atlas again.")
    return meta


@dataclass(frozen=True)
class ArrayLayout:
    """
    How an array is stored.

    Attributes
    ----------
    shape, dtype, fill
        Of the array, and the value of what is not stored.
    chunk_shape
        Of one chunk, the unit of decoding.
    shard_shape
        Of one file; that of a chunk where there are no shards.
    separator
        Between the numbers in names of files.
    codecs
        Of a chunk, with their settings.
    index_codecs, index_at_end
        Names of the codecs of the index of a shard, and where it stands; None where there are no shards.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Any
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...]
    separator: str
    codecs: list[dict[str, Any]]
    index_codecs: list[str] | None
    index_at_end: bool | None

    @property
    def most_stored(self) -> int:
        """Most bytes of a chunk as it is stored; codecs add little to what they cannot compress."""
        size = math.prod(self.chunk_shape) * self.dtype.itemsize
        return size + size // 8 + 2**16

    @property
    def chunks_per_shard(self) -> int:
        """Chunks along the first axis of a shard."""
        return self.shard_shape[0] // self.chunk_shape[0]


def parse_layout(meta: dict[str, Any], name: str) -> ArrayLayout:
    """
    Read how an array of numbers is stored.

    Parameters
    ----------
    meta
        Content of its `zarr.json`.
    name
        Path of that file, for messages.

    Raises
    ------
    ValueError
        If it is none of zarr v3, or says what cannot be.
    """
    try:
        layout = _read_layout(meta)
        _check_sizes(layout)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(_flaw(name, f"one that lacks what describes an array ({error!r})")) from error
    except (ValueError, OverflowError) as error:
        raise ValueError(_flaw(name, f"one with {error}")) from error
    return layout


def _read_layout(meta: dict[str, Any]) -> ArrayLayout:
    if (meta["zarr_format"], meta["node_type"]) != (3, "array"):
        raise ValueError(f"format {meta['zarr_format']} and type {meta['node_type']}")
    if meta["data_type"] not in _TYPES:
        raise ValueError(f"data type {str(meta['data_type'])[:60]!r}")
    fill = meta["fill_value"]
    if type(fill) not in (bool, int, float):
        raise ValueError(f"fill value {str(fill)[:60]!r}")
    separator = meta["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
    if separator not in ("/", "."):
        raise ValueError(f"separator {str(separator)[:60]!r}")
    shard, codecs = _sizes(meta["chunk_grid"]["configuration"]["chunk_shape"]), list(meta["codecs"])
    chunk, index_codecs, at_end = shard, None, None
    if codecs[0]["name"] == "sharding_indexed":
        settings = codecs[0]["configuration"]
        chunk, codecs = _sizes(settings["chunk_shape"]), list(settings["codecs"])
        index_codecs = [codec["name"] for codec in settings["index_codecs"]]
        at_end = settings.get("index_location", "end") == "end"
    dtype = np.dtype(meta["data_type"]).newbyteorder("<")
    dtype.type(fill)  # OverflowError
    shape = _sizes(meta["shape"], 0)
    return ArrayLayout(shape, dtype, fill, chunk, shard, separator, codecs, index_codecs, at_end)


def _sizes(values: list[int], least: int = 1) -> tuple[int, ...]:
    if any(type(value) is not int or not least <= value <= MAX_LENGTH for value in values):
        raise ValueError(f"sizes {str(values)[:60]}")
    return tuple(values)


def _check_sizes(layout: ArrayLayout) -> None:
    shape, chunk, shard = layout.shape, layout.chunk_shape, layout.shard_shape
    if not 1 <= len(shape) == len(chunk) == len(shard):
        raise ValueError(f"chunks {chunk} in shards {shard} of an array {shape}")
    if any(whole % part for whole, part in zip(shard, chunk, strict=True)):
        raise ValueError(f"shards {shard} that are no multiple of chunks {chunk}")
    size = math.prod(chunk) * layout.dtype.itemsize
    number = math.prod(shard) // math.prod(chunk)
    if size > MAX_CHUNK_BYTES or number > MAX_CHUNKS_PER_SHARD:
        raise ValueError(f"chunks of {size:,} bytes, {number:,} in a shard")
    codecs = [codec["name"] for codec in layout.codecs]  # KeyError, TypeError
    if not codecs:
        raise ValueError("no codecs")


def _flaw(name: str, what: str) -> str:
    return f"`{name}` must be as it was written, got {what}; copy or prepare the atlas again."
