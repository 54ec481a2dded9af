"""The reader gives what zarr gives, for every layout that it accepts, and says what is damaged."""

import json

import fsspec
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ShardingCodec, ZstdCodec

from scfusion_fm.data.atlas.shards import ArrayReader, LocalFiles, RemoteFiles, open_files

BLOSC = BloscCodec(cname="lz4", clevel=3, shuffle="shuffle")
LAYOUTS = {
    "lz4": {"chunks": (10,), "shards": (50,), "compressors": BLOSC},
    "blosc zstd": {"chunks": (10,), "shards": (50,), "compressors": BloscCodec(cname="zstd", shuffle="bitshuffle")},
    "zstd": {"chunks": (7,), "shards": (49,), "compressors": ZstdCodec()},
    "no compression": {"chunks": (10,), "shards": (50,), "compressors": None},
    "no shards": {"chunks": (10,), "compressors": BLOSC},
    "one chunk": {"chunks": (233,), "compressors": None},
    "dots in keys": {
        "chunks": (10,),
        "shards": (50,),
        "compressors": BLOSC,
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
}


def write(path, values, layout, **more):
    """Write an array as `x` of a store."""
    wide = {k: (*v, *values.shape[1:]) if k in ("chunks", "shards") else v for k, v in layout.items()}
    group = zarr.open_group(path, mode="a", zarr_format=3)
    group.create_array("x", shape=values.shape, dtype=values.dtype, **wide, **more)[:] = values


def draw(*shape, dtype=np.uint16):
    values = np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)
    values[100:160] = 0  # chunks that zarr does not write
    return values


def check_ranges(reader, values):
    start = np.array([0, 40, 231, 5, 99, 99, 120])
    stop = np.array([3, 120, 233, 5, 161, 100, 121])
    rows, at = reader.read(start, stop)
    for first, end, i in zip(start, stop, at, strict=True):
        assert np.array_equal(rows[i : i + end - first], values[first:end])


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("values", [draw(233), draw(233, 5), draw(233, dtype=np.int64)], ids=["1d", "2d", "int64"])
def test_ranges_equal_those_of_zarr(tmp_path, name, values):
    write(tmp_path / "a.zarr", values, LAYOUTS[name])
    reader = ArrayReader(open_files(tmp_path / "a.zarr"), "x")
    assert (reader.shape, reader.dtype) == (values.shape, values.dtype)
    check_ranges(reader, values)
    assert np.array_equal(reader.read_all(233), values)


@pytest.mark.parametrize("complete", [False, True])
def test_nothing_can_be_read_too(tmp_path, complete):
    write(tmp_path / "a.zarr", draw(233), LAYOUTS["lz4"])
    reader = ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x", complete)
    for number in (0, 3):
        rows, at = reader.read(np.full(number, 5), np.full(number, 5))
        assert (rows.shape, at.shape) == ((0,), (number,))


