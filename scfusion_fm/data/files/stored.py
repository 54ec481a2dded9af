"""Matrices and tables of files of any size: opened without reading them, and read by rows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from numpy.typing import NDArray

from scfusion_fm.data.files.arrays import plain_type
from scfusion_fm.data.files.broken import naming
from scfusion_fm.data.files.sparse import check_indices, check_sparse

BLOCK_VALUES = 2**22  # values that are looked at together
SLICE_ROWS = 4096  # rows that are taken together where it is not known how many values they have
MAX_NAMES = 100_000  # longest list of names in `uns`


@dataclass(frozen=True)
class StoredCsr:
    """
    Hold a CSR matrix whose values stay in the file.

    Parameters
    ----------
    data, indices
        (nnz,) arrays of numpy, h5py or zarr.
    indptr
        (n_obs + 1,) in memory.
    shape
        (n_obs, n_vars).
    name
        What to call it in errors.
    """

    data: Any
    indices: Any
    indptr: NDArray[np.integer]
    shape: tuple[int, int]
    name: str = "matrix"

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """
        Read neighbouring rows.

        Raises
        ------
        ValueError
            If their indices do not lie in the matrix, or they cannot be read.
        """
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indices = self.indices[first:last]
        check_indices(indices, self.shape[1], self.name)
        parts = (self.data[first:last], indices.astype(np.int64), self.indptr[start : stop + 1] - first)
        return sp.csr_matrix(parts, shape=(stop - start, self.shape[1]))

    def blocks(self) -> Iterator[sp.csr_matrix]:
        """Read all rows, some at a time."""
        start = 0
        while start < self.shape[0]:
            most = self.indptr[start] + BLOCK_VALUES
            stop = max(int(np.searchsorted(self.indptr, most, side="right")) - 1, start + 1)
            yield self.rows(start, min(stop, self.shape[0]))
            start = stop

    def values(self) -> Iterator[NDArray]:
        """Read all stored values, block by block."""
        for start in range(0, self.data.shape[0], BLOCK_VALUES):
            yield self.data[start : start + BLOCK_VALUES]


@dataclass(frozen=True)
class StoredDense:
    """Hold a dense matrix (n_obs, n_vars) of numpy, h5py or zarr whose values stay in the file."""

    array: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(n_obs, n_vars)."""
        return tuple(self.array.shape)

    def rows(self, start: int, stop: int) -> NDArray:
        """Read neighbouring rows."""
        return self.array[start:stop]

    def blocks(self) -> Iterator[NDArray]:
        """Read all rows, some at a time."""
        return self.values()

    def values(self) -> Iterator[NDArray]:
        """Read all values, block by block."""
        step = max(BLOCK_VALUES // max(self.shape[1], 1), 1)
        for start in range(0, self.shape[0], step):
            yield self.array[start : start + step]


@dataclass(frozen=True)
class StoredColumns:
    """Hold some columns of a matrix whose others hold something else."""

    whole: StoredCsr | StoredDense
    columns: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_obs, n_vars)."""
        return self.whole.shape[0], len(self.columns)

    def rows(self, start: int, stop: int) -> sp.csr_matrix | NDArray:
        """Read neighbouring rows."""
        return self.whole.rows(start, stop)[:, self.columns]

    def blocks(self) -> Iterator[sp.csr_matrix | NDArray]:
        """Read all rows, some at a time."""
        for block in self.whole.blocks():
            yield block[:, self.columns]

    def values(self) -> Iterator[NDArray]:
        """Read all stored values, block by block."""
        for block in self.blocks():
            yield block.data if sp.issparse(block) else block


@dataclass(frozen=True)
class StoredSlices:
    """Hold a matrix of an object of which rows are taken when they are needed: backed, lazy (dask), or in memory."""

    matrix: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(n_obs, n_vars)."""
        return tuple(self.matrix.shape)

    def rows(self, start: int, stop: int) -> sp.csr_matrix | NDArray:
        """
        Read neighbouring rows.

        Raises
        ------
        ValueError
            If their indices do not lie in the matrix.
        """
        part = self.matrix[start:stop]
        part = part.compute() if hasattr(part, "compute") else part
        if sp.issparse(part):
            check_sparse(part, "matrix")
            return sp.csr_matrix(part)
        values = np.asarray(part)
        return values.astype(plain_type(values.dtype), copy=False)

    def blocks(self) -> Iterator[sp.csr_matrix | NDArray]:
        """Read all rows, some at a time."""
        for start in range(0, self.shape[0], SLICE_ROWS):
            yield self.rows(start, min(start + SLICE_ROWS, self.shape[0]))

    def values(self) -> Iterator[NDArray]:
        """Read all stored values, block by block."""
        for block in self.blocks():
            yield block.data if sp.issparse(block) else block


StoredMatrix = StoredCsr | StoredDense | StoredColumns | StoredSlices


@dataclass(frozen=True)
class StoredRaw:
    """Hold the `.raw` of an AnnData."""

    X: StoredMatrix
    var: pd.DataFrame


