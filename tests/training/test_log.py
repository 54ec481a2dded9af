"""What a run reports."""

import json

import pytest

from scfusion_fm.training.log import METRICS_FILE, RunLog, format_seconds


def test_log_of_a_resumed_run_has_every_step_once(tmp_path):
    log = RunLog(tmp_path, True, tensorboard=False)
    for step in (1, 2, 3):
        log.write({"step": step, "split": "train", "loss": 0.5})
    log.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 4, "spl')  # killed while writing
    log = RunLog(tmp_path, True, first_step=2, tensorboard=False)
    log.write({"step": 3, "split": "train", "loss": 0.25})
    log.close()
    records = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_log_writes_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, True)
    log.write({"step": 7, "split": "val", "loss": 0.5, "cells": 3})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(7, 0.5)]


def test_other_ranks_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path, False)
    log.write({"step": 1, "split": "train"})
    log.say("hello")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_missing_wandb_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r"`run.wandb_project` is 'p', but wandb is not installed"):
        RunLog(tmp_path, True, tensorboard=False, wandb_project="p")


def test_durations_are_readable():
    assert format_seconds(3725.4) == "1:02:05"
    assert format_seconds(float("inf")) == "-"
