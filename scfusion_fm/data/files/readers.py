"""Open and read the files in which counts of RNA and surface proteins are exchanged."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import pandas as pd
import zarr

from scfusion_fm.data.files.arrays import Group, close_files, member, modalities_of, open_root, text_of
from scfusion_fm.data.files.broken import BrokenFileError, explain_file
from scfusion_fm.data.files.columns import role_of_word
from scfusion_fm.data.files.container import Container, read_10x
from scfusion_fm.data.files.container import read_container as read_elements
from scfusion_fm.data.files.containment import check_hdf5_inside, check_heaps, check_regular, check_store_inside
from scfusion_fm.data.files.counts import CellsFile
from scfusion_fm.data.files.elements import ElementReader
from scfusion_fm.data.files.modalities import select_features, select_modalities
from scfusion_fm.data.files.obs import check_obs_names
from scfusion_fm.data.files.old import check_old
from scfusion_fm.data.files.opened import open_10x, open_anndata
from scfusion_fm.data.files.stored import StoredAnnData, store_anndata
from scfusion_fm.data.locations import Location, check_exists, file_system, is_remote, suffix_of
from scfusion_fm.data.schema import Cells, Modality
from scfusion_fm.extras import MissingPackageError, explain_missing

SUFFIXES = (".h5ad", ".h5mu", ".h5", ".zarr")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
GZIP = b"\x1f\x8b"
MTX_HINT = "Make it one file: `scanpy.read_10x_mtx(DIR, gex_only=False).write_h5ad(FILE)`."
HINTS = {
    ".gz": " It is compressed: `gunzip` it first.",
    ".zip": " It is compressed: `unzip` it into a directory first.",
    ".mtx": f" {MTX_HINT}",
    ".rds": " Write it from R as .h5ad first.",
}


Given = Location | Container  # a path or URL, or an object in memory, backed or lazy


def read_cells(path: Given, modality: Modality = "auto") -> Cells:
    """Read one file, or the counts of an object.

    Parameters
    ----------
    path
        `.h5ad`, `.h5mu`, 10x `.h5`, or a zarr directory of an AnnData or a MuData; or such an object.
    modality
        What to read: 'auto' for all there is; 'rna' or 'adt' for one only. It also says what the features of
        an AnnData are where their names do not tell.

    Returns
    -------
    Counts per modality over the same cells, and the object as read (or as given).

    Raises
    ------
    ValueError
        If the file is missing, broken or of another format; if it has no cells, no features or no raw counts;
        if names of cells repeat or the modalities share no cell; if the modality is missing or unclear.

    Notes
    -----
    Counts are taken from `layers["counts"]`, else from `.raw` or `X`, else from a layer with a name such as
    `raw_counts`. What columns are is told by `var["feature_types"]`, else by their names; ADT may stand in `obsm`. In a
    MuData, the names of modalities tell, else their features. Warns, with numbers, where slots with counts differ,
    some cells have one modality only, `modality` contradicts the names, or what looks like genes or antibodies is not
    read.
    """
    check_modality(modality)
    with closing():
        file = open_given(path)
        cells = load_cells(select_cells(file, modality))
        cells.container = read_container(file)
        file.warn_lost()
    return cells


@contextmanager
def closing() -> Iterator[None]:
    """Let go of files in the end, so that they can be written anew."""
    try:
        yield
    finally:
        close_files()


def load_cells(file: CellsFile) -> Cells:
    """Read the counts of an open file into memory."""
    rna, adt = (None if m is None else m.load() for m in (file.rna, file.adt))
    return Cells(file.path, file.obs, rna, adt)


def open_cells(location: Given, modality: Modality = "auto") -> CellsFile:
    """Open one file or object of any size, here or at a URL; `read_cells` without reading the counts.

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
    file = open_given(location)
    file.warn_lost()
    return select_cells(file, modality)


@dataclass(frozen=True)
class OpenFile:
    """
    Hold a file whose matrices were not read yet.

    Attributes
    ----------
    path
        Path or URL; what messages call an object.
    parts
        The AnnData, or the modalities of a MuData by name.
    reader
        Reads elements of the file; None for an object.
    obs
        Annotation of a MuData.
    container
        The object, or all of the file where it is of an old format that is read whole.
    """

    path: str
    parts: StoredAnnData | dict[str, StoredAnnData]
    reader: ElementReader | None = None
    obs: pd.DataFrame | None = None
    container: Container | None = None

    def warn_lost(self) -> None:
        """Warn of what is broken in the file and was left out."""
        if self.reader is not None:
            self.reader.warn_lost()


def open_given(given: Given) -> OpenFile:
    """
    Open a file, or take an object as if it were one.

    Raises
    ------
    ValueError
        If the file is refused, see `open_file`, or the object is damaged.
    """
    if isinstance(given, md.MuData):
        parts = {key: store_anndata(adata) for key, adata in given.mod.items()}
        return OpenFile("mdata", parts, obs=given.obs, container=given)
    if isinstance(given, ad.AnnData):
        return OpenFile("adata", store_anndata(given), container=given)
    if not isinstance(given, str | Path):
        raise ValueError(f"`adata` must be an AnnData, a MuData or the path of a file, got {type(given).__name__}.")
    return open_file(given)


