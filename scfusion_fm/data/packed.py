"""Cells as the store holds them, and their way into dense matrices.

Letters: B cells, G genes, P proteins.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedCells:
    """
    Some cells, still sparse and of integers, in the chunks in which they were read.

    Attributes
    ----------
    counts, genes
        RNA counts and their columns in the vocabulary, for these cells and neighbours that came along.
    counts_at, genes_at, size
        (B,) where each cell begins in `counts` and in `genes`, and how many entries it has.
    proteins, proteins_at
        (rows, P) protein counts, and (B,) the row of each cell.
    """

    counts: NDArray[np.unsignedinteger]
    genes: NDArray[np.integer]
    counts_at: NDArray[np.int64]
    genes_at: NDArray[np.int64]
    size: NDArray[np.int64]
    proteins: NDArray[np.unsignedinteger]
    proteins_at: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in vars(self).values())

    def unpack(self, cells: NDArray[np.int64], rna: NDArray[np.float32], adt: NDArray[np.float32]) -> None:
        """
        Write cells into dense matrices.

        Parameters
        ----------
        cells
            (B,) which of these cells.
        rna
            (B, G) zeros, to be filled with counts.
        adt
            (B, P) to be overwritten with counts.
        """
        _scatter(self.counts, self.counts_at, self.genes, self.genes_at, self.size, cells, rna)
        _gather(self.proteins, self.proteins_at, cells, adt)


@numba.njit(nogil=True, cache=True)
def _scatter(counts, counts_at, genes, genes_at, size, cells, out):
    for i in range(cells.size):
        cell = cells[i]
        count, gene = counts_at[cell], genes_at[cell]
        for k in range(size[cell]):
            out[i, genes[gene + k]] = counts[count + k]


@numba.njit(nogil=True, cache=True)
def _gather(values, at, cells, out):
    for i in range(cells.size):
        row = at[cells[i]]
        for k in range(out.shape[1]):
            out[i, k] = values[row, k]
