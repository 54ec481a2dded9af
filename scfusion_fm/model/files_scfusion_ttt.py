"""What a model directory holds beside weights and settings: checksums, and fingerprints of training cells."""

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

from transformers.utils import cached_file

CHECKSUMS = "SHA256SUMS"
SEEN_CELLS = "seen_cells.npz"
WRITTEN_WITH_WEIGHTS = ("config.json", "model*.safetensors*", "*.py", SEEN_CELLS)


def update_checksums(directory: str | os.PathLike, patterns: Iterable[str]) -> None:
    """
    Write the checksums of some files into SHA256SUMS, which `sha256sum -c` reads; those of other files stay.

    Parameters
    ----------
    directory
        Where the files are.
    patterns
        Names of the files, with `*` for anything.
    """
    directory = Path(directory)
    path = directory / CHECKSUMS
    lines = path.read_text().splitlines() if path.is_file() else []
    known = {line[66:]: line[:64] for line in lines if (directory / line[66:]).is_file()}
    for file in (file for pattern in patterns for file in directory.glob(pattern) if file.is_file()):
        with file.open("rb") as stream:
            known[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    known.pop(CHECKSUMS, None)
    path.write_text("".join(f"{known[name]}  {name}\n" for name in sorted(known)))


def keep_seen_cells(source: str, directory: str | os.PathLike) -> None:
    """
    Copy what tells which cells a model has seen from where the model was loaded; warn where that cannot be.

    Parameters
    ----------
    source
        Directory, or name on the Hub, from which the model was loaded; '' for none.
    directory
        Where the model was saved.
    """
    if not source:
        return
    target = Path(directory) / SEEN_CELLS
    if os.path.isdir(source):
        found = Path(source) / SEEN_CELLS
        if found.is_file() and not (target.is_file() and target.samefile(found)):
            shutil.copyfile(found, target)
        return
    try:
        shutil.copyfile(cached_file(source, SEEN_CELLS), target)
    except (OSError, ValueError):
        told = f"{SEEN_CELLS}, which tells the cells that a model has seen, was not found at {source!r}"
        warnings.warn(f"{told}: it is not in {str(directory)!r}.", stacklevel=3)
