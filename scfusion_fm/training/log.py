"""What a run reports: a file of records, lines for people, TensorBoard, Weights & Biases and MLflow."""

import importlib
import json
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

METRICS_FILE = "metrics.jsonl"
WANDB_RUN_FILE, MLFLOW_RUN_FILE, MLFLOW_STORE = "wandb_run.txt", "mlflow_run.txt", "mlflow.db"
WANDB_PATIENCE_S = 600.0
MLFLOW_PARAMS_PER_CALL = 100  # more are refused
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # All ranks wait for the answer of a server; the defaults would try for many minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


class Sink(Protocol):
    """Shows the numbers of a run somewhere; may fail, since the file of records has them all."""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""

    def close(self) -> None:
        """Bring what was written to its place."""


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


class TensorBoardSink:
    """
    Write TensorBoard events to `tensorboard` in the directory of the run.

    Parameters
    ----------
    directory
        Directory of the run.
    first_step
        Step that the run starts from; TensorBoard hides later ones of the interrupted run.
    """

    def __init__(self, directory: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(directory / "tensorboard", purge_step=first_step + 1)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is in memory."""
        self._writer.close()


class WandbSink:
    """
    Log to Weights & Biases; with `WANDB_MODE=offline`, to `wandb` in the directory of the run, for `wandb sync`.

    Parameters
    ----------
    wandb
        The package.
    project
        Name of the project.
    directory
        Directory of the run, which remembers the id.
    config
        Settings of the run.
    sent
        Last step that was recorded before; 0 starts a new run.

    Notes
    -----
    No step is written twice. Offline, the last ones before SIGKILL are missing, since wandb writes in blocks; the file
    of records has them.
    """

    def __init__(self, wandb: ModuleType, project: str, directory: Path, config: Mapping[str, Any], sent: int):
        file = directory / WANDB_RUN_FILE
        if not (sent and file.exists()):
            file.write_text(uuid.uuid4().hex[:12])
            sent = 0
        self._run = wandb.init(
            project=project,
            id=file.read_text(),
            resume="allow",
            name=directory.resolve().name,
            dir=str(directory),
            config=dict(config),
            settings=wandb.Settings(finish_timeout=WANDB_PATIENCE_S),  # without it, it waits for its service for ever
        )
        # The service knows what it has. Files that wait for `wandb sync` do not: there, what was recorded is counted.
        self._sent = self._run.step - 1 if self._run.step else sent

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""
        if step > self._sent:
            self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MlflowSink:
    """
    Log to an MLflow store: at `MLFLOW_TRACKING_URI`, or else `mlflow.db` in the directory of the run.

    Parameters
    ----------
    mlflow
        The package; mlflow-skinny will do.
    experiment
        Name of the experiment; made when missing.
    directory
        Directory of the run, which remembers the id.
    config
        Settings of the run: parameters with names like `optim.lr`.
    sent
        Last step that was recorded before, and so sent; 0 starts a new run.

    Notes
    -----
    The local store is SQLite. MLflow's store of plain files is in maintenance mode and refuses to start by default.
    """

    def __init__(self, mlflow: ModuleType, experiment: str, directory: Path, config: Mapping[str, Any], sent: int):
        self._entities = mlflow.entities
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(uri or f"sqlite:///{directory.resolve() / MLFLOW_STORE}")
        file = directory / MLFLOW_RUN_FILE
        if sent and file.exists():
            self._sent, self._run_id = sent, file.read_text()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        artifacts = None if uri else (directory.resolve() / "mlflow_artifacts").as_uri()
        number = found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
        self._sent, self._run_id = 0, self._client.create_run(number, run_name=directory.resolve().name).info.run_id
        file.write_text(self._run_id)
        params = [mlflow.entities.Param(name, value) for name, value in flatten_settings(config).items()]
        for start in range(0, len(params), MLFLOW_PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=params[start : start + MLFLOW_PARAMS_PER_CALL])

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""
        if step > self._sent:
            now = time.time_ns() // 1_000_000
            metrics = [self._entities.Metric(name, value, now, step) for name, value in numbers.items()]
            self._client.log_batch(self._run_id, metrics)

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run_id)


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


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Write nested settings as texts under names with dots; what MLflow does not allow in a name becomes `_`."""
    flat = {}
    for key, value in settings.items():
        name = prefix + re.sub(r"[^\w\-. :/]", "_", str(key), flags=re.ASCII)
        flat |= flatten_settings(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return flat


def _import_extra(extra: str, packages: list[str], setting: str, value: str) -> ModuleType:
    """
    Import the packages of an extra; give the first.

    Raises
    ------
    ValueError
        If one is not installed.
    """
    try:
        first, *_ = [importlib.import_module(package) for package in packages]
    except ImportError as error:
        raise ValueError(
            f"`run.{setting}` must be null without the packages {packages}, got {value!r}; "
            f"pip install 'scfusion-fm[{extra}]'."
        ) from error
    return first


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
