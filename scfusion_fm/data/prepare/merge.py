"""Stage the store of an atlas in a working directory, describe it in the manifest, and publish it."""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zarr

from scfusion_fm.config.prepare import PrepareConfig
from scfusion_fm.data.atlas.manifest import FORMAT, FORMAT_VERSION, MANIFEST, format_manifest, read_manifest
from scfusion_fm.data.atlas.metadata import METADATA
from scfusion_fm.data.locations import Location, checksum, file_system, is_remote
from scfusion_fm.data.prepare.sources import Origin
from scfusion_fm.data.prepare.store import RNA_CHUNK_ROWS, NewDataset, StoreShape, create_store, cut_store, grow_store
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

MIN_CHUNK_VALUES = 1024


def stage_store(
    store: Path, base: Location | None, vocabulary: Vocabulary, config: PrepareConfig, datasets: Sequence[NewDataset]
) -> None:
    """
    Make a store that lacks only the bulk of new data sets: a new one, or one that continues an atlas.

    Raises
    ------
    ValueError
        If counts do not fit into the type of the atlas.
    """
    shutil.rmtree(store, ignore_errors=True)  # of a process that was killed here
    records = [piece.record for dataset in datasets for piece in dataset.pieces]
    largest = {"rna": max(r.largest_rna for r in records), "adt": max(r.largest_adt for r in records)}
    if base is None:
        rows, values = sum(r.rows for r in records), sum(r.values for r in records)
        chunk = max(RNA_CHUNK_ROWS * values // rows, MIN_CHUNK_VALUES)
        types = [_narrowest(largest[key]) for key in ("rna", "adt")]
        create_store(store, StoreShape(vocabulary, tuple(config.obs_columns), chunk, *types, config.codec))
    else:
        _copy_edges(base, store, read_manifest(base))
        _check_types(store, largest)
    grow_store(store, datasets)


def describe_dataset(dataset: NewDataset, origin: Origin) -> dict:
    """Say in the manifest what a data set holds, and identify its content by digests."""
    pieces = [piece.record for piece in dataset.pieces]
    panels = dataset.rna_observed.tobytes() + dataset.adt_observed.tobytes()
    return {
        "name": dataset.name,
        **asdict(origin),
        "cells": sum(piece.rows for piece in pieces),
        "values": sum(piece.values for piece in pieces),
        "cells_with_rna": sum(piece.cells["with_rna"] for piece in pieces),
        "cells_with_adt": sum(piece.cells["with_adt"] for piece in pieces),
        "panels_sha256": hashlib.sha256(panels).hexdigest(),
        "genes": int(dataset.rna_observed.sum()),
        "proteins": int(dataset.adt_observed.sum()),
        "pieces": [piece.digest for piece in pieces],
    }


def build_manifest(store: Path, base: dict | None, vocabulary: Vocabulary, settings: dict, records: list[dict]) -> None:
    """
    Describe a finished store in its manifest: sources, cells, fingerprint, and a checksum per file.

    Parameters
    ----------
    store
        The finished store.
    base
        Manifest of the atlas that grows; None for a new one.
    vocabulary, settings
        Genes and proteins, and the settings that all sources share.
    records
        What `describe_dataset` says of each new data set.
    """
    root = zarr.open_group(store, mode="r")
    first, number = base["num_cells"] if base else 0, root["obs/split/codes"].shape[0]
    categories = root["obs/split/categories"][:]
    added = np.bincount(root["obs/split/codes"][first:], minlength=len(categories))  # old chunks are not staged
    counts = dict(base["cells_per_split"]) if base else {}
    for name, cells in zip(categories, added, strict=True):
        counts[str(name)] = counts.get(str(name), 0) + int(cells)
    sources = [*(base["sources"] if base else []), *records]
    files = {
        str(path.relative_to(store)): {"bytes": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {
        "format": FORMAT,
        "format_version": base["format_version"] if base else FORMAT_VERSION,
        "versions": {name: version(name) for name in ("scfusion-fm", "anndata", "zarr", "numcodecs", "numpy")},
        "num_cells": number,
        "num_values": int(root["X/indptr"][number]),
        "num_genes": vocabulary.num_genes,
        "num_proteins": vocabulary.num_proteins,
        "types": {"rna": root["X/data"].dtype.name, "adt": root["obsm/adt"].dtype.name},
        "cells_per_split": counts,
        "fingerprint": identify_content(vocabulary, sources),
        "recipe": settings,
        "sources": sources,
        "files": (base["files"] if base else {}) | files,
        "vocabulary_sha256": vocabulary.fingerprint(),
        "vocabulary": vocabulary.to_dict(),
    }
    (store / MANIFEST).write_text(format_manifest(manifest))


def identify_content(vocabulary: Vocabulary, sources: Sequence[dict]) -> str:
    """Identify the content of an atlas, whatever codec, chunks and workers wrote it: cells, order, counts, split."""
    digest = hashlib.sha256(vocabulary.fingerprint().encode())
    for source in sources:
        digest.update("\n".join([source["name"], source["panels_sha256"], *source["pieces"]]).encode())
    return digest.hexdigest()


def publish(store: Path, output: Location, append: bool) -> dict:
    """
    Put a staged store in its place; give its manifest.

    A new directory appears at once. An object store, or an atlas that grows, gets file by file: counts and columns
    first, then what says how long they are, the manifest last. Stopped in between, it holds the old cells; the
    same call goes on.
    """
    if not append and not is_remote(output):
        manifest = json.loads((store / MANIFEST).read_text())
        _move(store, Path(output))
        return manifest
    fs, path = file_system(output)
    for file in _in_order(store):
        target = f"{path}/{file.relative_to(store)}"
        if is_remote(output):
            fs.put_file(str(file), target)
        else:
            _replace(file, Path(target))
    return read_manifest(output)


def _move(store: Path, output: Path) -> None:
    """Let a directory appear in another place at once, on another file system too."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.rename(output)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        scratch = output.with_name(f".{output.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(store, scratch)
        scratch.rename(output)
        shutil.rmtree(store)


def _in_order(store: Path) -> Iterator[Path]:
    """List files such that a reader at any moment finds only what is there."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    last = [store / METADATA, store / MANIFEST]
    yield from (path for path in files if path.name != METADATA and path not in last)
    yield from (path for path in files if path.name == METADATA and path not in last)
    yield from last


def _replace(file: Path, target: Path) -> None:
    """Copy a file over another one, at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.new")
    shutil.copyfile(file, scratch)
    scratch.replace(target)


def _copy_edges(base: Location, store: Path, manifest: dict) -> None:
    """
    Copy the metadata of an atlas, and of each array the last file if it is not full.

    The manifest says how long the arrays are: an append that was given up may have left longer ones behind.
    """
    fs, path = file_system(base)
    names = [name for name in fs.find(path) if name.endswith("/" + METADATA)]
    for name in names:
        target = store / name[len(path) :].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(name, str(target))
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    cut_store(root, manifest["num_cells"], manifest["num_values"], len(manifest["sources"]))
    for name, array in root.members(max_depth=None):
        if not isinstance(array, zarr.Array) or 0 in array.shape:
            continue
        steps, last = array.shards or array.chunks, -(-array.shape[0] // (array.shards or array.chunks)[0])
        first = 0 if name.endswith("/categories") else last - bool(array.shape[0] % steps[0])
        for number in range(first, last):
            file = "/".join([name, "c", str(number), *["0"] * (array.ndim - 1)])
            if fs.exists(f"{path}/{file}"):  # zarr writes no file for zeros alone
                (store / file).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(f"{path}/{file}", str(store / file))


def _check_types(store: Path, largest: dict[str, int]) -> None:
    root = zarr.open_group(store, mode="r", use_consolidated=False)
    for key, name in (("rna", "X/data"), ("adt", "obsm/adt")):
        limit = np.iinfo(root[name].dtype).max
        if largest[key] > limit:
            raise ValueError(
                f"`--append` must add {key} counts up to {limit:,}, which this atlas holds, got {largest[key]:,}. "
                "Prepare the atlas anew with all sources."
            )


def _narrowest(largest: int) -> str:
    return "uint16" if largest <= np.iinfo(np.uint16).max else "uint32"
