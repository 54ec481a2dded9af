"""What an atlas says of all of its cells: columns of obs, panels, and readers of its matrices, checked when read.

The manifest says how many cells and data sets there are: an append that was interrupted leaves longer arrays behind.

Letters: N cells, G genes, P proteins, E data sets.
"""

import itertools
import math
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from scfusion_fm.data.atlas.manifest import FORMAT_VERSION, read_manifest
from scfusion_fm.data.atlas.metadata import MAX_CHUNK_BYTES, MAX_CHUNKS_PER_SHARD, METADATA
from scfusion_fm.data.atlas.shards import ZSTD_HEADER, ArrayReader, open_files, read_metadata, zstd_size
from scfusion_fm.data.locations import Location, absolute, zarr_store
from scfusion_fm.records import SEAL

_PANELS = {"rna": "varm/rna_panel", "adt": "uns/adt/panel"}
COUNTED_CODES = 2**20  # at a time


@contextmanager
def _one_error(name: str):
    """Say in one line what zarr says of an array, in whichever of many errors."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # what its codecs and parsers raise
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"`{name}` must be as it was written, got: {text}; copy or prepare the atlas again."
        ) from error


class AtlasTables:
    """
    Read what an atlas holds, but for the counts of cells.

    Parameters
    ----------
    location
        Directory or URL of the atlas.

    Attributes
    ----------
    manifest
        What it says of itself.
    location
        Its full path, or URL.

    Raises
    ------
    ValueError
        If there is no complete atlas of this version, or it is not as it was written.
    """

    def __init__(self, location: Location):
        self.manifest = read_manifest(location)
        self.location = absolute(location)
        self._files = open_files(self.location)
        self._sealed = SEAL in self.manifest
        self._complete = self.manifest["format_version"] == FORMAT_VERSION

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return self.manifest["num_cells"]

    def array(self, name: str, shape: tuple[int, ...], complete: bool = False) -> ArrayReader:
        """
        Open an array of numbers.

        Parameters
        ----------
        name
            Its path.
        shape
            How many rows it has at least, and how wide it is.
        complete
            Whether all chunks must be there, as it is in any atlas that has checksums.

        Raises
        ------
        ValueError
            If it is not as it was written.
        """
        reader = ArrayReader(self._files, name, complete or self._complete, self._sealed)
        self._check_shape(name, reader.shape, shape)
        return reader

    def column(self, name: str) -> NDArray:
        """Read a column of obs, (N,)."""
        return self.array(f"obs/{name}", (self.num_cells,)).read_all(self.num_cells)

    def has_column(self, name: str) -> bool:
        """Tell whether there is a column of obs."""
        return f"obs/{name}/{METADATA}" in self.manifest["files"]

    def categories(self, name: str) -> pd.Categorical:
        """
        Read a column of obs that holds categories, (N,).

        Raises
        ------
        ValueError
            If it is not as it was written.
        """
        codes, values = self.column(f"{name}/codes"), self._read_small(f"obs/{name}/categories", (0,))
        try:
            found = pd.Categorical.from_codes(codes, categories=pd.Index(values.astype(object)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`obs/{name}` must hold categories as they were written, got: {error}; copy or prepare the atlas "
                "again."
            ) from error
        used = _count_codes(found.codes, len(found.categories)) > 0
        return found if used.all() else found.remove_categories(found.categories[~used])

    def read_obs(self) -> pd.DataFrame:
        """
        Read the columns of obs that hold categories, as `dataset`, `split` and those of the sources; names as index.

        Raises
        ------
        ValueError
            If one is not as it was written.
        """
        codes = f"/codes/{METADATA}"
        files = [name for name in self.manifest["files"] if name.startswith("obs/") and name.endswith(codes)]
        columns = {name: self.categories(name) for name in (file[len("obs/") : -len(codes)] for file in files)}
        names = self._read_small("obs/_index", (0,))[: self.num_cells]
        return pd.DataFrame(columns, index=pd.Index(names.astype(object)))

    def panel(self, kind: str) -> NDArray[np.bool_]:
        """
        Read what each data set measured, (features, E).

        Parameters
        ----------
        kind
            `rna` or `adt`.

        Raises
        ------
        ValueError
            If it is not as it was written.
        """
        name, datasets = _PANELS[kind], len(self.manifest["sources"])
        features = self.manifest["num_genes" if kind == "rna" else "num_proteins"]
        return self._read_small(name, (features, datasets)).astype(bool)

    def _check_shape(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        """Compare the length with a least one, and the width; of a panel, the other way round."""
        fits = len(found) == len(wanted) and found[0] >= wanted[0] and found[1:] == wanted[1:]
        if name in _PANELS.values():
            fits = len(found) == 2 and found[0] == wanted[0] and found[1] >= wanted[1]
        if not fits:
            raise ValueError(
                f"`{name}` must have the shape {wanted} that the manifest tells of, or be longer, got {found}; copy or "
                "prepare the atlas again."
            )

    def check_edges(self) -> None:
        """
        Read what is written anew when the atlas grows: metadata, and the last file of each array.

        Raises
        ------
        ValueError
            If something of it is not as it was written: the grown atlas would hold it under a new checksum.
        """
        for file in self.manifest["files"]:
            name, _, last = file.rpartition("/")
            if last == METADATA and read_metadata(self._files, name, self._sealed).get("node_type") == "array":
                self._read_edge(name)

    def _read_edge(self, name: str) -> None:
        with _one_error(name):
            array = self._group[name]
            self._check_memory(array)
            step = (array.shards or array.chunks)[0]
            start = 0 if name.endswith("/categories") else array.shape[0] // step * step
            self._check_files(array, array.shape, start // step)
            array[start:]

    def _read_small(self, name: str, wanted: tuple[int, ...]) -> NDArray:
        """Read a panel or the text of categories, in chunks that zarr reads."""
        with _one_error(name):
            array = self._group[name]
            self._check_shape(name, array.shape, wanted)
            self._check_memory(array)
            if math.prod(array.shape) > MAX_CHUNK_BYTES:
                raise ValueError(f"the shape {array.shape} in chunks {array.chunks}")
            here = wanted if array.ndim == 2 else array.shape
            self._check_files(array, here)
            return array[tuple(slice(n) for n in here)]

    def _check_memory(self, array: zarr.Array) -> None:
        """Refuse chunks that are larger than any that was written."""
        shards, size = array.shards or array.chunks, math.prod(array.chunks) * max(array.dtype.itemsize, 1)
        number = math.prod(-(-whole // chunk) for whole, chunk in zip(shards, array.chunks, strict=True))
        if size > MAX_CHUNK_BYTES or number > MAX_CHUNKS_PER_SHARD:
            raise ValueError(f"chunks {array.chunks} in shards {shards}")

    def _check_files(self, array: zarr.Array, here: tuple[int, ...], first: int = 0) -> None:
        """Look at all files of a part: zarr reads links and pipes, and fills in what is missing."""
        sizes = zip(here, array.shards or array.chunks, strict=True)
        ranges = [range(-(-length // size)) for length, size in sizes]
        ranges[0] = ranges[0][first:]
        if math.prod(map(len, ranges)) > MAX_CHUNKS_PER_SHARD:
            raise ValueError(f"the shape {array.shape} in chunks {array.chunks}")
        keys = [f"{array.path}/{array.metadata.encode_chunk_key(place)}" for place in itertools.product(*ranges)]
        # Text can be of any length; what is written is far below a chunk of so many bytes.
        most = MAX_CHUNK_BYTES if array.shards is None else math.prod(array.shards) * max(array.dtype.itemsize, 1) * 2
        for key in keys:
            (data,) = self._files.read_ranges([(key, 0, most + 1)])
            if data is None and self._complete:
                raise ValueError(f"no {key}")
            if data is not None and (len(data) > most or (zstd_size(data[:ZSTD_HEADER]) or 0) > MAX_CHUNK_BYTES):
                raise ValueError(f"{key} of a size that no chunk has")

    @cached_property
    def _group(self) -> zarr.Group:
        read_metadata(self._files, "", self._sealed)
        return zarr.open_group(zarr_store(self.location), mode="r")


def _count_codes(codes: NDArray[np.integer], number: int) -> NDArray[np.int64]:
    """Count each code from 0, part by part: pandas would sort all cells, and numpy copy them to eight bytes each."""
    counts = np.zeros(number + 1, np.int64)  # -1, where there is none, comes first
    for start in range(0, len(codes), COUNTED_CODES):
        counts += np.bincount(codes[start : start + COUNTED_CODES].astype(np.int64) + 1, minlength=number + 1)
    return counts[1:]