def open_file(location: Location) -> OpenFile:
    """
    Open a file; see `open_cells`.

    Raises
    ------
    ValueError
        If it is missing, broken, leads out of itself, or is of another format.
    """
    path = str(Path(location).expanduser()) if not is_remote(location) else str(location)
    check_exists(path)
    check_regular(path)
    return _or_refuse(path, _open_parts, path)


def select_cells(file: OpenFile, modality: Modality) -> CellsFile:
    """
    Find the counts of an open file; see `open_cells`.

    Raises
    ------
    ValueError
        If there are none, or they are not clear.
    """
    if isinstance(file.parts, StoredAnnData):
        check_obs_names(file.parts.obs_names, file.path)
        return select_features(file.parts, modality, file.path)
    assert file.obs is not None
    check_obs_names(file.obs.index, file.path)
    return select_modalities(file.parts, file.obs, modality, file.path)


def read_container(file: OpenFile) -> Container:
    """
    Read all of an open file, but what is broken and not needed.

    Raises
    ------
    ValueError
        If names of cells or features are broken.
    """
    if file.container is not None:
        return file.container
    assert file.reader is not None
    if suffix_of(file.path) == ".h5":
        return _or_refuse(file.path, read_10x, file.parts)
    return _or_refuse(file.path, read_elements, file.reader, open_root(file.path))


def _open_parts(path: str) -> OpenFile:
    group, reader = _open_group(path), ElementReader(path)
    encoding = text_of(group.attrs.get("encoding-type", ""))
    if encoding == "anndata":
        return OpenFile(path, open_anndata(reader, group), reader)
    if encoding.lower() == "mudata":
        obs = reader.read_frame(member(group, "obs", path), "obs", is_strict=False)
        mod = member(group, "mod", path)
        parts = {}
        for key in modalities_of(mod):
            is_needed = role_of_word(key) in ("rna", "adt")
            parts[key] = open_anndata(reader, member(mod, key, f"{path}, mod"), f"mod/{key}/", is_needed)
        return OpenFile(path, parts, reader, obs)
    if suffix_of(path) == ".h5" and "features" in group.get("matrix", ()):
        return OpenFile(path, open_10x(reader, group["matrix"]), reader)
    if is_remote(path):
        raise BrokenFileError(
            f"`path` must be of a present format to be read at a URL, got {path!r}. Copy it here first."
        )
    check_old(reader, group)
    container = {".h5ad": ad.read_h5ad, ".h5mu": md.read_h5mu, ".h5": _read_10x_h5}[suffix_of(path)](path)
    return OpenFile(path, store_anndata(container), reader, container=container)


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


def _open_group(path: str) -> Group:
    fs, inner = file_system(path)
    if fs.isdir(inner):
        check_store_inside(path)
        return _open_zarr(path)
    _check_hdf5(path)
    check_heaps(path)
    group = open_root(path)
    check_hdf5_inside(group, path)
    return group


def _check_hdf5(path: str) -> None:
    fs, inner = file_system(path)
    if suffix_of(path) not in SUFFIXES[:3]:
        hint = HINTS.get(suffix_of(path), "")
        raise BrokenFileError(f"`path` must end in one of {', '.join(SUFFIXES)}, got {path!r}.{hint}")
    head = fs.cat_file(inner, start=0, end=2048 + len(SIGNATURE))
    if not any(head[at:].startswith(SIGNATURE) for at in (0, 512, 1024, 2048)):  # a header of 2^n bytes may precede
        size = fs.size(inner)
        hint = "It is compressed: `gunzip` it." if head.startswith(GZIP) else "Copy it again."
        raise BrokenFileError(
            f"`path` must be an HDF5 file, got {path!r} ({size:,} bytes), which is none or is cut off. {hint}"
        )


def _or_refuse(path: str, read: Any, *arguments: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated names and the like are judged below
            return read(*arguments)
    except (BrokenFileError, MissingPackageError):
        raise
    except Exception as error:  # the libraries raise OSError, KeyError, RuntimeError and more on broken files
        raise explain_file(path, suffix_of(path) or "zarr", error) from error


def _open_zarr(path: str) -> zarr.Group:
    try:
        group = open_root(path)
        attributes = group.attrs.asdict()
    except Exception as error:
        is_mtx = not is_remote(path) and any(Path(path).glob("matrix.mtx*"))
        hint = " " + MTX_HINT if is_mtx else ""
        raise BrokenFileError(
            f"`path` must be a file or a zarr directory, got {path!r}, which holds no zarr group.{hint}"
        ) from error
    encoding = attributes.get("encoding-type", "")
    if encoding not in ("anndata", "mudata", "MuData"):
        names = [] if is_remote(path) else sorted(map(str, Path(path).glob("tables/[!.]*/")))
        hint = f" It looks like SpatialData: give {' or '.join(names)}." if names else ""
        raise BrokenFileError(
            f"`path` must hold an AnnData or a MuData, got the zarr group {path!r} of type {encoding!r}.{hint}"
        )
    return group


def _read_10x_h5(path: str) -> ad.AnnData:
    with explain_missing():
        import scanpy  # for files of Cell Ranger 1 and 2 alone

    return scanpy.read_10x_h5(path, gex_only=False)
