"""The data sets that can be fetched: where they are, how they are read, and what they should hold."""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MANIFEST = Path(__file__).with_name("datasets.json")
SUFFIXES = {"10x_h5": ".h5", "h5ad_gz": ".h5ad", "mtx": ".h5mu", "h5ad_pair": ".h5mu"}


@dataclass(frozen=True)
class RemoteFile:
    """
    A file on a public server.

    Attributes
    ----------
    url
        Where it is.
    role
        What it is of a data set that has several.
    bytes
        Its size; None where nobody has written it down.
    hash
        `sha256:...` or `md5:...`, as the server's owner or a second source gives it; None where there is none.
    """

    url: str
    role: str = "cells"
    bytes: int | None = None
    hash: str | None = None

    @property
    def name(self) -> str:
        """Its name on the server."""
        return Path(urlsplit(self.url).path).name


@dataclass(frozen=True)
class RemoteDataset:
    """
    A public data set.

    Attributes
    ----------
    name
        What it is called here.
    title
        What it is, in a line.
    kind
        How its files become one: `10x_h5` (as it is), `h5ad_gz` (unpacked), `mtx` or `h5ad_pair` (put together).
    files
        Its files.
    licence, reference
        Of the data; whom to cite.
    cells, genes, proteins
        What it should hold; None where that is not known.
    counts
        Where its raw counts are; found by itself where None.
    batch_key, donor_key
        Columns of obs that tell batches and donors apart; None without.
    """

    name: str
    title: str
    kind: str
    files: tuple[RemoteFile, ...]
    licence: str
    reference: str
    cells: int | None = None
    genes: int | None = None
    proteins: int | None = None
    counts: str | None = None
    batch_key: str | None = None
    donor_key: str | None = None

    @property
    def file_name(self) -> str:
        """What its file is called when it is here."""
        return self.name + SUFFIXES[self.kind]

    @property
    def is_checked(self) -> bool:
        """Whether every file is compared with a checksum that somebody else gave."""
        return all(file.hash for file in self.files)


def read_manifest(path: Path = MANIFEST) -> dict[str, RemoteDataset]:
    """Read the data sets that can be fetched, by name."""
    entries = json.loads(path.read_text())
    found = [RemoteDataset(**{**entry, "files": tuple(RemoteFile(**f) for f in entry["files"])}) for entry in entries]
    return {dataset.name: dataset for dataset in found}


def find_datasets(names: list[str], known: dict[str, RemoteDataset]) -> list[RemoteDataset]:
    """
    Find data sets by name.

    Raises
    ------
    ValueError
        If there is none of a name.
    """
    for name in names:
        if name not in known:
            raise ValueError(
                f"`names` must be among {', '.join(known)}, got {name!r}. `scfusion fetch --list` tells more."
            )
    return [known[name] for name in dict.fromkeys(names)]
