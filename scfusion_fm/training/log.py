"""What a run reports: a file of records, lines for people, TensorBoard, Weights & Biases and MLflow."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from scfusion_fm.training.sinks import (
    MLFLOW_ENVIRONMENT,
    MlflowSink,
    Sink,
    TensorBoardSink,
    WandbSink,
    _import_extra,
    _is_number,
)

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """
    Write the records of a run; does nothing on ranks other than 0.

    A record that cannot be written to the file ends the run. A sink that fails is told on stderr and left out from
    then on.

    Parameters
    ----------
    directory
        Directory of the run.
    enabled
        Whether this rank writes.
    first_step
        Step that a resumed run starts from; later records of the interrupted run are dropped.
    tensorboard
        Whether to write TensorBoard events.
    wandb_project
        Weights & Biases project, or None.
    mlflow_experiment
        MLflow experiment, or None; its store is at `MLFLOW_TRACKING_URI`, or in the directory of the run.
    config
        Settings of the run, shown beside its numbers.

    Raises
    ------
    ValueError
        If a package is missing, or Weights & Biases or MLflow does not start for a new run.
    """

    def __init__(
        self,
        directory: Path,
        enabled: bool,
        first_step: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        mlflow_experiment: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.enabled = enabled
        self._sinks: list[Sink] = []
        if not enabled:
            return
        path, config = directory / METRICS_FILE, config or {}
        # What was recorded was also sent. A resumed run computes the same again, so it is not sent twice.
        sent = cut_records(path, first_step) if path.exists() and first_step > 0 else 0
        starts: list[tuple[str, Callable[[], Sink]]] = []
        if tensorboard:
            starts.append(("tensorboard", lambda: TensorBoardSink(directory, first_step)))
        if wandb_project is not None:
            wandb = _import_extra("wandb", ["wandb"], "wandb_project", wandb_project)
            starts.append(("wandb_project", lambda: WandbSink(wandb, wandb_project, directory, config, sent)))
        if mlflow_experiment is not None:
            for name, value in MLFLOW_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            needed = ["mlflow", "sqlalchemy", "alembic"]
            mlflow = _import_extra("mlflow", needed, "mlflow_experiment", mlflow_experiment)
            starts.append(("mlflow_experiment", lambda: MlflowSink(mlflow, mlflow_experiment, directory, config, sent)))
        for setting, start in starts:
            self._start(setting, start, resumed=first_step > 0)
        self._file = path.open("a" if first_step > 0 else "w")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it needs `step` and `split`. In the file, what is not finite is null."""
        if not self.enabled:
            return
        held = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(held, allow_nan=False) + "\n")
        self._file.flush()
        numbers = {f"{record['split']}/{k}": float(v) for k, v in record.items() if k != "step" and _is_number(v)}
        self._for_each_sink(lambda sink: sink.write(numbers, record["step"]))

    def say(self, message: str) -> None:
        """Print a line for people."""
        if self.enabled:
            print(message, flush=True)

    def close(self) -> None:
        """Flush and close everything."""
        if self.enabled:
            self._file.close()
            self._for_each_sink(lambda sink: sink.close())

    def _start(self, setting: str, start: Callable[[], Sink], resumed: bool) -> None:
        """Start a sink. A new run has somebody watching who can set it right; a resumed one goes on without."""
        try:
            self._sinks.append(start())
        except Exception as error:
            if not resumed:
                raise ValueError(
                    f"`run.{setting}` must name what can be written to, got: {_one_line(error)}. "
                    "Set it right, or leave it out."
                ) from error
            _warn(f"`run.{setting}` is left out: {_one_line(error)}")

    def _for_each_sink(self, act: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                act(sink)
            except Exception as error:  # whatever it is, it may not end weeks of training
                self._sinks.remove(sink)
                _warn(f"{type(sink).__name__} failed and is left out from here on: {_one_line(error)}")


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


def _read_step(line: bytes) -> int | None:
    """Give the step of a record, or None for what a power failure made of one."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
