"""Matrices and tables of files of any size: opened without reading them, and read by rows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from numpy.typing import NDArray

from scfusion_fm.data.locations import file_system, is_remote, zarr_store

BLOCK_VALUES = 2**22  # values that are looked at together
MAX_NAMES = 100_000  # longest list of names in `uns`


def open_root(location: str) -> h5py.File | zarr.Group:
    """Open a file or store for reading, once per process."""
    return _open_root(location, 0 if is_remote(location) else Path(location).stat().st_mtime_ns)


def close_files() -> None:
    """Let go of the files that this process has open."""
    _open_root.cache_clear()


@lru_cache(maxsize=8)
def _open_root(location: str, changed_ns: int) -> h5py.File | zarr.Group:
    """Open a file; `changed_ns` tells another one at the same path."""
    fs, path = file_system(location)
    if fs.isdir(path):
        return zarr.open_group(zarr_store(location), mode="r")
    return h5py.File(fs.open(path, "rb") if is_remote(location) else path, "r")


class FileArray:
    """
    Name an array of a file, which is opened when it is read; can be sent to other processes.

    Parameters
    ----------
    location
        Path or URL of the file.
    array
        The array, as opened here.
    """

    def __init__(self, location: str, array: h5py.Dataset | zarr.Array):
        self.location, self.name = location, array.name
        self.shape, self.dtype = tuple(array.shape), array.dtype

    def __getitem__(self, key: Any) -> NDArray:
        return open_root(self.location)[self.name][key]


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
    """

    data: Any
    indices: Any
    indptr: NDArray[np.integer]
    shape: tuple[int, int]

    def __post_init__(self):
        steps = np.diff(self.indptr.astype(np.int64))
        whole = len(self.indptr) == self.shape[0] + 1 and self.indptr[0] == 0 and (steps >= 0).all()
        if not whole or self.indptr[-1] != self.data.shape[0] or self.indices.shape != self.data.shape:
            raise ValueError(
                f"`indptr` must lead from 0 to the {self.data.shape[0]:,} stored values in {self.shape[0]:,} steps, "
                f"got {len(self.indptr):,} entries up to {self.indptr[-1] if len(self.indptr) else None}. "
                "The file may be damaged: write it again."
            )

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Read neighbouring rows."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indptr = self.indptr[start : stop + 1] - self.indptr[start]
        parts = (self.data[first:last], self.indices[first:last].astype(np.int64), indptr)
        return sp.csr_matrix(parts, shape=(stop - start, self.shape[1]))

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

    def values(self) -> Iterator[NDArray]:
        """Read all values, block by block."""
        step = max(BLOCK_VALUES // max(self.shape[1], 1), 1)
        for start in range(0, self.shape[0], step):
            yield self.array[start : start + step]


StoredMatrix = StoredCsr | StoredDense


@dataclass(frozen=True)
class StoredRaw:
    """Hold the `.raw` of an AnnData."""

    X: StoredMatrix
    var: pd.DataFrame


def _read_or_name(name: str, read: Callable[[], Any]) -> Any:
    """Read an element of a file, or raise a ValueError that names it."""
    try:
        return read()
    except Exception as error:  # the libraries raise OSError, KeyError, RuntimeError and more on broken elements
        raise ValueError(f"`{name}` must be readable, got {type(error).__name__}: {error}. Write it again.") from error


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
    """Give a matrix in memory the form of one in a file."""
    if sp.issparse(matrix):
        csr = sp.csr_matrix(matrix)
        return StoredCsr(csr.data, csr.indices, csr.indptr, csr.shape)
    return StoredDense(np.asarray(matrix))


def store_anndata(adata: ad.AnnData) -> StoredAnnData:
    """Give an AnnData in memory the form of one in a file."""
    layers = {key: partial(store_matrix, matrix) for key, matrix in adata.layers.items() if key is not None}
    obsm = {key: partial(_store_beside, key, element) for key, element in adata.obsm.items()}
    uns = {key: partial(_as_names, value) for key, value in adata.uns.items() if _is_names(value)}
    return StoredAnnData(
        obs=adata.obs,
        var=adata.var,
        X=None if adata.X is None else store_matrix(adata.X),
        layers=Elements("layers", layers),
        raw=None if adata.raw is None else StoredRaw(store_matrix(adata.raw.X), adata.raw.var),
        obsm=Elements("obsm", obsm),
        uns=Elements("uns", uns),
    )


def _store_beside(key: str, element: Any) -> StoredTable | StoredMatrix:
    """Give an element of `obsm` in memory the form of one in a file."""
    if isinstance(element, pd.DataFrame):
        return StoredTable(f'obsm["{key}"]', [str(name) for name in element.columns], lambda: element)
    return store_matrix(element)


def _is_names(value: Any) -> bool:
    """Tell whether something of `uns`, in memory or in a file, may be a list of names."""
    if isinstance(value, list | tuple):
        return 0 < len(value) <= MAX_NAMES and all(isinstance(name, str) for name in value)
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    return len(shape) == 1 and 0 < shape[0] <= MAX_NAMES and getattr(dtype, "kind", "") not in "biufcmMV"


def _as_names(values: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in values]


def open_anndata(location: str, group: h5py.Group | zarr.Group) -> StoredAnnData:
    """Open an AnnData of the present on-disk format (0.7 and later), in HDF5 or zarr."""

    def open_matrix(key: str) -> StoredMatrix | None:
        return _open_matrix(location, group[key]) if key in group else None

    def elements(slot: str, read: Callable[[str], Any]) -> Elements:
        names = list(group[slot]) if slot in group else []
        return Elements(slot, {name: partial(read, f"{slot}/{name}") for name in names})

    uns = {
        name: partial(lambda key: _as_names(ad.io.read_elem(group[key])), f"uns/{name}")
        for name in group.get("uns", ())
        if _may_be_names(group["uns"], name)
    }
    return StoredAnnData(
        obs=ad.io.read_elem(group["obs"]),
        var=ad.io.read_elem(group["var"]),
        X=open_matrix("X"),
        layers=elements("layers", open_matrix),
        raw=StoredRaw(open_matrix("raw/X"), ad.io.read_elem(group["raw/var"])) if "raw/X" in group else None,
        obsm=elements("obsm", lambda key: _open_beside(location, key, group[key])),
        uns=Elements("uns", uns),
    )


def _may_be_names(uns: h5py.Group | zarr.Group, name: str) -> bool:
    try:
        return isinstance(uns[name], h5py.Dataset | zarr.Array) and _is_names(uns[name])
    except Exception:  # a broken element of `uns` is none that is read
        return False


def _open_beside(location: str, key: str, element: Any) -> StoredTable | StoredMatrix:
    """Open an element of `obsm`."""
    if element.attrs.get("encoding-type") == "dataframe":
        names = [str(name) for name in element.attrs["column-order"]]
        return StoredTable(f'obsm["{key.removeprefix("obsm/")}"]', names, lambda: ad.io.read_elem(element))
    return _open_matrix(location, element)


def open_10x(location: str, matrix: h5py.Group) -> StoredAnnData:
    """Open the group `matrix` of a 10x file of Cell Ranger 3 or later; its columns are cells."""
    features = {key: matrix[f"features/{key}"][:].astype(str) for key in ("id", "name", "feature_type")}
    var = pd.DataFrame(
        {"gene_ids": features["id"], "feature_types": features["feature_type"]}, index=pd.Index(features["name"])
    )
    obs = pd.DataFrame(index=pd.Index(matrix["barcodes"][:].astype(str)))
    num_vars, num_obs = (int(n) for n in matrix["shape"][:])
    data, indices = (FileArray(location, matrix[key]) for key in ("data", "indices"))
    return StoredAnnData(obs, var, StoredCsr(data, indices, matrix["indptr"][:], (num_obs, num_vars)))


def _open_matrix(location: str, element: Any) -> StoredMatrix:
    if isinstance(element, h5py.Dataset | zarr.Array):
        return StoredDense(FileArray(location, element))
    if element.attrs.get("encoding-type") == "csr_matrix":
        shape = tuple(int(n) for n in element.attrs["shape"])
        data, indices = (FileArray(location, element[key]) for key in ("data", "indices"))
        return StoredCsr(data, indices, element["indptr"][:], shape)
    return store_matrix(ad.io.read_elem(element))  # stored by columns: its rows cannot be read one by one
