"""What a run reports: a file of records, lines for people, and the sinks that show its numbers elsewhere."""

import json
import math
import os
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from scfusion_fm.config.pretrain import RunConfig
from scfusion_fm.records import SEAL, keeps_seal, parse_record, seal_record
from scfusion_fm.training.run_files import METRICS
from scfusion_fm.training.sinks import Sinks


class RunLog:
    """
    Write the records of a run; does nothing on ranks other than 0.

    A record that cannot be written to the file ends the run. A sink that fails is told on stderr and left out from
    then on.

    Parameters
    ----------
    directory
        Directory of the run.
    settings
        Which sinks there are.
    identity
        Settings of the run, shown beside its numbers.
    first_step
        Step that a resumed run starts from; later records of the interrupted run are dropped.
    enabled
        Whether this rank writes.

    Raises
    ------
    ValueError
        If a package is missing, or a sink does not start for a new run.
    """

    def __init__(
        self,
        directory: Path,
        settings: RunConfig,
        identity: Mapping[str, Any],
        first_step: int = 0,
        enabled: bool = True,
    ):
        self._enabled = enabled
        if not enabled:
            return
        path, resumed = directory / METRICS, first_step > 0
        # What was recorded was also sent. A resumed run computes the same again, so it is not sent twice.
        sent = cut_records(path, first_step) if path.exists() and resumed else 0
        self._sinks = Sinks(directory, settings, identity, first_step, sent)
        self._file = path.open("a" if resumed else "w")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record with its checksum; it needs `step` and `split`. In the file, what is not finite is null."""
        if not self._enabled:
            return
        held = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(seal_record(held), allow_nan=False) + "\n")
        self._file.flush()
        numbers = {f"{record['split']}/{k}": float(v) for k, v in record.items() if k != "step" and _is_number(v)}
        self._sinks.write(numbers, record["step"])

    def say(self, message: str) -> None:
        """Print a line for people."""
        if self._enabled:
            print(message, flush=True)

    def close(self) -> None:
        """Flush and close everything."""
        if self._enabled:
            self._file.close()
            self._sinks.close()


def cut_records(path: Path, last_step: int) -> int:
    """
    Cut off what a file of records holds after a step, and a last line that was not written to its end.

    Reads backwards from the end and shortens the file in place: the time does not grow with what stays, and whatever
    happens meanwhile, the records that stay are there.

    Parameters
    ----------
    path
        File with one JSON object per line, in the order of their `step`.
    last_step
        Last step to keep.

    Returns
    -------
    The last step that the file held before; 0 without any.
    """
    held = 0
    with path.open("r+b") as file:
        if not file.seek(0, os.SEEK_END):
            return held
        with mmap(file.fileno(), 0, access=ACCESS_READ) as text:
            end = text.rfind(b"\n") + 1
            while end:
                start = text.rfind(b"\n", 0, end - 1) + 1
                step = _read_step(text[start:end])
                held = max(held, step or 0)
                if step is not None and step <= last_step:
                    break
                end = start
        file.truncate(end)
    return held


def format_seconds(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _read_step(line: bytes) -> int | None:
    """Give the step of a record, or None for what a power failure or a disk made of one."""
    try:
        record = parse_record(line)
    except ValueError:
        return None
    step = record.get("step")
    return step if isinstance(step, int) and (SEAL not in record or keeps_seal(record)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
