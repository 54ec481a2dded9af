"""The log of a run: every step once after any interruption, and sinks that may fail."""

import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfusion_fm.config.pretrain import RunConfig
from scfusion_fm.training.log import RunLog, cut_records, format_seconds
from scfusion_fm.training.run_files import METRICS
from scfusion_fm.training.sinks import MLFLOW_STORE, TensorBoardSink, flatten_settings

CONFIG = {"optim": {"lr": 0.5, "betas": [0.9, 0.95]}, "weights": {"blood (a+b)": 2}, "seed": 3}
NEVER_MIND = "ignore:The ``noload`` loader strategy:DeprecationWarning"  # SQLAlchemy 2.1 about what MLflow does


def record(step, loss, split="train"):
    return {"step": step, "split": split, "loss": loss, "adt_loss": None, "skipped_steps": 0}


def write(directory, steps, first_step=0, **settings):
    log = RunLog(directory, RunConfig(**settings), CONFIG, first_step)
    for step in steps:
        log.write(record(step, 1 / step))
        log.write(record(step, 2 / step, "val"))
    log.close()


def steps_of(directory):
    return [(r["step"], r["split"]) for r in map(json.loads, (directory / METRICS).read_text().splitlines())]


@pytest.mark.parametrize("first_step", [0, 2, 3])
def test_log_of_a_resumed_run_has_every_step_once(tmp_path, first_step):
    write(tmp_path, (1, 2, 3), tensorboard=False)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "spl')  # killed while writing
    write(tmp_path, range(first_step + 1, 5), tensorboard=False, first_step=first_step)
    assert steps_of(tmp_path) == [(step, split) for step in (1, 2, 3, 4) for split in ("train", "val")]


@given(
    steps=st.lists(st.integers(1, 30), max_size=20).map(sorted),
    torn=st.sampled_from(["", '{"step"', "\0\0\0\n", "\0\0", "7\n"]),
    last_step=st.integers(0, 30),
)
def test_records_are_cut_as_if_all_were_read(tmp_path_factory, steps, torn, last_step):
    path = tmp_path_factory.mktemp("cut") / METRICS
    lines = [json.dumps(record(step, 1.0)) + "\n" for step in steps]
    path.write_text("".join(lines) + torn)
    assert cut_records(path, last_step) == max(steps, default=0)
    assert path.read_text() == "".join(line for line, step in zip(lines, steps, strict=True) if step <= last_step)


def test_records_that_stay_are_not_read(tmp_path):
    path = tmp_path / METRICS
    path.write_text('not read\n{"step": 1}\n{"step": 2}\n')
    cut_records(path, 1)
    assert path.read_text() == 'not read\n{"step": 1}\n'


def test_record_that_cannot_be_written_ends_the_run(tmp_path):
    log = RunLog(tmp_path, RunConfig(tensorboard=False), CONFIG)
    log._file.close()
    with pytest.raises(ValueError, match="closed file"):
        log.write(record(1, 1.0))


def test_other_ranks_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path, RunConfig(), CONFIG, enabled=False)
    log.write(record(1, 1.0))
    log.say("hello")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_tensorboard_shows_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, (1, 2, 3))
    write(tmp_path, (3, 4), first_step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(s, pytest.approx(2 / s)) for s in (1, 2, 3, 4)]
    assert [e.value for e in events.Scalars("train/skipped_steps")] == [0, 0, 0, 0]
    assert "train/adt_loss" not in events.Tags()["scalars"]


class BrokenSink:
    def __init__(self, *arguments):
        raise OSError("no\nroute")


def fail(self, numbers, step):
    raise OSError(28, "No space left on device")


def test_sink_that_fails_is_told_once_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TensorBoardSink, "write", fail)
    write(tmp_path, (1, 2))
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == [
        "warning: TensorBoardSink failed and is left out from here on: [Errno 28] No space left on device"
    ]
    assert len(steps_of(tmp_path)) == 4


def test_sink_that_does_not_start_ends_a_new_run_but_not_a_resumed_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scfusion_fm.training.sinks.TensorBoardSink", BrokenSink)
    with pytest.raises(ValueError, match=r"`run\.tensorboard` must name what can be written to, got: no route\."):
        RunLog(tmp_path, RunConfig(), CONFIG)
    write(tmp_path, (5,), first_step=4)
    assert capsys.readouterr().err == "warning: `run.tensorboard` is left out: no route\n"
    assert len(steps_of(tmp_path)) == 2


