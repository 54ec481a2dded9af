"""Paths and URLs: one way to name what is on this machine or in an object store."""

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import zarr

Location = str | Path


def is_remote(location: Location) -> bool:
    """Tell URLs (`s3://bucket/atlas.zarr`) from paths of this machine."""
    return "://" in str(location)


def absolute(location: Location) -> str:
    """Give the full path of a place on this machine; a URL stays as it is."""
    return str(location) if is_remote(location) else str(Path(location).expanduser().absolute())


def file_system(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """Give the file system of a location and its path there."""
    return fsspec.core.url_to_fs(str(location))


def exists(location: Location) -> bool:
    """Tell whether something is there."""
    fs, path = file_system(location)
    return fs.exists(path)


def check_exists(location: Location) -> None:
    """
    Refuse a path where nothing is.

    Raises
    ------
    ValueError
        If nothing is there.
    """
    if not exists(location):
        raise ValueError(f"`path` must exist, got {str(location)!r}. Check the spelling.")


def suffix_of(location: Location) -> str:
    """Give the suffix in lower case, such as `.h5ad`."""
    return Path(str(location).rstrip("/")).suffix.lower()


def zarr_store(location: Location) -> Any:
    """Give what zarr opens: a path of this machine, or a store over a file system."""
    return zarr.storage.FsspecStore.from_url(location, read_only=True) if is_remote(location) else Path(location)


def checksum(location: Location) -> str:
    """Hash the bytes of a file, or of the files of a store in the order of their names (SHA-256)."""
    fs, path = file_system(location)
    digest = hashlib.sha256()
    for file in sorted(fs.find(path)) if fs.isdir(path) else [path]:
        with fs.open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def state_of(location: Location) -> list:
    """
    Describe a source cheaply, so that a change is noticed: bytes and time of the last change, where known.

    Raises
    ------
    ValueError
        If nothing is there.
    """
    check_exists(location)
    fs, path = file_system(location)
    files = sorted(fs.find(path)) if fs.isdir(path) else [path]
    facts = [fs.info(file) for file in files]
    times = [str(f.get("mtime") or f.get("LastModified") or f.get("created")) for f in facts]
    return [len(files), sum(f["size"] or 0 for f in facts), max(times)]


def check_new_path(path: Location, name: str) -> None:
    """
    Refuse a path that exists.

    Raises
    ------
    ValueError
        If something is there.
    """
    if exists(path):
        raise ValueError(f"`{name}` must not exist yet, got {str(path)!r}; choose another path or remove it.")


def check_suffix(path: Path, name: str, suffix: str) -> None:
    """
    Refuse a file name that does not tell what will be written.

    Raises
    ------
    ValueError
        If it ends otherwise.
    """
    if path.suffix.lower() != suffix:
        raise ValueError(f"`{name}` must end in {suffix}, got {str(path)!r}.")
