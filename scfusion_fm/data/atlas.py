"""The atlas: many data sets with different panels in one AnnData store on zarr v3.

`anndata.read_zarr(path)` opens it. `X` holds raw RNA counts (sharded CSR) over the gene vocabulary, `obsm["adt"]`
raw protein counts over the protein vocabulary. What was measured is written beside it: `obs["rna_present"]` and
`obs["adt_present"]` per cell, `varm["rna_panel"]` and `uns["adt"]["panel"]` per data set (columns in the order of
`uns["datasets"]`). A zero is a count only where these are true.

Letters: B cells, G genes, P proteins, E data sets.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from .vocabulary import Vocabulary

FORMAT = "scfusion-atlas"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BLOCK_ROWS = 64


@dataclass(frozen=True)
class AtlasRows:
    """
    Some cells of an atlas.

    Attributes
    ----------
    row
        (B,) row numbers in the atlas.
    rna, rna_observed, rna_total_counts
        (B, G) counts, (B, G) whether measured, (B,) library size over all genes of the source.
    adt, adt_observed
        (B, P) counts, (B, P) whether measured.
    """

    row: NDArray[np.int64]
    rna: sp.csr_matrix
    rna_observed: NDArray[np.bool_]
    rna_total_counts: NDArray[np.float64]
    adt: NDArray[np.float32]
    adt_observed: NDArray[np.bool_]

    def as_counts(self) -> dict[str, NDArray]:
        """Give the arguments of the feature extractor."""
        return {
            "rna_counts": self.rna.toarray(),
            "rna_observed": self.rna_observed,
            "rna_total_counts": self.rna_total_counts,
            "adt_counts": self.adt,
            "adt_observed": self.adt_observed,
        }


class Atlas:
    """
    Read an atlas by row numbers.

    Parameters
    ----------
    path
        Directory that `scfusion prepare` wrote.
    cached_blocks
        Decoded blocks of rows kept in memory.

    Raises
    ------
    ValueError
        If the directory is not a complete atlas of this version.
    """

    def __init__(self, path: str | Path, cached_blocks: int = 512):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._group = zarr.open_group(self.path, mode="r")
        self._indptr = self._group["X/indptr"][:]
        columns = {key: self._group[f"obs/{key}"] for key in ("rna_present", "adt_present", "rna_total_counts")}
        self._obs = {key: value[:] for key, value in columns.items()}
        self._dataset = ad.io.read_elem(self._group["obs/dataset"]).codes
        self.split = np.asarray(ad.io.read_elem(self._group["obs/split"]))
        self._rna_panel = self._group["varm/rna_panel"][:]  # (G, E)
        self._adt_panel = self._group["uns/adt/panel"][:]  # (P, E)
        self._block = lru_cache(maxsize=cached_blocks)(self._read_block)

    def __len__(self) -> int:
        return len(self._indptr) - 1

    @property
    def fingerprint(self) -> str:
        """Identify the content: rows, counts, vocabulary and split."""
        return self.manifest["fingerprint"]

    @property
    def vocabulary(self) -> Vocabulary:
        """Genes and proteins of the columns."""
        return Vocabulary(**self.manifest["vocabulary"])

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """List the rows of one split: train, val or test."""
        return np.flatnonzero(self.split == split)

    def read(self, rows: NDArray[np.int64]) -> AtlasRows:
        """Read cells in the order of `rows`."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"`rows` must lie in [0, {len(self)}), got {rows.min()} to {rows.max()}.")
        blocks, inverse = np.unique(rows // BLOCK_ROWS, return_inverse=True)
        rna, adt = zip(*(self._block(int(b)) for b in blocks), strict=True)
        starts = np.cumsum([0, *(len(a) for a in adt[:-1])])
        at = starts[inverse] + rows % BLOCK_ROWS
        dataset = self._dataset[rows]
        return AtlasRows(
            row=rows,
            rna=sp.vstack(rna, format="csr")[at],
            rna_observed=self._rna_panel.T[dataset] & self._obs["rna_present"][rows, None],
            rna_total_counts=self._obs["rna_total_counts"][rows],
            adt=np.concatenate(adt)[at],
            adt_observed=self._adt_panel.T[dataset] & self._obs["adt_present"][rows, None],
        )

    def _read_block(self, block: int) -> tuple[sp.csr_matrix, NDArray[np.float32]]:
        start, stop = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(self))
        indptr = self._indptr[start : stop + 1]
        span = slice(int(indptr[0]), int(indptr[-1]))
        data = self._group["X/data"][span].astype(np.float32)
        indices = self._group["X/indices"][span].astype(np.int32)
        shape = (stop - start, self._rna_panel.shape[0])
        rna = sp.csr_matrix((data, indices, indptr - indptr[0]), shape=shape)
        return rna, self._group["obsm/adt"][start:stop].astype(np.float32)


