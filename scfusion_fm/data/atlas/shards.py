"""Read ranges of rows of zarr v3 arrays, sharded or not, from a disk or an object store.

Only the public format is used: `zarr.json`, the chunk grid, the `sharding_indexed` codec with its checksummed index,
blosc, zstd or no compression, and the `crc32c` codec, by which every chunk is checked when it is read. Neighbouring
chunks come with one request, and decoding releases the GIL, so many threads can read at once. A "row" is an element of
a vector or a row of a matrix whose chunks are as wide as it is.
"""

import itertools
import math
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from scfusion_fm.data.atlas.metadata import MAX_JSON_BYTES, MAX_LENGTH, METADATA, parse_layout, parse_metadata
from scfusion_fm.data.locations import Location, file_system, is_remote

_ABSENT = np.uint64(2**64 - 1)
_BLOSC_HEADER = struct.Struct("<4xI4xI")  # bytes of the content and of the frame
_ZSTD_MAGIC, ZSTD_HEADER = b"\x28\xb5\x2f\xfd", 18  # and the most bytes of a header

Decoder = Callable[[memoryview, NDArray[np.uint8]], None]
ByteRange = tuple[str, int, int | None]  # key, first byte, end (None: to the end of the object)


class Files(Protocol):
    """Objects below a root, by their keys."""

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes | None]:
        """Read byte ranges; None where there is no object. A negative first byte counts from the end."""


class LocalFiles:
    """
    Read byte ranges of files.

    Parameters
    ----------
    root
        Directory to which keys are relative.
    """

    def __init__(self, root: Path):
        self.root = root
        self._inside: set[str] = set()  # directories that were looked at

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes | None]:
        """Read byte ranges; see `Files`."""
        return [self._read(*wanted) for wanted in ranges]

    def _read(self, key: str, start: int, stop: int | None) -> bytes | None:
        directory = key.rpartition("/")[0]
        if directory not in self._inside:
            if os.path.realpath(self.root / directory) != os.path.join(os.path.realpath(self.root), directory).rstrip(
                "/"
            ):
                raise ValueError(f"`{directory}` must lie in the store, got a link; copy or prepare the atlas again.")
            self._inside.add(directory)
        try:
            file = os.open(self.root / key, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe would not end
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ValueError(f"`{key}` must be a file of the store that can be read, got: {error.strerror}.") from error
        try:
            state = os.fstat(file)
            if not stat.S_ISREG(state.st_mode):
                raise ValueError(f"`{key}` must be a plain file of the store; copy or prepare the atlas again.")
            start = max(state.st_size + start, 0) if start < 0 else start
            stop = state.st_size if stop is None else min(stop, state.st_size)
            return os.pread(file, max(stop - start, 0), start)
        finally:
            os.close(file)


class RemoteFiles:
    """
    Read byte ranges of objects through fsspec, many at a time where the store allows.

    Parameters
    ----------
    url
        Prefix of the keys, such as `s3://bucket/atlas.zarr`.
    """

    def __init__(self, url: str):
        self._system, self._root = file_system(url)

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes | None]:
        """Read byte ranges; see `Files`."""
        if not ranges:
            return []
        keys, starts, stops = zip(*ranges, strict=True)
        paths = [f"{self._root}/{key}" for key in keys]
        found = self._system.cat_ranges(paths, list(starts), list(stops), on_error="return")
        return [_data_or_none(value) for value in found]


def _data_or_none(value: bytes | Exception) -> bytes | None:
    if isinstance(value, FileNotFoundError):
        return None
    if isinstance(value, Exception):
        raise value
    return value


def read_metadata(files: Files, name: str, sealed: bool = False) -> dict[str, Any]:
    """
    Read the `zarr.json` of an array or group; see `parse_metadata`.

    Raises
    ------
    ValueError
        If there is none, or it is not as it was written.
    """
    file = f"{name}/{METADATA}" if name else METADATA
    (found,) = files.read_ranges([(file, 0, MAX_JSON_BYTES + 1)])
    if found is None or len(found) > MAX_JSON_BYTES:
        what = "none there" if found is None else f"one of more than {MAX_JSON_BYTES:,} bytes"
        raise ValueError(f"`{file}` must be in the zarr v3 store, got {what}; copy or prepare the atlas again.")
    return parse_metadata(found, file, sealed)


def open_files(path: Location) -> Files:
    """Open a directory, or the place that a URL names."""
    return RemoteFiles(str(path)) if is_remote(path) else LocalFiles(Path(path))


@dataclass(frozen=True)
class _Run:
    """Chunks that follow each other in one object: place of the first, bytes of all, where each begins and ends."""

    first: int
    span: ByteRange
    starts: list[int]
    stops: list[int | None]