def _read_or_name(name: str, read: Callable[[], Any]) -> Any:
    """Read an element of a file, or raise a ValueError that names it."""
    with naming(name):
        return read()


@dataclass(frozen=True)
class StoredTable:
    """
    Hold a DataFrame of `obsm` that is read when it is asked for.

    Parameters
    ----------
    slot
        What to call it in errors.
    names
        Names of its columns.
    element
        Gives the DataFrame.
    """

    slot: str
    names: list[str]
    element: Callable[[], pd.DataFrame]

    def read(self) -> pd.DataFrame:
        """
        Read it.

        Raises
        ------
        ValueError
            If it is broken.
        """
        return _read_or_name(self.slot, self.element)


class Elements(Mapping[str, Any]):
    """
    Hold the elements of one slot of an AnnData by name; each is opened when it is asked for.

    Parameters
    ----------
    slot
        Name of the slot.
    readers
        For each name, what opens the element.
    """

    def __init__(self, slot: str, readers: Mapping[str, Callable[[], Any]]):
        self.slot, self._readers = slot, dict(readers)

    def __getitem__(self, key: str) -> Any:
        """
        Open an element.

        Raises
        ------
        ValueError
            If it is broken; so a broken one does no harm to who does not ask for it.
        """
        return _read_or_name(f'{self.slot}["{key}"]', self._readers[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, key: object) -> bool:
        return key in self._readers


@dataclass(frozen=True)
class StoredAnnData:
    """
    Hold the parts of an AnnData from which counts are read, named as there; matrices stay in the file.

    `layers`, `obsm` and `uns` open an element when it is asked for, and raise a ValueError that names a broken one.
    In `obsm` are StoredTable for a DataFrame and StoredMatrix for an array; in `uns` lists of names alone.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    X: StoredMatrix | None
    layers: Mapping[str, StoredMatrix] = field(default_factory=dict)
    raw: StoredRaw | None = None
    obsm: Mapping[str, StoredTable | StoredMatrix] = field(default_factory=dict)
    uns: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_obs, n_vars)."""
        return len(self.obs), len(self.var)

    @property
    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.obs.index

    @property
    def var_names(self) -> pd.Index:
        """Names of the features."""
        return self.var.index


def store_matrix(matrix: Any) -> StoredMatrix:
    """
    Give a matrix of an object, in memory, backed or lazy, the form of one in a file.

    Raises
    ------
    ValueError
        If it is sparse and damaged.
    """
    if hasattr(matrix, "to_memory") and getattr(matrix, "format", "") == "csc":
        matrix = matrix.to_memory()  # of a backed object; its rows can only be had with all others
    if hasattr(matrix, "to_memory") or hasattr(matrix, "compute") or isinstance(matrix, h5py.Dataset | zarr.Array):
        return StoredSlices(matrix)
    if sp.issparse(matrix):
        if matrix.format in ("csr", "csc"):
            check_sparse(matrix, "matrix")  # before it is converted
        csr = sp.csr_matrix(matrix)
        return StoredCsr(csr.data, csr.indices, csr.indptr, csr.shape)
    values = np.asarray(matrix)
    return StoredDense(values.astype(plain_type(values.dtype), copy=False))


def store_anndata(adata: ad.AnnData) -> StoredAnnData:
    """Give an AnnData, in memory, backed or lazy, the form of one in a file."""
    layers = {key: partial(store_matrix, matrix) for key, matrix in adata.layers.items() if key is not None}
    obsm = {key: partial(_store_beside, key, element) for key, element in adata.obsm.items()}
    uns = {key: partial(as_names, value) for key, value in adata.uns.items() if is_names(value)}
    return StoredAnnData(
        obs=as_frame(adata.obs),
        var=as_frame(adata.var),
        X=None if adata.X is None else store_matrix(adata.X),
        layers=Elements("layers", layers),
        raw=None if adata.raw is None else StoredRaw(store_matrix(adata.raw.X), as_frame(adata.raw.var)),
        obsm=Elements("obsm", obsm),
        uns=Elements("uns", uns),
    )


def as_frame(table: Any) -> pd.DataFrame:
    """Give a table of an object that may be lazy."""
    return table if isinstance(table, pd.DataFrame) else table.to_memory()


def _store_beside(key: str, element: Any) -> StoredTable | StoredMatrix:
    """Give an element of `obsm` of an object the form of one in a file."""
    if hasattr(element, "columns"):
        element = as_frame(element)
        return StoredTable(f'obsm["{key}"]', [str(name) for name in element.columns], lambda: element)
    return store_matrix(element)


def is_names(value: Any) -> bool:
    """Tell whether something of `uns`, in memory or in a file, may be a list of names."""
    if isinstance(value, list | tuple):
        return 0 < len(value) <= MAX_NAMES and all(isinstance(name, str) for name in value)
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    return len(shape) == 1 and 0 < shape[0] <= MAX_NAMES and getattr(dtype, "kind", "") not in "biufcmMV"


def as_names(values: Any) -> list[str]:
    """Give a list of names as text."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in values]
