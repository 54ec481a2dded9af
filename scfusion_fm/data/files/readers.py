"""Open and read the files in which counts of RNA and surface proteins are exchanged."""

import warnings
from pathlib import Path
from typing import Any, TypeAlias

import anndata
import h5py
import mudata
import zarr

from scfusion_fm.data.files.counts import CellsFile
from scfusion_fm.data.files.modalities import select_features, select_modalities
from scfusion_fm.data.files.obs import check_obs_names
from scfusion_fm.data.files.stored import StoredAnnData, open_10x, open_anndata, open_root, store_anndata
from scfusion_fm.data.locations import Location, check_exists, file_system, is_remote, suffix_of, zarr_store
from scfusion_fm.data.schema import Cells, Modality

SUFFIXES = (".h5ad", ".h5mu", ".h5", ".zarr")
SIGNATURE = b"\x89HDF\r\n\x1a\n"

Container: TypeAlias = anndata.AnnData | mudata.MuData


def read_cells(path: str | Path, modality: Modality = "auto") -> Cells:
    """Read one file.

    Parameters
    ----------
    path
        `.h5ad`, `.h5mu`, 10x `.h5`, or a zarr directory of an AnnData or a MuData.
    modality
        What to read: 'auto' for all there is; 'rna' or 'adt' for one only. It also says what the features of
        an AnnData are where their names do not tell.

    Returns
    -------
    Counts per modality over the same cells, and the object as read.

    Raises
    ------
    ValueError
        If the file is missing, broken or of another format; if it has no cells, no features or no raw counts;
        if names of cells repeat or the modalities share no cell; if the modality is missing or unclear.

    Notes
    -----
    Counts are taken from `layers["counts"]`, else from `.raw` if it holds counts, else from `X`. In an
    AnnData, `var["feature_types"]` tells the modality, else `obsm["protein_expression"]` holds the ADT; else
    the share of names that are genes or antibodies decides. In a MuData, RNA is 'rna' or 'gex', ADT is 'adt',
    'prot' or 'protein'. Warns, with numbers, where only some cells have both modalities or `modality`
    contradicts the names.
    """
    check_modality(modality)
    path = Path(path).expanduser()
    return take_cells(open_container(path), path, modality)


def take_cells(container: Container, path: Path, modality: Modality = "auto") -> Cells:
    """Take the counts out of what `open_container` gave; see `read_cells`."""
    if isinstance(container, mudata.MuData):
        mod = {key: _open_or_refuse(str(path), store_anndata, a) for key, a in container.mod.items()}
        file = _select(mod, container.obs, modality, str(path))
    else:
        stored = _open_or_refuse(str(path), store_anndata, container)
        file = _select(stored, container.obs, modality, str(path))
    rna, adt = (None if m is None else m.load() for m in (file.rna, file.adt))
    return Cells(file.path, file.obs, rna, adt, container)


def open_cells(location: Location, modality: Modality = "auto") -> CellsFile:
    """Open one file of any size, here or at a URL; `read_cells` without reading the counts.

    Parameters
    ----------
    location, modality
        As in `read_cells`; the location may be a URL that fsspec knows.

    Returns
    -------
    Annotation, and counts to be read by rows.

    Raises
    ------
    ValueError
        As `read_cells`. All values are looked at once, so that a wrong slot is found here; that a row is damaged
        may show only when it is read.

    Notes
    -----
    Matrices that are stored by columns (CSC), and files older than AnnData 0.7 or Cell Ranger 3, are read whole.
    """
    check_modality(modality)
    path = str(Path(location).expanduser()) if not is_remote(location) else str(location)
    check_exists(path)
    group = _open_group(path)
    encoding = group.attrs.get("encoding-type", "")
    if encoding == "anndata":
        return _select(_open_or_refuse(path, open_anndata, path, group), None, modality, path)
    if encoding.lower() == "mudata":
        obs = _open_or_refuse(path, anndata.io.read_elem, group["obs"])
        mod = {key: _open_or_refuse(path, open_anndata, path, group["mod"][key]) for key in group["mod"]}
        return _select(mod, obs, modality, path)
    if suffix_of(path) == ".h5" and "features" in group.get("matrix", ()):
        return _select(_open_or_refuse(path, open_10x, path, group["matrix"]), None, modality, path)
    if is_remote(path):
        raise ValueError(f"`path` must be of a present format to be read at a URL, got {path!r}. Copy it here first.")
    container = open_container(Path(path))
    assert isinstance(container, anndata.AnnData)
    return _select(_open_or_refuse(path, store_anndata, container), None, modality, path)


