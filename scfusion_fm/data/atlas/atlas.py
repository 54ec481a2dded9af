"""The atlas: many data sets with different panels in one AnnData store on zarr v3.

`anndata.read_zarr(path)` opens it. `X` holds raw RNA counts (sharded CSR) over the gene vocabulary, `obsm["adt"]`
raw protein counts over the protein vocabulary. What was measured is written beside it: `obs["rna_present"]` and
`obs["adt_present"]` per cell, `varm["rna_panel"]` and `uns["adt"]["panel"]` per data set (columns in the order of
`uns["datasets"]`). A zero is a count only where these are true.

Letters: B cells, G genes, P proteins, E data sets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.atlas.manifest import read_manifest
from scfusion_fm.data.atlas.packed import BufferPool, PackedCells
from scfusion_fm.data.atlas.tables import AtlasTables
from scfusion_fm.data.locations import Location, checksum, file_system
from scfusion_fm.data.schema import CellCounts
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.data.workers import Progress


@dataclass(frozen=True)
class Measured:
    """
    Say what some cells measured; cells of a data set share its panel.

    Attributes
    ----------
    panels
        (panels, features), what each panel measures.
    panel
        (B,) the panel of each cell.
    """

    panels: NDArray[np.bool_]
    panel: NDArray[np.int64]

    def per_cell(self) -> NDArray[np.bool_]:
        """Give the features of each cell, (B, features)."""
        return self.panels[self.panel]


@dataclass(frozen=True)
class AtlasRows:
    """
    Some cells of an atlas.

    Attributes
    ----------
    row
        (B,) row numbers in the atlas.
    rna, rna_measured, rna_total_counts
        (B, G) counts, which of them were measured, (B,) library size over all genes of the source.
    adt, adt_measured
        (B, P) counts, and which of them were measured.
    """

    row: NDArray[np.int64]
    rna: NDArray[np.float32]
    rna_measured: Measured
    rna_total_counts: NDArray[np.float64]
    adt: NDArray[np.float32]
    adt_measured: Measured

    @property
    def rna_observed(self) -> NDArray[np.bool_]:
        """(B, G) whether a gene was measured; made anew at each call."""
        return self.rna_measured.per_cell()

    @property
    def adt_observed(self) -> NDArray[np.bool_]:
        """(B, P) whether a protein was measured; made anew at each call."""
        return self.adt_measured.per_cell()

    def as_counts(self) -> CellCounts:
        """Give the cells to a feature extractor."""
        return {
            "rna_counts": self.rna,
            "rna_observed": self.rna_observed,
            "rna_total_counts": self.rna_total_counts,
            "adt_counts": self.adt,
            "adt_observed": self.adt_observed,
        }


class Atlas:
    """
    Read an atlas by row numbers; any number of threads may.

    Parameters
    ----------
    path
        Directory that `scfusion prepare` wrote, or the URL of a copy of it in an object store.

    Raises
    ------
    ValueError
        If there is no complete atlas of this version.
    """

    def __init__(self, path: Location):
        tables = AtlasTables(path)
        self.manifest, self.path = tables.manifest, tables.location
        number, values = self.manifest["num_cells"], self.manifest["num_values"]
        self._counts = tables.array("X/data", (values,), complete=True)
        self._genes = tables.array("X/indices", (values,), complete=True)
        self._proteins = tables.array("obsm/adt", (number, self.manifest["num_proteins"]))
        self._indptr = tables.array("X/indptr", (number + 1,)).read_all(number + 1)
        self._check_indptr(number)
        self._total_counts = tables.column("rna_total_counts")
        self.dataset = tables.categories("dataset")
        self.split = tables.categories("split")
        self._check_datasets()
        self._buffers = BufferPool()
        self._rna_panels, self._adt_panels = (_panels(tables.panel(kind)) for kind in ("rna", "adt"))
        self._rna_panel, self._adt_panel = (
            np.where(tables.column(key), self.dataset.codes, -1) for key in ("rna_present", "adt_present")
        )

    def __len__(self) -> int:
        return len(self._indptr) - 1

    def __repr__(self) -> str:
        sizes = f"{len(self):,} cells, {self._rna_panels.shape[1]:,} genes and {self._adt_panels.shape[1]:,} proteins"
        return f"Atlas of {sizes} at {self.path}"

    @property
    def fingerprint(self) -> str:
        """Identify the content: rows, counts, vocabulary and split."""
        return self.manifest["fingerprint"]

    @property
    def vocabulary(self) -> Vocabulary:
        """Genes and proteins of the columns."""
        return Vocabulary(**self.manifest["vocabulary"])

    @property
    def dense_bytes_per_cell(self) -> int:
        """Memory of one cell of `AtlasRows`."""
        return 4 * (self._rna_panels.shape[1] + self._adt_panels.shape[1])  # float32

    @property
    def table_bytes(self) -> int:
        """Memory of what is known of every cell and chunk."""
        per_cell = (self._indptr, self._total_counts, self._rna_panel, self._adt_panel)
        arrays = (self._counts, self._genes, self._proteins)
        return sum(a.nbytes for a in per_cell) + sum(16 * -(-a.shape[0] // a.chunk_rows) for a in arrays)

    def sparse_bytes_per_cell(self, block_rows: int) -> float:
        """Give the mean memory of one cell of `PackedCells`, read in blocks: the chunks that a block touches."""
        entries = block_rows * self._indptr[-1] / len(self)
        total = 0.0
        for array, rows in ((self._counts, entries), (self._genes, entries), (self._proteins, block_rows)):
            width = int(np.prod(array.shape[1:])) * array.dtype.itemsize
            total += (rows + array.chunk_rows) * width / block_rows
        return total

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """List the rows of one split, train, val or test, without cells of which nothing was measured."""
        return np.flatnonzero((self.split == split) & ((self._rna_panel >= 0) | (self._adt_panel >= 0)))

    def rows_by_dataset(self, split: str) -> dict[str, NDArray[np.int64]]:
        """List the rows of one split for each data set."""
        rows = self.rows_of(split)
        code = self.dataset.codes[rows]
        ends = np.cumsum(np.bincount(code, minlength=len(self.dataset.categories)))
        if (code[1:] < code[:-1]).any():  # else data sets stand one after the other, as `scfusion prepare` writes them
            rows = rows[np.argsort(code, kind="stable")]
        parts = np.split(rows, ends[:-1])
        return dict(zip(self.dataset.categories, parts, strict=True))

    def read(self, rows: NDArray[np.int64]) -> AtlasRows:
        """Read cells in the order of `rows`."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"`rows` must lie in [0, {len(self)}), got {rows.min()} to {rows.max()}.")
        return self.unpack(rows, [(self.read_packed(rows), np.arange(len(rows)))])

    def read_packed(self, rows: NDArray[np.int64]) -> PackedCells:
        """
        Read cells without unpacking them.

        Raises
        ------
        ValueError
            If a part of the store is missing or damaged.
        """
        start, stop = self._indptr[rows], self._indptr[rows + 1]
        (counts, counts_at), (genes, genes_at) = self._read_entries(start, stop)
        proteins, proteins_at = self._proteins.read(rows, rows + 1)
        return PackedCells(counts, genes, counts_at, genes_at, stop - start, proteins, proteins_at)

    def read_rna(self, rows: NDArray[np.int64]) -> sp.csr_matrix:
        """
        Read the RNA counts of cells, (B, G), in the order of `rows`.

        Raises
        ------
        ValueError
            If a part of the store is missing or damaged.
        """
        rows = np.asarray(rows, dtype=np.int64)
        start, stop = self._indptr[rows], self._indptr[rows + 1]
        (counts, counts_at), (genes, genes_at) = self._read_entries(start, stop)
        size, indptr = stop - start, np.concatenate(([0], np.cumsum(stop - start)))
        inside = np.arange(indptr[-1]) - np.repeat(indptr[:-1], size)
        values = counts[np.repeat(counts_at, size) + inside].astype(np.float32)
        columns = genes[np.repeat(genes_at, size) + inside].astype(np.int32)
        return sp.csr_matrix((values, columns, indptr), shape=(len(rows), self._rna_panels.shape[1]))

    def read_adt(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """
        Read the protein counts of cells, (B, P), in the order of `rows`.

        Raises
        ------
        ValueError
            If a part of the store is missing or damaged.
        """
        rows = np.asarray(rows, dtype=np.int64)
        proteins, proteins_at = self._proteins.read(rows, rows + 1)
        return proteins[proteins_at].astype(np.float32)

    def unpack(self, rows: NDArray[np.int64], parts: Sequence[tuple[PackedCells, NDArray[np.int64]]]) -> AtlasRows:
        """
        Make cells dense.

        Parameters
        ----------
        rows
            (B,) row numbers of the cells.
        parts
            Where the cells are, one after the other: packed cells, and which of them.
        """
        rna, adt = (
            self._buffers.lend((len(rows), p.shape[1]), np.float32) for p in (self._rna_panels, self._adt_panels)
        )
        start = 0
        for cells, inside in parts:
            stop = start + len(inside)
            cells.unpack(inside, rna[start:stop], adt[start:stop])
            start = stop
        return AtlasRows(
            row=rows,
            rna=rna,
            rna_measured=Measured(self._rna_panels, self._rna_panel[rows]),
            rna_total_counts=self._total_counts[rows],
            adt=adt,
            adt_measured=Measured(self._adt_panels, self._adt_panel[rows]),
        )

    def _read_entries(
        self, start: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> tuple[tuple[NDArray, NDArray[np.int64]], tuple[NDArray, NDArray[np.int64]]]:
        """Read counts and their genes, with neighbours, and where in them each cell begins."""
        counts, genes = self._counts.read(start, stop), self._genes.read(start, stop)
        if genes[0].size and genes[0].max() >= self._rna_panels.shape[1]:
            raise ValueError(
                f"`X/indices` must be below the number of genes, {self._rna_panels.shape[1]}, got {genes[0].max()}; "
                "copy or prepare the atlas again."
            )
        return counts, genes

    def _check_indptr(self, number: int) -> None:
        steps, end = np.diff(self._indptr), self.manifest["num_values"]
        if self._indptr[0] != 0 or (steps < 0).any() or self._indptr[-1] != end:
            raise ValueError(
                f"`X/indptr` must rise from 0 to {end} in {number} steps; copy or prepare the atlas again."
            )

    def _check_datasets(self) -> None:
        names, sources, codes = list(self.dataset.categories), self.manifest["sources"], self.dataset.codes
        found = dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True))
        if names != [s["name"] for s in sources] or list(found.values()) != [s["cells"] for s in sources]:
            raise ValueError(
                f"`obs/dataset` must have the data sets and cells of the manifest, got {str(found)[:200]}; copy or "
                "prepare the atlas again."
            )


def _panels(measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Give for each data set what it measured, and at the end, at -1, nothing: (E + 1, features)."""
    panels = np.zeros((measured.shape[1] + 1, measured.shape[0]), bool)  # rows together, for fast copies
    panels[:-1] = measured.T
    return panels


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
        if not fs.isfile(f"{path}/{name}"):
            bad.append(f"{name} (missing)")
        elif checksum(str(location).rstrip("/") + f"/{name}") != expected["sha256"]:
            bad.append(f"{name} (changed)")
        progress.advance()
    if bad:
        raise ValueError(
            f"`atlas` must be as it was written, got {len(bad):,} of {len(files):,} files missing or changed in "
            f"{str(location)!r}: {', '.join(bad[:5])}. Copy or prepare it again."
        )