def test_matrix_without_columns(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("x", shape=(40, 0), dtype="uint16", chunks=(10, 1), shards=(20, 1))
    rows, at = ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x").read(np.array([3, 30]), np.array([12, 31]))
    assert (rows.shape, at.tolist()) == ((30, 0), [3, 20])


def test_index_at_the_start_of_a_shard(tmp_path):
    values, codec = draw(233), ShardingCodec(chunk_shape=(10,), index_location="start")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    array = group.create_array(
        "x", shape=(233,), dtype="uint16", chunks=(50,), serializer=codec, compressors=None, filters=None
    )
    array[:] = values
    check_ranges(ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x"), values)


def test_fill_value_stands_for_missing_chunks(tmp_path):
    values = draw(233)
    values[100:160] = 7
    write(tmp_path / "a.zarr", values, LAYOUTS["lz4"], fill_value=7)
    (tmp_path / "a.zarr/x/c/4").unlink()
    values[200:] = 7
    check_ranges(ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x"), values)


@pytest.mark.parametrize("layout", ["lz4", "no shards"])
def test_missing_chunks_of_a_complete_array_are_refused(tmp_path, layout):
    write(tmp_path / "a.zarr", draw(233), LAYOUTS[layout])
    reader = ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x", complete=True)
    reader.read(np.array([0]), np.array([90]))
    with pytest.raises(ValueError, match=r"Chunk 1\d of `x` is missing; copy or prepare the atlas again"):
        reader.read(np.array([0]), np.array([130]))


@pytest.mark.parametrize("name", ["lz4", "no shards", "zstd", "no compression"])
def test_remote_store_equals_local_one(tmp_path, name):
    values = draw(233, 3)
    write(tmp_path / "a.zarr", values, LAYOUTS[name])
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a.zarr"), f"/shards-{name.replace(' ', '-')}", recursive=True)
    files = open_files(f"memory://shards-{name.replace(' ', '-')}")
    assert isinstance(files, RemoteFiles)
    check_ranges(ArrayReader(files, "x"), values)
    assert files.read_ranges([("nothing", 0, 4), ("x/zarr.json", 0, 1)]) == [None, b"{"]
    assert files.read_ranges([]) == []


def test_remote_errors_other_than_absence_reach_the_caller(monkeypatch):
    files = open_files("memory://shards-broken")
    monkeypatch.setattr(files._system, "cat_ranges", lambda *a, **k: [PermissionError("no access")])
    with pytest.raises(PermissionError, match="no access"):
        files.read_ranges([("x", 0, 1)])


def damage(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 0xFF
    path.write_bytes(data)


def test_damage_is_noticed(tmp_path):
    write(tmp_path / "a.zarr", draw(233), LAYOUTS["lz4"])
    shard = tmp_path / "a.zarr/x/c/0"
    sound = shard.read_bytes()
    everything = np.array([0]), np.array([50])
    damage(shard, -1)
    with pytest.raises(ValueError, match="Chunk 0 of `x` lies in a shard with a damaged index"):
        ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x").read(*everything)
    shard.write_bytes(sound)
    damage(shard, 12)
    with pytest.raises(ValueError, match=r"Chunk 0 of `x` cannot be decoded \(20 bytes in"):
        ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x").read(*everything)


@pytest.mark.parametrize("name", ["zstd", "no compression"])
def test_chunks_of_another_size_are_noticed(tmp_path, name):
    write(tmp_path / "a.zarr", draw(233), {**LAYOUTS[name], "chunks": (10,), "shards": (50,)})
    meta = tmp_path / "a.zarr/x/zarr.json"
    meta.write_text(meta.read_text().replace("uint16", "uint32"))
    with pytest.raises(ValueError, match="Chunk 0 of `x` cannot be decoded"):
        ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x").read(np.array([0]), np.array([50]))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"compressors": GzipCodec()}, "blosc, zstd or no compression, not gzip"),
        ({"compressors": [ZstdCodec(), GzipCodec()]}, "plain bytes and one compressor"),
        ({"serializer": {"name": "bytes", "configuration": {"endian": "big"}}}, "little endian numbers"),
    ],
)
def test_unknown_codecs_are_refused(tmp_path, change, what):
    write(tmp_path / "a.zarr", draw(233), LAYOUTS["lz4"] | change)
    with pytest.raises(ValueError, match=f"`x` must have {what}"):
        ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x")


def test_unknown_grids_are_refused(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("x", shape=(20, 6), dtype="uint16", chunks=(10, 3))
    with pytest.raises(ValueError, match="`x` must have chunks as wide as the array"):
        ArrayReader(LocalFiles(tmp_path / "a.zarr"), "x")
    write(tmp_path / "b.zarr", draw(233), LAYOUTS["lz4"])
    meta = tmp_path / "b.zarr/x/zarr.json"
    for key, value, what in (
        ("chunk_key_encoding", {"name": "v2"}, "default chunk keys"),
        ("index_codecs", [{"name": "bytes"}], "a crc32c index"),
    ):
        changed = json.loads(meta.read_text())
        (changed if key in changed else changed["codecs"][0]["configuration"])[key] = value
        (tmp_path / "b.zarr/y").mkdir(exist_ok=True)
        (tmp_path / "b.zarr/y/zarr.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"`y` must have {what}"):
            ArrayReader(LocalFiles(tmp_path / "b.zarr"), "y")
    with pytest.raises(ValueError, match=r"`z/zarr\.json` must be in the zarr v3 store, got none"):
        ArrayReader(LocalFiles(tmp_path / "b.zarr"), "z")
