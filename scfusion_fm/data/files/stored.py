"""Matrices and tables of files of any size: opened without reading them, and read by rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
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


@dataclass(frozen=True)
class StoredAnnData:
    """Hold the parts of an AnnData from which counts are read, named as there; matrices stay in the file."""

    obs: pd.DataFrame
    var: pd.DataFrame
    X: StoredMatrix | None
    layers: Mapping[str, StoredMatrix] = field(default_factory=dict)
    raw: StoredRaw | None = None
    obsm: Mapping[str, Any] = field(default_factory=dict)

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


def store_anndata(adata: ad.AnnData, obsm_keys: tuple[str, ...]) -> StoredAnnData:
    """Give an AnnData in memory the form of one in a file."""
    return StoredAnnData(
        obs=adata.obs,
        var=adata.var,
        X=None if adata.X is None else store_matrix(adata.X),
        layers={key: store_matrix(adata.layers[key]) for key in ("counts",) if key in adata.layers},
        raw=None if adata.raw is None else StoredRaw(store_matrix(adata.raw.X), adata.raw.var),
        obsm={key: adata.obsm[key] for key in obsm_keys if key in adata.obsm},
    )


def open_anndata(location: str, group: h5py.Group | zarr.Group, obsm_keys: tuple[str, ...]) -> StoredAnnData:
    """Open an AnnData of the present on-disk format (0.7 and later), in HDF5 or zarr."""

    def open_matrix(key: str) -> StoredMatrix | None:
        return _open_matrix(location, group[key]) if key in group else None

    layers = {key: open_matrix(f"layers/{key}") for key in ("counts",) if f"layers/{key}" in group}
    return StoredAnnData(
        obs=ad.io.read_elem(group["obs"]),
        var=ad.io.read_elem(group["var"]),
        X=open_matrix("X"),
        layers=layers,
        raw=StoredRaw(open_matrix("raw/X"), ad.io.read_elem(group["raw/var"])) if "raw/X" in group else None,
        obsm={key: ad.io.read_elem(group[f"obsm/{key}"]) for key in obsm_keys if f"obsm/{key}" in group},
    )


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
