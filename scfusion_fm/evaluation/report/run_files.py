"""Read what a run leaves behind, with an error that names the file where something is missing; replace files whole."""

import json
import os
import struct
import zlib
from pathlib import Path
from tempfile import NamedTemporaryFile
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from scfusion_fm.records import (
    CHANGED,
    SEAL,
    checksum_bytes,
    keeps_seal,
    parse_record,
    read_record,
    seal_record,
    unseal_text,
)

RESULTS = "results.json"
FILES = "files"
"""Entry of `results.json` with the checksums of the files beside it."""
# What numpy and zipfile raise where an archive is damaged.
UNREADABLE_ARRAYS = (KeyError, ValueError, EOFError, OSError, RuntimeError, BadZipFile, zlib.error, struct.error)


def read_json(path: Path, keys: tuple[str, ...], row_keys: tuple[str, ...]) -> dict:
    """Read `results.json` of a fine-tuning run.

    Parameters
    ----------
    path
        The file.
    keys
        Entries it must have, besides "table".
    row_keys
        Entries that every row of its table must have.

    Raises
    ------
    ValueError
        If the file is missing, is not JSON, or lacks an entry.
    """
    results = read_record(_require_file(path), "run the task again")
    for name, expected in results.get(FILES, {}).items() if SEAL in results else ():
        _check_beside(path.parent / Path(name).name, expected)
    missing = [key for key in ("table", *keys) if key not in results]
    if missing:
        raise ValueError(f"`{path}` must have the entry {missing[0]!r}, got {list(results)}; add it.")
    if not isinstance(results["table"], list):
        raise ValueError(f"`{path}` must have a list of rows as its table, got {results['table']!r:.60}.")
    incomplete = [row for row in results["table"] if not isinstance(row, dict) or set(row_keys) - set(row)]
    if incomplete or not results["table"]:
        raise ValueError(
            f"`{path}` must have a table whose rows hold {list(row_keys)}, got "
            f"{incomplete[0] if incomplete else 'no rows'}; run the task again."
        )
    return results


def write_results(run: Path, results: dict) -> None:
    """Write `results.json` with a checksum of itself and of each file beside it."""
    files = {p.name: checksum_bytes(p.read_bytes()) for p in sorted(run.iterdir()) if p.is_file() and p.name != RESULTS}
    (run / RESULTS).write_text(json.dumps(seal_record(results | {FILES: files}), indent=1) + "\n")


def _check_beside(path: Path, checksum: str) -> None:
    """Compare a file with its checksum; one that is not there may not be needed."""
    if path.is_file() and checksum_bytes(path.read_bytes()) != checksum:
        raise ValueError(f"`{path}` {CHANGED}; run the task again.")


def read_metrics(path: Path) -> pd.DataFrame:
    """Read the records of a pretraining run.

    Parameters
    ----------
    path
        `metrics.jsonl`, one JSON object per line.

    Returns
    -------
    One row per record, sorted by step. Where a resumed run repeated a step, its last record counts.

    Raises
    ------
    ValueError
        If the file is missing or empty, a line is not a JSON object, or a column is missing.
    """
    records, sealed = [], False
    for number, line in enumerate(_require_file(path).read_bytes().splitlines(), start=1):
        try:
            record = parse_record(line)
        except ValueError:
            raise ValueError(
                f"`{path}` must hold one JSON object per line, got {_show(line)} in line {number}; delete it."
            ) from None
        sealed = sealed or SEAL in record  # an older version may have written the first ones
        if sealed and not keeps_seal(record):
            raise ValueError(f"`{path}` must be as it was written, got {_show(line)} in line {number}; delete it.")
        records.append({key: value for key, value in record.items() if key != SEAL})
    table = pd.DataFrame(records)
    wanted = ("step", "cells", "split", "loss", "rna_loss", "adt_loss", "cells_per_s", "seconds")
    missing = [name for name in wanted if name not in table]
    if missing:
        raise ValueError(f"`{path}` must have {list(wanted)} in its records, got no {missing[0]!r}; log it.")
    return table.drop_duplicates(["step", "split"], keep="last").sort_values("step", kind="stable")


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV file.

    Parameters
    ----------
    path
        The file.
    columns
        Columns it must have.

    Raises
    ------
    ValueError
        If the file is missing or empty or lacks a column.
    """
    # Cell types and proteins are called e.g. "NA" or "1": names are text.
    text = dict.fromkeys(("cell", "label", "predicted", "protein", "method"), str)
    try:
        table = pd.read_csv(_require_file(path), dtype=text, keep_default_na=False, na_values={})
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        lacking = f"no {missing[0]!r}" if missing else "no rows"
        raise ValueError(f"`{path}` must have rows with {list(columns)}, got {lacking}; run the task again.")
    for name in set(columns) - set(text):
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read arrays from an `npz` file.

    Parameters
    ----------
    path
        The file.
    names
        Arrays it must hold.

    Raises
    ------
    ValueError
        If the file is missing, is no npz file, lacks an array, or holds Python objects in one.
    """
    _require_file(path)
    try:
        with path.open("rb") as content, np.load(content) as arrays:
            return {name: arrays[name] for name in names}
    except UNREADABLE_ARRAYS as error:
        raise ValueError(
            f"`{path}` must be an npz file with the plain arrays {list(names)}, got: {error}; write it again."
        ) from None


def read_text(path: Path) -> str:
    """Read a text file, without its checksum if it begins with one.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ValueError
        If the file is missing, or not as it was written.
    """
    try:
        return unseal_text(_require_file(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"`{path}` {error}; copy it again.") from None


def _show(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace"))


def _require_file(path: Path) -> Path:
    """Return the path of a file that exists."""
    if not path.parent.is_dir():
        raise ValueError(f"`{path.parent}` must be the directory of a run, got none; check the path.")
    if not path.is_file():
        raise ValueError(f"`{path}` must exist, got no such file; let the run finish or leave its part out.")
    return path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees a part of it."""
    temporary = None
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o666 & ~_read_umask())
        os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def _read_umask() -> int:
    """Return the permissions that new files do not get."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
