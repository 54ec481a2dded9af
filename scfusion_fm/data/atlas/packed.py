"""Cells as the store holds them, and their way into dense matrices.

Letters: B cells, G genes, P proteins.
"""

import sys
import threading
from collections import deque
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

REMEMBERED = 16  # arrays that are lent again


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
        rna, adt
            (B, G) and (B, P) to be overwritten with counts.
        """
        _scatter(self.counts, self.counts_at, self.genes, self.genes_at, self.size, cells, rna)
        _gather(self.proteins, self.proteins_at, cells, adt)


class BufferPool:
    """
    Lend arrays, and lend them again when nobody holds them or a view of them any more.

    A batch of dense cells is tens of megabytes; having the system clear as much new memory for each costs more than
    everything else that is done to a cell.
    """

    def __init__(self):
        self._arrays: deque[NDArray] = deque(maxlen=REMEMBERED)
        self._lock = threading.Lock()
        self._arrays.append(np.empty(0))
        self._references_when_free = self._count_references(0)

    def __reduce__(self):
        return BufferPool, ()  # another process has arrays of its own

    def lend(self, shape: tuple[int, ...], dtype: type) -> NDArray:
        """Give an array with arbitrary content that nobody else uses."""
        with self._lock:
            for i in range(len(self._arrays)):
                if self._arrays[i].shape == shape and self._arrays[i].dtype == dtype and self._is_free(i):
                    return self._arrays[i]
            self._arrays.append(np.empty(shape, dtype))
            return self._arrays[-1]

    def _is_free(self, i: int) -> bool:
        return self._count_references(i) == self._references_when_free

    def _count_references(self, i: int) -> int:
        return sys.getrefcount(self._arrays[i])


@numba.njit(nogil=True, cache=True)
def _scatter(counts, counts_at, genes, genes_at, size, cells, out):
    for i in range(cells.size):
        cell, row = cells[i], out[i]
        row[:] = 0
        values = counts[counts_at[cell] : counts_at[cell] + size[cell]]
        columns = genes[genes_at[cell] : genes_at[cell] + size[cell]]
        for k in range(size[cell]):
            row[columns[k]] = values[k]


@numba.njit(nogil=True, cache=True)
def _gather(values, at, cells, out):
    for i in range(cells.size):
        row = at[cells[i]]
        for k in range(out.shape[1]):
            out[i, k] = values[row, k]
