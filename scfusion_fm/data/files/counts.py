"""The counts of a file, which stay there: read by rows, checked, whatever matrix holds them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.arrays import FileArray
from scfusion_fm.data.files.broken import BrokenFileError
from scfusion_fm.data.files.sparse import check_indices, check_sparse
from scfusion_fm.data.files.stored import StoredCsr, StoredMatrix
from scfusion_fm.data.schema import ModalityCounts, check_counts

READ_ROWS = 4096  # rows that are read together where all are read


@dataclass(frozen=True)
class StoredModality:
    """
    Hold the counts of one modality, which stay in the file.

    Parameters
    ----------
    matrix
        Where they are.
    var
        Feature table of the file; its index holds the names in the file.
    names
        Names of the rows of the matrix.
    name
        What to call the matrix in errors.
    slot
        `layers["counts"]`, `.raw`, `X` or `obsm["protein_expression"]`.
    largest
        Largest value.
    columns
        Columns of the matrix that are features of this modality; all when None.
    place
        Row of the matrix of each cell of the file, -1 where the cell lacks the modality; all in order when None.
    """

    matrix: StoredMatrix
    var: pd.DataFrame
    names: pd.Index
    name: str
    slot: str
    largest: float
    columns: NDArray[np.int64] | None = None
    place: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.matrix.shape[0] if self.place is None else len(self.place)

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """
        Read the counts of neighbouring cells, float32, checked; empty rows for cells without the modality.

        Raises
        ------
        ValueError
            If they are no counts or the file is damaged.
        """
        counts = self._read_rows(start, stop) if self.place is None else self._read_placed(self.place[start:stop])
        return counts if self.columns is None else counts[:, self.columns]

    def blocks(self) -> Iterator[sp.csr_matrix]:
        """Read all cells, block by block."""
        for start in range(0, len(self), READ_ROWS):
            yield self.read(start, min(start + READ_ROWS, len(self)))

    def load(self) -> ModalityCounts:
        """Read all cells into memory."""
        counts = sp.vstack(list(self.blocks()), format="csr")
        present = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel() > 0
        return ModalityCounts(counts, self.var, present, self.slot)

    def put_in_order(self, targets: pd.Index) -> "StoredModality":
        """Take the cells in the order of `targets`; those that the matrix lacks get empty rows."""
        place = self.names.get_indexer(targets)
        in_order = len(place) == len(self.names) and np.array_equal(place, np.arange(len(place)))
        return self if in_order else replace(self, place=place)

    def _read_placed(self, place: NDArray[np.int64]) -> sp.csr_matrix:
        found = np.flatnonzero(place >= 0)
        rows = place[found]
        borders = np.flatnonzero(np.diff(np.sort(rows)) > READ_ROWS) + 1  # small gaps are read along
        runs = [run for run in np.split(np.sort(rows), borders) if len(run)]
        counts = sp.csr_matrix((len(place), self.matrix.shape[1]), dtype=np.float32)
        for run in runs:
            here = found[(rows >= run[0]) & (rows <= run[-1])]
            order = (np.ones(len(here), dtype=np.float32), (here, place[here] - run[0]))
            length = int(run[-1] - run[0]) + 1
            counts = counts + sp.csr_matrix(order, shape=(len(place), length)) @ self._read_rows(run[0], run[-1] + 1)
        counts.sort_indices()
        return counts

    def _read_rows(self, start: int, stop: int) -> sp.csr_matrix:
        return to_counts(self.matrix.rows(start, stop), self.name)


@dataclass(frozen=True)
class CellsFile:
    """
    Hold an open file: annotation in memory, counts where they are.

    Attributes
    ----------
    path
        Path or URL.
    obs
        Annotation; its index holds unique barcodes.
    rna, adt
        The modalities that the file has, with a row per row of `obs`.
    """

    path: str
    obs: pd.DataFrame
    rna: StoredModality | None
    adt: StoredModality | None


def to_counts(matrix: Any, name: str) -> sp.csr_matrix:
    """
    Give raw counts as CSR in float32, without zeros.

    Raises
    ------
    ValueError
        If they are no counts, or the matrix is damaged.
    """
    if sp.issparse(matrix):
        check_sparse(matrix, name)
    check_counts(matrix, name)
    counts = sp.csr_matrix(matrix, dtype=np.float32, copy=True)  # the container keeps its own
    num_entries = counts.nnz
    counts.sum_duplicates()
    if counts.nnz < num_entries:
        raise ValueError(
            f"`{name}` must store each entry once, got {num_entries - counts.nnz:,} repeated entries. "
            "The file may be damaged: write it again."
        )
    counts.eliminate_zeros()
    return counts


def check_values(matrix: StoredMatrix, name: str) -> float:
    """
    Check all stored values of a matrix, block by block; give the largest.

    Raises
    ------
    ValueError
        If they are no counts, or the matrix is damaged.
    """
    largest = 0.0
    if isinstance(matrix, StoredCsr) and isinstance(matrix.indices, np.ndarray):
        check_indices(matrix.indices, matrix.shape[1], name)
    zeros = 0
    for block in matrix.values():
        check_counts(block, name)
        largest = max(largest, float(np.max(block, initial=0)))
        zeros += block.size - int(np.count_nonzero(block))
    if isinstance(matrix, StoredCsr) and zeros and isinstance(matrix.data, FileArray):
        _check_chunks(matrix.data, zeros, name)
    return largest


def _check_chunks(data: FileArray, zeros: int, name: str) -> None:
    """
    Refuse values of a zarr store that are absent and can hardly have been zero.

    Zarr leaves out chunks of zeros alone, and reads what is absent as zeros. Where no other stored value is zero, the
    writer stored no zeros, and the chunk was lost.
    """
    absent = data.count_absent()
    if absent and zeros <= absent:
        raise BrokenFileError(
            f"`{name}` must have all its chunks, got {absent:,} absent values in {data.name.strip('/')}, and no zero "
            "among the others: chunks were lost. Copy the store again; where they did hold zeros, write it with "
            "write_empty_chunks=True."
        )
