"""The header of a `.safetensors` file: names, types and shapes, compared with the size of the file."""

import math
from dataclasses import dataclass
from pathlib import Path

from scfusion_fm.untrusted.json_file import read_json
from scfusion_fm.untrusted.rules import ListOf, MapOf, Record, Text, Whole, ruled

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
LARGEST_HEADER = 1 << 25
MOST_TENSORS = 100_000
LARGEST = 1 << 50


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of a tensor."""

    dtype: str = ruled(Text(tuple(WIDTHS)))
    shape: list[int] = ruled(ListOf(Whole(0, LARGEST), most=8))
    data_offsets: list[int] = ruled(ListOf(Whole(0, LARGEST), most=2))


def read_header(path: Path) -> dict[str, TensorInfo]:
    """
    Read what a file says that it holds, by name; every byte of it belongs to one tensor.

    Raises
    ------
    ValueError
        If the file is cut short or malformed; the message names it.
    """
    return _read(path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """
    Read what a file tells of itself, by name.

    Raises
    ------
    ValueError
        As `read_header`.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        with path.open("rb") as stream:
            length, size = int.from_bytes(stream.read(8), "little"), path.stat().st_size
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ValueError(f"must begin with the length of its header, got {length} in {size:,} bytes")
            content = read_json(stream.read(length))
        if not isinstance(content, dict) or len(content) > MOST_TENSORS:
            raise ValueError(f"must have a header that names at most {MOST_TENSORS} tensors")
        metadata = MapOf(Text()).read(content.get("__metadata__", {}), "__metadata__")
        return _check_header(content, size - 8 - length), metadata
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r}: {error}. The file is cut short, damaged or not ours: copy or export it again."
        ) from error


def _check_header(content: dict, size: int) -> dict[str, TensorInfo]:
    found = {
        Text().read(name, "tensor"): Record(TensorInfo).read(info, name)
        for name, info in content.items()
        if name != "__metadata__"
    }
    end = 0
    for name, info in sorted(found.items(), key=lambda item: item[1].data_offsets):
        if info.data_offsets != [end, end + WIDTHS[info.dtype] * math.prod(info.shape)]:
            raise ValueError(f"`{name}` must have the place {end} and the size of its shape, got {info.data_offsets}")
        end = info.data_offsets[1]
    if end != size:
        raise ValueError(f"must hold {end:,} bytes of weights, got {size:,}")
    return found