class ArrayReader:
    """
    Read ranges of rows of one array.

    Parameters
    ----------
    files
        Where the array lies.
    name
        Path of the array, such as `X/data`.
    complete
        Whether a missing chunk is an error; otherwise it holds the fill value, as zarr has it.
    sealed
        Whether its metadata must have a seal.

    Attributes
    ----------
    shape, dtype
        Of the array.
    chunk_rows
        Rows of one chunk, the unit of decoding.

    Raises
    ------
    ValueError
        If there is no such array, or it is stored in a way that this reader does not know.
    """

    def __init__(self, files: Files, name: str, complete: bool = False, sealed: bool = False):
        self._files, self.name = files, name
        meta = read_metadata(files, name, sealed)
        self._layout = layout = parse_layout(meta, f"{name}/{METADATA}")
        self.shape, self.dtype, self.chunk_rows = layout.shape, layout.dtype, layout.chunk_shape[0]
        width = tuple(max(n, 1) for n in self.shape[1:])  # zarr has no empty chunks
        self._complete = complete and 0 not in self.shape[1:]  # and stores no chunks without elements
        self._expect(layout.chunk_shape[1:] == layout.shard_shape[1:] == width, "chunks as wide as the array")
        self._expect(meta["chunk_key_encoding"].get("name") == "default", "default chunk keys")
        self._expect(layout.index_codecs in (None, ["bytes", "crc32c"]), "a crc32c index")
        self._key = f"{name}/c{layout.separator}{{}}{f'{layout.separator}0' * (len(self.shape) - 1)}"
        self._decode = self._find_decoder(layout.codecs)
        self._indexes: dict[int, NDArray[np.uint64] | None] = {}

    def read(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.int64]]:
        """
        Read ranges of rows.

        Parameters
        ----------
        start, stop
            (n,) first row and end of each range, in any order.

        Returns
        -------
        Rows of all chunks that the ranges touch, and (n,) where each range begins among them.

        Raises
        ------
        ValueError
            If a chunk is missing that must not be, or damaged.
        """
        first, count = start // self.chunk_rows, -(-stop // self.chunk_rows) - start // self.chunk_rows
        count = np.where(stop > start, count, 0)
        steps = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        chunks = np.unique(np.repeat(first, count) + steps)
        rows = self._read_chunks(chunks)
        return rows, np.searchsorted(chunks, first) * self.chunk_rows + start % self.chunk_rows

    def read_all(self, rows: int) -> NDArray:
        """Read the first rows of the array."""
        values, _ = self.read(np.array([0]), np.array([rows]))
        return values[:rows]

    def _read_chunks(self, chunks: NDArray[np.int64]) -> NDArray:
        try:
            return self._decode_chunks(chunks)
        except ValueError:
            if not self._indexes:
                raise
            self._indexes.clear()  # an atlas that has grown since has a new last shard
            return self._decode_chunks(chunks)

    def _decode_chunks(self, chunks: NDArray[np.int64]) -> NDArray:
        out = np.empty((len(chunks), self.chunk_rows, *self.shape[1:]), self.dtype)
        target = out.reshape(len(chunks), self.chunk_rows * math.prod(self.shape[1:])).view(np.uint8)
        runs = self._find(chunks)
        for gap in _gaps(runs, len(chunks)):
            self._fill_absent(out, gap, chunks)
        for run, data in zip(runs, self._files.read_ranges([run.span for run in runs]), strict=True):
            if data is None:
                self._fill_absent(out, slice(run.first, run.first + len(run.starts)), chunks)
                continue
            whole, i = memoryview(data), run.first
            try:
                for i, start, stop in zip(itertools.count(run.first), run.starts, run.stops):
                    self._decode(whole[start:stop], target[i])
            except (ValueError, RuntimeError) as error:
                raise ValueError(self._damage(chunks[i], f"cannot be decoded ({error})")) from error
        return out.reshape(len(chunks) * self.chunk_rows, *self.shape[1:])

    def _fill_absent(self, out: NDArray, where: slice, chunks: NDArray[np.int64]) -> None:
        if self._complete:
            raise ValueError(self._damage(chunks[where][0], "is missing"))
        out[where] = self._layout.fill

    def _find(self, chunks: NDArray[np.int64]) -> list[_Run]:
        """Find where chunks lie; an array without shards has one object per chunk."""
        if self._layout.index_at_end is None:
            most = self._layout.most_stored
            return [_Run(i, (self._key.format(chunk), 0, most), [0], [None]) for i, chunk in enumerate(chunks)]
        shard, inside = np.divmod(chunks, self._layout.chunks_per_shard)
        place = np.full((len(chunks), 2), _ABSENT)
        for s in np.unique(shard):
            index = self._index(int(s))
            if index is not None:
                place[shard == s] = index[inside[shard == s]]
        present = place[:, 0] != _ABSENT
        start = place[:, 0].astype(np.int64)
        stop = start + place[:, 1].astype(np.int64)
        joined = present[1:] & present[:-1] & (shard[1:] == shard[:-1]) & (start[1:] == stop[:-1])
        borders = [0, *(np.flatnonzero(~joined) + 1).tolist(), len(chunks)]
        runs = []
        for low, high in itertools.pairwise(borders):
            if low < high and present[low]:
                origin = int(start[low])
                span = (self._key.format(shard[low]), origin, int(stop[high - 1]))
                ends = (stop[low:high] - origin).tolist()
                runs.append(_Run(low, span, (start[low:high] - origin).tolist(), ends))
        return runs

    def _index(self, shard: int) -> NDArray[np.uint64] | None:
        """Give (offset, bytes) of the chunks of a shard; None where there is no such shard."""
        if shard not in self._indexes:
            size = 16 * self._layout.chunks_per_shard + 4
            span = (-size, None) if self._layout.index_at_end else (0, size)
            (data,) = self._files.read_ranges([(self._key.format(shard), *span)])
            if data is not None and (len(data) != size or _checksum(data[:-4]) != data[-4:]):
                chunk = shard * self._layout.chunks_per_shard
                raise ValueError(self._damage(chunk, "lies in a shard with a damaged index"))
            index = None if data is None else np.frombuffer(data[:-4], "<u8").reshape(-1, 2)
            if index is not None and (index[index[:, 0] != _ABSENT] > (MAX_LENGTH, self._layout.most_stored)).any():
                raise ValueError(
                    self._damage(shard * self._layout.chunks_per_shard, "lies in a shard with wrong sizes")
                )
            self._indexes[shard] = index
        return self._indexes[shard]

    def _find_decoder(self, codecs: list[dict]) -> Decoder:
        names = [c["name"] for c in codecs]
        checked = names[-1] == "crc32c"
        self._expect(names[0] == "bytes", f"plain bytes, not {names[0]}")
        settings = codecs[0].get("configuration", {})
        self._expect(settings.get("endian", "little") == "little", "little endian numbers")
        compressors = names[1:-1] if checked else names[1:]
        self._expect(len(compressors) <= 1, f"plain bytes and one compressor, not {names}")
        decoders = {"blosc": _decode_blosc, "zstd": _decode_zstd, "bytes": _copy}
        compressor = compressors[0] if compressors else "bytes"
        self._expect(compressor in decoders, f"blosc, zstd or no compression, not {compressor}")
        decode = decoders[compressor]
        return partial(_decode_checked, decode) if checked else decode

    def _expect(self, fits: bool, what: str) -> None:
        if not fits:
            raise ValueError(f"`{self.name}` must have {what}; write the atlas again with `scfusion prepare`.")

    def _damage(self, chunk: int, what: str) -> str:
        return f"Chunk {chunk} of `{self.name}` {what}; copy or prepare the atlas again."


