"""The atlas: many data sets with different panels in one AnnData store on zarr v3.

`anndata.read_zarr(path)` opens it. `X` holds raw RNA counts (sharded CSR) over the gene vocabulary, `obsm["adt"]`
raw protein counts over the protein vocabulary. What was measured is written beside it: `obs["rna_present"]` and
`obs["adt_present"]` per cell, `varm["rna_panel"]` and `uns["adt"]["panel"]` per data set (columns in the order of
`uns["datasets"]`). A zero is a count only where these are true.

Letters: B cells, G genes, P proteins, E data sets.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import anndata as ad
import numpy as np
import scipy.sparse as sp
import zarr
from numpy.typing import NDArray

from .engines import Progress
from .locations import Location, checksum, file_system, zarr_store
from .store import BLOCK_ROWS
from .vocabulary import Vocabulary

FORMAT = "scfusion-atlas"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"


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

    def __init__(self, path: Location, cached_blocks: int = 512):
        self.path = str(path)
        self.manifest = read_manifest(path)
        self._group = zarr.open_group(zarr_store(path), mode="r")
        number = self.manifest["num_cells"]  # the arrays are longer while cells are being added
        self._indptr = self._group["X/indptr"][: number + 1]
        columns = {key: self._group[f"obs/{key}"] for key in ("rna_present", "adt_present", "rna_total_counts")}
        self._obs = {key: value[:number] for key, value in columns.items()}
        self._dataset = ad.io.read_elem(self._group["obs/dataset"]).codes[:number]
        self.split = np.asarray(ad.io.read_elem(self._group["obs/split"]))[:number]
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


def read_manifest(location: Location) -> dict:
    """
    Read the manifest of an atlas.

    Raises
    ------
    ValueError
        If there is none, or it belongs to another format.
    """
    fs, path = file_system(location)
    try:
        manifest = json.loads(fs.cat_file(f"{path}/{MANIFEST}"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"`atlas` must be a directory that `scfusion prepare` wrote, got {str(location)!r}."
        ) from error
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"`atlas` must be of format {FORMAT} {FORMAT_VERSION}, got {found[0]} {found[1]} in {str(location)!r}; "
            "prepare it again with this version."
        )
    return manifest


def verify_atlas(location: Location, report: Callable[[str], None] = print) -> None:
    """
    Read all files of an atlas and compare them with the checksums of its manifest.

    Raises
    ------
    ValueError
        If files are missing or changed; the first of them are named.
    """
    fs, path = file_system(location)
    files = read_manifest(location)["files"]
    progress, bad = Progress(len(files), "files checked", report), []
    for name, expected in files.items():
        if not fs.exists(f"{path}/{name}"):
            bad.append(f"{name} (missing)")
        elif checksum(str(location).rstrip("/") + f"/{name}") != expected["sha256"]:
            bad.append(f"{name} (changed)")
        progress.advance()
    if bad:
        raise ValueError(
            f"`atlas` must be as it was written, got {len(bad):,} of {len(files):,} files missing or changed in "
            f"{str(location)!r}: {', '.join(bad[:5])}. Copy or prepare it again."
        )