def check_modality(modality: str) -> None:
    """
    Check the name of a modality.

    Raises
    ------
    ValueError
        If it is none.
    """
    if modality not in ("auto", "rna", "adt"):
        raise ValueError(f"`modality` must be 'auto', 'rna' or 'adt', got {modality!r}.")


def _select(found: StoredAnnData | dict[str, StoredAnnData], obs: Any, modality: str, path: str) -> CellsFile:
    if isinstance(found, StoredAnnData):
        check_obs_names(found.obs_names, path)
        return select_features(found, modality, path)
    check_obs_names(obs.index, path)
    return select_modalities(found, obs, modality, path)


def _open_group(path: str) -> h5py.Group | zarr.Group:
    fs, inner = file_system(path)
    if fs.isdir(inner):
        group = _open_zarr(path)
        _check_chunks(group, path)
        return group
    _check_hdf5(path)
    return _open_or_refuse(path, open_root, path)


def _check_hdf5(path: str) -> None:
    fs, inner = file_system(path)
    if suffix_of(path) not in SUFFIXES[:3]:
        raise ValueError(f"`path` must end in one of {', '.join(SUFFIXES)}, got {path!r}.")
    head = fs.cat_file(inner, start=0, end=2048 + len(SIGNATURE))
    if not any(head[at:].startswith(SIGNATURE) for at in (0, 512, 1024, 2048)):  # a header of 2^n bytes may precede
        raise ValueError(
            f"`path` must be an HDF5 file, got {path!r} ({fs.size(inner):,} bytes), which is none "
            "or is cut off. Copy it again."
        )


def _open_or_refuse(path: str, read: Any, *arguments: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated names and the like are judged below
            return read(*arguments)
    except Exception as error:  # the libraries raise OSError, KeyError, RuntimeError and more on broken files
        raise ValueError(
            f"`path` must be a complete {suffix_of(path) or 'zarr'} file, got {path!r}, which cannot be "
            f"read ({type(error).__name__}: {error}). Copy or write it again."
        ) from error


def open_container(path: Path) -> Container:
    """
    Read a file as it is, without a look at its content.

    Raises
    ------
    ValueError
        If it is missing, broken or of another format.
    """
    check_exists(path)
    if path.is_dir():
        group = _open_zarr(str(path))
        _check_chunks(group, str(path))
        kinds = {"anndata": anndata.read_zarr, "mudata": mudata.read_zarr}
        read = kinds[group.attrs["encoding-type"].lower()]
    else:
        _check_hdf5(str(path))
        read = {".h5ad": anndata.read_h5ad, ".h5mu": mudata.read_h5mu, ".h5": _read_10x_h5}[path.suffix.lower()]
    return _open_or_refuse(str(path), read, path)


def _open_zarr(path: str) -> zarr.Group:
    try:
        group = zarr.open_group(zarr_store(path), mode="r")
        encoding = group.attrs.asdict().get("encoding-type", "")
    except Exception as error:
        raise ValueError(
            f"`path` must be a file or a zarr directory, got {path!r}, which holds no zarr group."
        ) from error
    if encoding not in ("anndata", "mudata", "MuData"):
        raise ValueError(f"`path` must hold an AnnData or a MuData, got the zarr group {path!r} of type {encoding!r}.")
    return group


def _check_chunks(group: zarr.Group, path: str) -> None:
    """Check that no values of a sparse matrix are lost: zarr reads a missing chunk as zeros."""
    try:
        members = list(group.members(max_depth=None))
    except Exception as error:  # zarr raises TypeError, KeyError and more on broken metadata
        raise ValueError(
            f"`path` must be a complete zarr directory, got {path!r}, whose metadata cannot be read "
            f"({type(error).__name__}: {error}). Copy it again."
        ) from error
    for name, array in members:
        is_values = isinstance(array, zarr.Array) and name.endswith("/data")
        if is_values and array.nchunks_initialized < array.nchunks:
            raise ValueError(
                f"`path` must be a complete zarr directory, got {path!r} with "
                f"{array.nchunks_initialized:,} of {array.nchunks:,} chunks of {name}. Copy it again."
            )


def _read_10x_h5(path: Path) -> anndata.AnnData:
    import scanpy  # slow to import, and rarely needed

    return scanpy.read_10x_h5(path, gex_only=False)
