"""What `zarr.json` says is checked before memory is taken for it."""

import json

import pytest
import zarr

from scfusion_fm.data.atlas.metadata import parse_layout, parse_metadata, seal_metadata
from scfusion_fm.data.atlas.shards import ArrayReader, LocalFiles


@pytest.fixture
def meta(tmp_path):
    group = zarr.open_group(tmp_path, mode="w", zarr_format=3)
    group.create_array("x", shape=(90, 4), dtype="uint16", chunks=(10, 4), shards=(30, 4))
    return json.loads((tmp_path / "x/zarr.json").read_text())


def change(meta, path, value):
    inner = meta
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value


GRID, SHARDS = ("chunk_grid", "configuration", "chunk_shape"), ("codecs", 0, "configuration")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("zarr_format",), 2, "format 2 and type array"),
        (("data_type",), "string", "data type 'string'"),
        (("fill_value",), "x", "fill value 'x'"),
        (("fill_value",), -1, "-1 out of bounds"),
        (("chunk_key_encoding", "configuration"), {"separator": "../"}, "separator '../'"),
        (("shape",), [90, -4], r"sizes \[90, -4\]"),
        (("shape",), [90], r"chunks \(10, 4\) in shards \(30, 4\) of an array \(90,\)"),
        (GRID, [0, 4], r"sizes \[0, 4\]"),
        (GRID, [35, 4], r"shards \(35, 4\) that are no multiple of chunks \(10, 4\)"),
        (GRID, [10**12, 4], "chunks of 80 bytes, 100,000,000,000 in a shard"),
        ((*SHARDS, "chunk_shape"), [0, 4], r"sizes \[0, 4\]"),
        ((*SHARDS, "codecs"), [], "no codecs"),
        ((*SHARDS, "codecs"), [5], "one that lacks what describes an array"),
        (("codecs",), None, "one that lacks what describes an array"),
    ],
)
def test_layouts_that_cannot_be_are_refused(meta, path, value, message):
    assert parse_layout(meta, "x/zarr.json").chunks_per_shard == 3
    change(meta, path, value)
    with pytest.raises(ValueError, match=rf"`x/zarr.json` must be as it was written, got .*{message}"):
        parse_layout(meta, "x/zarr.json")


def test_huge_chunks_are_refused(meta):
    change(meta, GRID, [2**40, 4])
    change(meta, (*SHARDS, "chunk_shape"), [2**40, 4])
    with pytest.raises(ValueError, match="chunks of 8,796,093,022,208 bytes, 1 in a shard"):
        parse_layout(meta, "x/zarr.json")


def test_a_seal_is_compared_where_there_is_one_and_asked_for_on_request(tmp_path, meta):
    file = tmp_path / "x/zarr.json"
    ArrayReader(LocalFiles(tmp_path), "x")
    with pytest.raises(ValueError, match="must have its checksum, got another"):
        ArrayReader(LocalFiles(tmp_path), "x", sealed=True)
    seal_metadata(file)
    ArrayReader(LocalFiles(tmp_path), "x", sealed=True)
    file.write_text(file.read_text().replace("90", "80"))
    with pytest.raises(ValueError, match="must have its checksum, got another"):
        ArrayReader(LocalFiles(tmp_path), "x")
    with pytest.raises(ValueError, match="got attributes of type list"):
        parse_metadata(json.dumps(meta | {"attributes": []}).encode(), "x/zarr.json")