def _gaps(runs: list[_Run], number: int) -> Iterator[slice]:
    """Give the places, of so many, that no run covers."""
    end = 0
    for run in runs:
        if end < run.first:
            yield slice(end, run.first)
        end = run.first + len(run.starts)
    if end < number:
        yield slice(end, number)


def _decode_checked(decode: Decoder, source: memoryview, target: NDArray[np.uint8]) -> None:
    """Decode what four bytes at its end say the checksum of."""
    if source.nbytes < 4 or _checksum(np.frombuffer(source[:-4], np.uint8)) != source[-4:]:
        raise ValueError("it does not have its checksum")
    decode(source[:-4], target)


def _checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    return google_crc32c.value(data).to_bytes(4, "little")


def _decode_blosc(source: memoryview, target: NDArray[np.uint8]) -> None:
    """Decode a blosc frame; its header is compared first, because blosc itself trusts it."""
    if source.nbytes < _BLOSC_HEADER.size:
        raise ValueError(f"{source.nbytes} bytes, too few for a header")
    size, stored = _BLOSC_HEADER.unpack_from(source)
    if size != target.nbytes or stored != source.nbytes:
        raise ValueError(f"{size} bytes in {stored}, expected {target.nbytes} in {source.nbytes}")
    blosc.decompress(source, target)


def _decode_zstd(source: memoryview, target: NDArray[np.uint8]) -> None:
    """Decode a zstd frame; its header is compared first, because that much memory is taken."""
    size = zstd_size(bytes(source[:ZSTD_HEADER]))
    if size != target.nbytes:
        raise ValueError(f"{size} bytes, expected {target.nbytes}")
    _copy(zstd.decompress(source), target)  # decoding into `target` would accept a shorter frame


def zstd_size(header: bytes) -> int | None:
    """Give the bytes of the content of a frame; None where its header does not tell (RFC 8878, 3.1.1.1)."""
    if len(header) < 6 or header[:4] != _ZSTD_MAGIC:
        return None
    single = header[4] >> 5 & 1
    start = 6 - single + (0, 1, 2, 4)[header[4] & 3]
    width = (single, 2, 4, 8)[header[4] >> 6]
    found = int.from_bytes(header[start : start + width], "little") + 256 * (width == 2)
    return found if width else None


def _copy(source: memoryview | bytes, target: NDArray[np.uint8]) -> None:
    if len(source) != target.nbytes:
        raise ValueError(f"{len(source)} bytes, expected {target.nbytes}")
    target[:] = np.frombuffer(source, np.uint8)
