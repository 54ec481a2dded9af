"""Where a run shows its numbers beside its file of records: TensorBoard, Weights & Biases and MLflow."""

import importlib
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from scfusion_fm.config.pretrain import RunConfig
from scfusion_fm.extras import explain_missing

WANDB_RUN_FILE, MLFLOW_RUN_FILE, MLFLOW_STORE = "wandb_run.txt", "mlflow_run.txt", "mlflow.db"
WANDB_PATIENCE_S = 600.0  # for its service to send what is left
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
    identity
        Settings of the run.
    sent
        Last step that was recorded before; 0 starts a new run.

    Notes
    -----
    No step is written twice. Offline, the last ones before SIGKILL are missing, since wandb writes in blocks; the file
    of records has them.
    """

    def __init__(self, wandb: ModuleType, project: str, directory: Path, identity: Mapping[str, Any], sent: int):
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
            config=dict(identity),
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
    identity
        Settings of the run: parameters with names like `optim.lr`.
    sent
        Last step that was recorded before, and so sent; 0 starts a new run.

    Notes
    -----
    The local store is SQLite. MLflow's store of plain files is in maintenance mode and refuses to start by default.
    """

    def __init__(self, mlflow: ModuleType, experiment: str, directory: Path, identity: Mapping[str, Any], sent: int):
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
        params = [mlflow.entities.Param(name, value) for name, value in flatten_settings(identity).items()]
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


class Sinks:
    """
    Show the numbers of a run wherever its settings say; a sink that fails is told on stderr and left out from then on.

    Parameters
    ----------
    directory
        Directory of the run.
    settings
        Which sinks there are. The store of MLflow is at `MLFLOW_TRACKING_URI`, or in the directory of the run.
    identity
        Settings of the run, shown beside its numbers.
    first_step
        Step that the run starts from; 0 for a new one.
    sent
        Last step that was recorded before, and so sent.

    Raises
    ------
    ValueError
        If a package is missing, or a sink does not start for a new run.
    """

    def __init__(self, directory: Path, settings: RunConfig, identity: Mapping[str, Any], first_step: int, sent: int):
        project, experiment = settings.wandb_project, settings.mlflow_experiment
        starts: dict[str, Callable[[], Sink]] = {}
        if settings.tensorboard:
            with explain_missing():
                importlib.import_module("tensorboard")
            starts["tensorboard"] = lambda: TensorBoardSink(directory, first_step)
        if project is not None:
            wandb = _import_extra("wandb", ["wandb"], "wandb_project", project)
            starts["wandb_project"] = lambda: WandbSink(wandb, project, directory, identity, sent)
        if experiment is not None:
            for name, value in MLFLOW_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            mlflow = _import_extra("mlflow", ["mlflow", "sqlalchemy", "alembic"], "mlflow_experiment", experiment)
            starts["mlflow_experiment"] = lambda: MlflowSink(mlflow, experiment, directory, identity, sent)
        self._sinks: list[Sink] = []
        for setting, start in starts.items():
            self._start(setting, start, resumed=first_step > 0)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step."""
        self._for_each(lambda sink: sink.write(numbers, step))

    def close(self) -> None:
        """Bring what was written to its place."""
        self._for_each(lambda sink: sink.close())

    def _start(self, setting: str, start: Callable[[], Sink], resumed: bool) -> None:
        """
        Start a sink. A new run has somebody watching who can set it right; a resumed one goes on without.

        Raises
        ------
        ValueError
            If it does not start for a new run.
        """
        try:
            self._sinks.append(start())
        except Exception as error:
            if not resumed:
                raise ValueError(
                    f"`run.{setting}` must name what can be written to, got: {_one_line(error)}. "
                    "Set it right, or leave it out."
                ) from error
            _warn(f"`run.{setting}` is left out: {_one_line(error)}")

    def _for_each(self, act: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                act(sink)
            except Exception as error:  # whatever it is, it may not end weeks of training
                self._sinks.remove(sink)
                _warn(f"{type(sink).__name__} failed and is left out from here on: {_one_line(error)}")


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
