"""What a fine-tuning that was stopped or killed left, if it is of the same settings, cells and model."""

import dataclasses
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfusion_fm.config.loading import config_differences
from scfusion_fm.data.files.stack import ReadRows
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.notices import tell
from scfusion_fm.records import SEAL, read_record, seal_record
from scfusion_fm.training.checkpoint import write_durably
from scfusion_fm.training.settings import precision, read_deepspeed_settings

_IDENTITY = "run.json"
# What tells where things are, what is refused, or what is done after training, which is done anew: none of it changes
# the weights of a checkpoint. Cells and model are compared by their content. `final` trains another model, elsewhere.
NOT_TRAINED = (
    "allow_seen_test_cells",
    "coverage_key",
    "data",
    "final",
    "interval_group_key",
    "memory_gib",
    "min_coverage",
    "model",
    "output_dir",
    "report",
    "types_key",
    "unknown_score",
)
_BLOCK_BYTES = 2**24


def identify_run(config: Any, cells: str) -> dict[str, Any]:
    """
    Collect what decides the weights of a fine-tuning.

    Parameters
    ----------
    config
        Its settings, with `model` and `optim`. What shares the work may change, and what is done after training.
    cells
        Checksum of its cells.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_TRAINED}
    del settings["optim"]["threads"], settings["optim"]["deepspeed"]
    file = config.optim.deepspeed
    return {
        "settings": json.loads(json.dumps(settings)),  # as it is read
        "precision": {} if file is None else precision(read_deepspeed_settings(file)),
        "cells": cells,
        "model": fingerprint_directory(find_model(config.model)),
        "version": version("scfusion-fm"),
    }


def claim_memory(memory: Path, identity: dict[str, Any]) -> None:
    """Leave what an equal run has left; remove anything else, and say why."""
    record = memory / _IDENTITY
    if memory.exists():
        changed = _find_changes(record, identity)
        if not changed:
            return
        tell(f"an unfinished run with the same output is not gone on with ({'; '.join(changed)}): starting anew")
        record.unlink(missing_ok=True)  # before what it vouches for
        shutil.rmtree(memory)
    memory.mkdir()
    write_durably(record, json.dumps(seal_record(identity), indent=1))


def fingerprint_aligned(aligned: AlignedCells) -> str:
    """Give a checksum of all that is known of some cells, in hexadecimal."""
    found = google_crc32c.Checksum()
    for field in dataclasses.fields(aligned):
        value = getattr(aligned, field.name)
        for array in _arrays(value):
            found.update(f"{field.name} {array.dtype} {array.shape}".encode())
            for start in range(0, len(array), rows := max(1, _BLOCK_BYTES // max(array[:1].nbytes, 1))):
                found.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
    return found.hexdigest().decode()


def fingerprint_directory(directory: Path) -> str:
    """Give a checksum of names and contents of the files in a directory, in hexadecimal."""
    found = google_crc32c.Checksum()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        found.update(f"{path.relative_to(directory)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                found.update(block)
    return found.hexdigest().decode()


def _find_changes(record: Path, identity: dict[str, Any]) -> list[str]:
    try:
        known = read_record(record, "it is not used")
    except (OSError, ValueError) as error:
        return [f"{_IDENTITY} cannot be read: {error}"]
    return config_differences({key: value for key, value in known.items() if key != SEAL}, identity)


def _arrays(value: Any) -> list[np.ndarray]:
    if value is None:
        return []
    if isinstance(value, ReadRows):
        return [array for part in value.identify() for array in _arrays(part)]
    if isinstance(value, pd.DataFrame):
        return [pd.util.hash_pandas_object(value).to_numpy()]
    return [value.data, value.indices, value.indptr] if sp.issparse(value) else [np.asarray(value)]
