"""Write the zarr store of an atlas: an AnnData whose arrays grow at their ends.

All arrays have chunks and shards of a fixed shape, whatever their length. So cells are added by new files and by the
last file of each array written anew with what it held; a reader that knows the old lengths still reads the old cells.

Letters: N cells, V stored counts, G genes, P proteins, E data sets.
"""

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from scfusion_fm.data.atlas.metadata import METADATA, seal_metadata
from scfusion_fm.data.prepare.pieces import Piece
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

ADT_CHUNK_ROWS = 64  # cells of a chunk of `obsm/adt`
RNA_CHUNK_ROWS = 16  # cells of a chunk of `X`, about: cheap to read at random, and as compact as larger ones
CHUNKS_PER_SHARD = 2048  # a shard of `X` holds about 30,000 cells
COLUMN_CHUNK = 2**16  # entries of a chunk of a column of obs
EVERY_CHUNK = {"array.write_empty_chunks": True}  # a missing chunk means damage
CHECKSUM = (zarr.codecs.Crc32cCodec(),)  # of a chunk as it is stored, so checked before it is decompressed
TEXT = zarr.dtype.VariableLengthUTF8()
PLAIN_COLUMNS = {
    "rna_present": "bool",
    "adt_present": "bool",
    "rna_total_counts": "float64",
    "rna_fingerprint": "uint64",
    "adt_fingerprint": "uint64",
}
BULK = {"X/data": "data", "X/indices": "indices", "obsm/adt": "adt"}  # arrays that are written shard by shard


@dataclass(frozen=True)
class StoreShape:
    """
    Fix the shape and the types of a store when it is made.

    Attributes
    ----------
    vocabulary
        Genes and proteins of the columns.
    obs_columns
        Columns of obs beside those that every atlas has; text, stored as categories.
    chunk_values
        Stored counts of a chunk of `X`.
    rna_type, adt_type
        Types of the counts, `uint16` where all fit, else `uint32`.
    codec
        `lz4`, fast, or `zstd`, which takes a quarter less space.
    """

    vocabulary: Vocabulary
    obs_columns: tuple[str, ...]
    chunk_values: int
    rna_type: str
    adt_type: str
    codec: str


def create_store(path: Path, shape: StoreShape) -> None:
    """Make a store without cells; `path` must not exist."""
    root = zarr.open_group(path, mode="w-", zarr_format=3, attributes=_encoding("anndata", "0.1.0"))
    vocabulary = shape.vocabulary
    var = pd.DataFrame(
        {"symbol": vocabulary.gene_symbols, "chromosome": vocabulary.gene_chromosomes},
        index=pd.Index(vocabulary.gene_ids, name="gene_id", dtype=object),
        dtype=object,  # written in the same way by every pandas
    )
    with ad.settings.override(auto_shard_zarr_v3=False):
        checked = {"compressors": (zarr.codecs.ZstdCodec(), *CHECKSUM)}
        ad.io.write_elem(root, "var", var, dataset_kwargs=checked)
        adt = {"names": vocabulary.protein_names, "gene_ids": vocabulary.protein_gene_ids}
        ad.io.write_elem(
            root, "uns", {"adt": {k: np.array(v, dtype=str) for k, v in adt.items()}}, dataset_kwargs=checked
        )
    _create_matrices(root, shape)
    columns = ["dataset", "split", *PLAIN_COLUMNS, *shape.obs_columns]
    attributes = _encoding("dataframe", "0.2.0") | {"_index": "_index", "column-order": columns}
    obs = root.create_group("obs", attributes=attributes)
    _create_column(obs, "_index", TEXT)
    for name, kind in PLAIN_COLUMNS.items():
        _create_column(obs, name, kind)
    for name in ("dataset", "split", *shape.obs_columns):
        group = obs.create_group(name, attributes=_encoding("categorical", "0.2.0") | {"ordered": False})
        _create_column(group, "codes", "int32")
        _create_column(group, "categories", TEXT)
    _create_column(root["uns"], "datasets", TEXT)