def read_manifest(path: Path) -> dict:
    """
    Read the manifest of an atlas.

    Raises
    ------
    ValueError
        If there is none, or it belongs to another format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(f"`atlas` must be a directory that `scfusion prepare` wrote, got {str(path)!r}.")
    manifest = json.loads(file.read_text())
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"`atlas` must be of format {FORMAT} {FORMAT_VERSION}, got {found[0]} {found[1]} in {str(path)!r}; "
            "prepare it again with this version."
        )
    return manifest


def write_atlas(path: Path, adata: ad.AnnData, vocabulary: Vocabulary, sources: list[dict]) -> dict:
    """
    Write an atlas; `path` must be a new directory.

    Parameters
    ----------
    path
        Where to write. The caller makes the write atomic.
    adata
        Cells with `X` (CSR of whole numbers), `obs`, `varm["rna_panel"]`, `obsm["adt"]` and `uns` as the module
        describes them.
    vocabulary
        Genes and proteins of the columns.
    sources
        One record per data set for the manifest.

    Returns
    -------
    The manifest.
    """
    counts, proteins = adata.X, adata.obsm["adt"]
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        group = zarr.open_group(path, mode="w-", zarr_format=3)
        ad.io.write_elem(group, "/", ad.AnnData(obs=adata.obs, var=adata.var, varm=adata.varm, uns=adata.uns))
    _write_csr(group, counts)
    _write_array(group, "obsm/adt", proteins.astype(smallest_unsigned(proteins)), (BLOCK_ROWS, proteins.shape[1]))
    group["obsm/adt"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
        zarr.consolidate_metadata(group.store)  # not in the specification yet; readers that lack it list files
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_cells": adata.n_obs,
        "num_genes": vocabulary.num_genes,
        "num_proteins": vocabulary.num_proteins,
        "cells_per_split": adata.obs["split"].value_counts().to_dict(),
        "sources": sources,
        "fingerprint": _fingerprint(adata, vocabulary),
        "vocabulary": vocabulary.to_dict(),
    }
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


def smallest_unsigned(counts: NDArray | sp.csr_matrix) -> np.dtype:
    """Give the narrowest unsigned type, 16 or 32 bits, that holds all counts."""
    return np.dtype(np.uint16 if counts.size == 0 or counts.max() <= np.iinfo(np.uint16).max else np.uint32)


def _write_csr(group: zarr.Group, counts: sp.csr_matrix) -> None:
    counts.sort_indices()
    del group["X"]
    x = group.create_group("X")
    shape = [int(n) for n in counts.shape]
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    chunk = max(16 * counts.nnz // max(counts.shape[0], 1), 1024)  # about 16 rows: cheap random blocks
    _write_array(x, "data", counts.data.astype(smallest_unsigned(counts.data)), (chunk,))
    width = np.uint16 if counts.shape[1] <= np.iinfo(np.uint16).max else np.int32
    _write_array(x, "indices", counts.indices.astype(width), (chunk,))
    _write_array(x, "indptr", counts.indptr.astype(np.int64), (len(counts.indptr),))


def _write_array(group: zarr.Group, name: str, values: NDArray, chunks: tuple[int, ...]) -> None:
    """Write a compressed array in shards of about 256 MB."""
    chunks = tuple(max(min(c, n), 1) for c, n in zip(chunks, values.shape, strict=True))
    chunk_bytes = int(np.prod(chunks)) * values.dtype.itemsize
    wanted = max(256 * 2**20 // max(chunk_bytes, 1), 1)
    shards = (chunks[0] * min(wanted, max(-(-values.shape[0] // chunks[0]), 1)), *chunks[1:])
    codec = zarr.codecs.BloscCodec(cname="lz4", clevel=3, shuffle="shuffle")
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=chunks, shards=shards, compressors=codec
    )
    array[:] = values


def _fingerprint(adata: ad.AnnData, vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256(vocabulary.fingerprint().encode())
    digest.update("\n".join(adata.obs_names).encode())
    digest.update("\n".join(adata.obs["split"].astype(str)).encode())
    for array in (adata.X.data, adata.X.indices, adata.X.indptr, adata.obsm["adt"]):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