@pytest.mark.parametrize(
    ("setting", "extra", "package"),
    [("wandb_project", "wandb", "wandb"), ("mlflow_experiment", "mlflow", "mlflow")],
)
def test_missing_packages_are_told(tmp_path, monkeypatch, setting, extra, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"`run\.{setting}` must be null without the packages .*, got 'p'; pip install 'scfusion-fm\[{extra}\]'"
    with pytest.raises(ValueError, match=message):
        RunLog(tmp_path, RunConfig(tensorboard=False, **{setting: "p"}), CONFIG)


def test_settings_become_flat():
    assert flatten_settings(CONFIG) == {
        "optim.lr": "0.5",
        "optim.betas": "[0.9, 0.95]",
        "weights.blood _a_b_": "2",
        "seed": "3",
    }


@pytest.fixture
def offline_wandb(monkeypatch):
    """Weights & Biases without network, telemetry and a process that stays."""
    for name, value in {"MODE": "offline", "ERROR_REPORTING": "false", "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb = pytest.importorskip("wandb")
    yield wandb
    wandb.teardown()


def read_wandb(directory):
    """Read runs from the files that wait for `wandb sync`: ids, settings, and numbers by step."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    ids, config, history = set(), {}, []
    for path in sorted((directory / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.parent.name):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            found = Record.FromString(data)
            ids |= {found.run.run_id} - {""}
            config |= {item.key: json.loads(item.value_json) for item in found.run.config.update}
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in found.history.item}
            if items:
                history.append((found.history.step.num, items))
        store._fp.close()
    return ids, config, history


def test_wandb_has_every_step_once_in_one_run(tmp_path, offline_wandb):
    write(tmp_path, (1, 2, 3), tensorboard=False, wandb_project="p")
    write(tmp_path, (2, 3, 4), tensorboard=False, wandb_project="p", first_step=1)
    offline_wandb.teardown()
    ids, config, history = read_wandb(tmp_path)
    assert len(ids) == 1
    assert (config["optim"]["lr"], config["seed"]) == (0.5, 3)
    assert [step for step, _ in history] == [1, 2, 3, 4]
    for step, items in history:
        assert items["train/loss"] == 1 / step
        assert items["val/loss"] == 2 / step
    write(tmp_path, (1,), tensorboard=False, wandb_project="p")  # from the start: another run
    offline_wandb.teardown()  # its service writes in the background; on a busy machine, for longer than finish waits
    assert len(read_wandb(tmp_path)[0]) == 2


@pytest.fixture
def mlflow(monkeypatch):
    """MLflow without network and telemetry."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pytest.importorskip("sqlalchemy")
    return pytest.importorskip("mlflow")


@pytest.mark.filterwarnings(NEVER_MIND)
@pytest.mark.parametrize("place", ["run", "server"])
def test_mlflow_has_every_step_once_in_one_run(tmp_path, monkeypatch, mlflow, place):
    run = tmp_path / "run"
    run.mkdir()
    store = f"sqlite:///{tmp_path / place / MLFLOW_STORE}"
    if place == "server":
        (tmp_path / place).mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    write(run, (1, 2, 3), tensorboard=False, mlflow_experiment="e")
    write(run, (2, 3, 4), tensorboard=False, mlflow_experiment="e", first_step=1)
    write_nan(run, first_step=4)
    client = mlflow.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (found.info.status, found.data.params["optim.lr"]) == ("FINISHED", "0.5")
    history = client.get_metric_history(found.info.run_id, "val/loss")
    assert [(m.step, m.value) for m in history[:4]] == [(s, 2 / s) for s in (1, 2, 3, 4)]
    assert [m.step for m in history] == [1, 2, 3, 4, 5]
    assert math.isnan(history[4].value)
    write(run, (1,), tensorboard=False, mlflow_experiment="e")  # from the start: another run
    assert len(client.search_runs([found.info.experiment_id])) == 2
    assert (run / MLFLOW_STORE).exists() == (place == "run")


def write_nan(directory, first_step):
    log = RunLog(directory, RunConfig(tensorboard=False, mlflow_experiment="e"), CONFIG, first_step)
    log.write(record(first_step + 1, math.nan, "val"))
    log.close()


def test_durations_are_readable():
    assert format_seconds(3725.4) == "1:02:05"
    assert format_seconds(float("inf")) == "-"


def test_numbers_that_are_not_finite_are_null(tmp_path):
    log = RunLog(tmp_path, RunConfig(tensorboard=False), CONFIG)
    log.write(record(1, math.nan))
    log.close()
    assert json.loads((tmp_path / METRICS).read_text(), parse_constant=pytest.fail)["loss"] is None