def _create_matrices(root: zarr.Group, shape: StoreShape) -> None:
    num_genes, num_proteins = shape.vocabulary.num_genes, shape.vocabulary.num_proteins
    blosc = zarr.codecs.BloscCodec(cname=shape.codec, clevel=3, shuffle="shuffle")
    x = root.create_group("X", attributes=_encoding("csr_matrix", "0.1.0") | {"shape": [0, num_genes]})
    index_type = "uint16" if num_genes <= np.iinfo(np.uint16).max else "int32"
    for name, kind in (("data", shape.rna_type), ("indices", index_type)):
        _create_array(x, name, kind, (0,), (shape.chunk_values,), CHUNKS_PER_SHARD, blosc)
    _create_array(x, "indptr", "int64", (0,), (COLUMN_CHUNK,), 64, blosc)
    attributes = _encoding("array", "0.2.0")
    chunks = (ADT_CHUNK_ROWS, max(num_proteins, 1))
    adt = _create_array(_group(root, "obsm"), "adt", shape.adt_type, (0, num_proteins), chunks, CHUNKS_PER_SHARD, blosc)
    adt.attrs.update(attributes)
    for group, name, size in ((_group(root, "varm"), "rna_panel", num_genes), (root["uns/adt"], "panel", num_proteins)):
        panel = _create_array(group, name, "bool", (size, 0), (max(size, 1), 1), None, blosc)  # a file per data set
        panel.attrs.update(attributes)


def _group(root: zarr.Group, name: str) -> zarr.Group:
    return root.create_group(name, attributes=_encoding("dict", "0.1.0"))


def _create_column(group: zarr.Group, name: str, kind: object) -> None:
    encoding = _encoding("string-array" if kind is TEXT else "array", "0.2.0")
    codecs = (zarr.codecs.ZstdCodec(), *CHECKSUM)
    group.create_array(name, shape=(0,), chunks=(COLUMN_CHUNK,), dtype=kind, compressors=codecs, attributes=encoding)


def _create_array(
    group: zarr.Group,
    name: str,
    kind: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    chunks_per_shard: int | None,
    codec: zarr.codecs.BloscCodec,
) -> zarr.Array:
    shards = None if chunks_per_shard is None else (chunks[0] * chunks_per_shard, *chunks[1:])
    codecs = (codec, *CHECKSUM)
    return group.create_array(name, shape=shape, dtype=kind, chunks=chunks, shards=shards, compressors=codecs)


def _encoding(kind: str, version: str) -> dict[str, str]:
    return {"encoding-type": kind, "encoding-version": version}


@dataclass(frozen=True)
class NewDataset:
    """
    Hold what an atlas gets of a new data set.

    Attributes
    ----------
    name
        Name of the data set.
    pieces
        Its cells, in the order of the atlas.
    rna_observed, adt_observed
        (G,) and (P,), what it measures.
    """

    name: str
    pieces: Sequence[Piece]
    rna_observed: NDArray[np.bool_]
    adt_observed: NDArray[np.bool_]


def grow_store(path: Path, datasets: Sequence[NewDataset]) -> None:
    """Add all of new data sets but the bulk: lengths, annotation, panels; `write_shard` adds that."""
    with zarr.config.set(EVERY_CHUNK):
        _grow(path, datasets)


def _grow(path: Path, datasets: Sequence[NewDataset]) -> None:
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    pieces = [piece for dataset in datasets for piece in dataset.pieces]
    old_rows, old_values = root["obs/_index"].shape[0], root["X/data"].shape[0]
    lengths = np.concatenate([piece.array("lengths") for piece in pieces])
    ends = old_values + np.cumsum(lengths)
    _append(root["X/indptr"], ends if old_rows else np.concatenate([[0], ends]))
    for name in ("X/data", "X/indices"):
        root[name].resize((int(ends[-1]),))
    rows = old_rows + len(lengths)
    root["obsm/adt"].resize((rows, root["obsm/adt"].shape[1]))
    root["X"].attrs["shape"] = [rows, root["X"].attrs["shape"][1]]
    obs = pd.concat([piece.obs().assign(dataset=d.name) for d in datasets for piece in d.pieces])
    _append(root["obs/_index"], obs.index.to_numpy(dtype=object))
    for name in root["obs"].attrs["column-order"]:
        if name in PLAIN_COLUMNS:
            _append(root[f"obs/{name}"], obs[name].to_numpy())
        elif name == "dataset":  # its categories stand in the order of the panels
            _append_categories(root["obs/dataset"], obs["dataset"], [d.name for d in datasets])
        else:
            values = obs[name].astype(str)
            _append_categories(root[f"obs/{name}"], values, sorted(values.unique()))
    _append(root["uns/datasets"], np.array([d.name for d in datasets], dtype=object))
    for name, columns in (("varm/rna_panel", "rna_observed"), ("uns/adt/panel", "adt_observed")):
        array, new = root[name], np.stack([getattr(d, columns) for d in datasets], axis=1)
        first = array.shape[1]
        array.resize((array.shape[0], first + new.shape[1]))
        array[:, first:] = new


