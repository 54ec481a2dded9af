"""The header of a file of weights is compared with the file before anything is made of it."""

import json
import struct

import pytest

from scfusion_fm.untrusted.weights_file import read_header

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}


def write(path, header, data=bytes(26), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_names_types_and_shapes_are_read(tmp_path):
    found = read_header(write(tmp_path / "w", {"b": B, "a": A, "__metadata__": {"format": "pt"}}))
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {"a": ("F32", [2, 3]), "b": ("BF16", [])}


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ({"a": A}, {}, "must hold 24 bytes of weights, got 26"),
        ({"a": A, "b": B}, {"data": bytes(20)}, "must hold 26 bytes of weights, got 20"),
        ({"a": A, "b": A}, {}, "`b` must have the place 24 and the size of its shape"),
        ({"a": A | {"shape": [1 << 40, 1 << 40]}}, {}, "`a` must have the place 0"),
        ({"a": A | {"shape": [-2, -3]}}, {}, "`a.shape` must be a whole number from 0"),
        ({"a": A | {"dtype": "I64"}}, {}, "`a.dtype` must be one of"),
        ({"a": A | {"data_offsets": [0]}}, {}, "`a` must have the place 0"),
        ({"a": A | {"x": 1}}, {}, "`a` must have no unknown field"),
        ({"__metadata__": {"a": 1}}, {}, "must be text"),
        ({"a": A}, {"length": 1 << 62}, "must begin with the length of its header"),
        (b"", {"data": b""}, "must begin with the length of its header, got 0 in 8 bytes"),
        (b"[1]", {}, "must have a header that names at most"),
        (b"{ ", {}, "must be complete JSON"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, header, options, message):
    with pytest.raises(ValueError, match=rf"w': .*{message}.*copy or export it again\."):
        read_header(write(tmp_path / "w", header, **options))