def cut_store(root: zarr.Group, rows: int, values: int, datasets: int) -> None:
    """Let the arrays be as long as those of so many cells, stored counts and data sets; columns of text keep all."""
    lengths = {"X/data": values, "X/indices": values, "X/indptr": rows + 1, "obs/_index": rows}
    lengths |= {"uns/datasets": datasets, "obs/dataset/categories": datasets}
    for name in root["obs"].attrs["column-order"]:
        lengths[f"obs/{name}" if name in PLAIN_COLUMNS else f"obs/{name}/codes"] = rows
    for name, length in lengths.items():
        root[name].resize((length,))
    root["obsm/adt"].resize((rows, root["obsm/adt"].shape[1]))
    for name in ("varm/rna_panel", "uns/adt/panel"):
        root[name].resize((root[name].shape[0], datasets))


def _append(array: zarr.Array, values: NDArray) -> None:
    first = array.shape[0]
    array.resize((first + len(values),))
    array[first:] = values


def _append_categories(group: zarr.Group, values: pd.Series, found: Sequence[str]) -> None:
    known = list(group["categories"][:])
    new = [value for value in found if value not in set(known)]
    _append(group["categories"], np.array(new, dtype=object))
    _append(group["codes"], pd.Categorical(values, categories=known + new).codes.astype(np.int32))


@dataclass(frozen=True)
class ShardTask:
    """
    Name a shard to write.

    Attributes
    ----------
    store
        Directory of the store.
    array
        A key of `BULK`.
    start, stop
        Its range along the first axis, as far as it is new.
    first
        Where the new pieces begin along that axis.
    pieces
        Directories of the new pieces.
    done
        File that says that the shard is written.
    """

    store: Path
    array: str
    start: int
    stop: int
    first: int
    pieces: tuple[Path, ...]
    done: Path


def plan_shards(store: Path, pieces: Sequence[Piece], done: Path) -> list[ShardTask]:
    """List the shards in which the new cells of a grown store lie, with the pieces that each needs."""
    root = zarr.open_group(store, mode="r", use_consolidated=False)
    tasks = []
    for name, source in BULK.items():
        array = root[name]
        sizes = [p.record.rows if source == "adt" else p.record.values for p in pieces]
        borders = list(accumulate(sizes, initial=array.shape[0] - sum(sizes)))
        step = array.shards[0]
        for shard in range(borders[0] // step, -(-array.shape[0] // step)):
            start, stop = max(shard * step, borders[0]), min((shard + 1) * step, array.shape[0])
            if 0 in array.shape or start >= stop:
                continue
            here = slice(bisect_right(borders, start) - 1, bisect_right(borders, stop - 1))
            paths = tuple(piece.path for piece in pieces[here])
            marker = done / f"{name.replace('/', '-')}-{shard:06d}"
            tasks.append(ShardTask(store, name, start, stop, borders[here.start], paths, marker))
    return tasks


def write_shard(task: ShardTask) -> None:
    """Fill a shard from the pieces."""
    parts, position = [], task.first
    for path in task.pieces:
        values = Piece.open(path).array(BULK[task.array])
        parts.append(values[max(task.start - position, 0) : max(task.stop - position, 0)])
        position += len(values)
    with zarr.config.set(EVERY_CHUNK):
        array = zarr.open_group(task.store, mode="r+", use_consolidated=False)[task.array]
        array[task.start : task.stop] = np.concatenate(parts).astype(array.dtype)
    task.done.touch()


def consolidate(store: Path) -> None:
    """Seal the metadata of all arrays, and write them into the root, where readers find them at once."""
    for file in store.rglob(METADATA):
        if file.parent != store:
            seal_metadata(file)
    with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
        zarr.consolidate_metadata(store)  # not in the specification yet; readers that lack it list files
    seal_metadata(store / METADATA)
