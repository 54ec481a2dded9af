"""Schedule, log, settings and parameter groups."""

import json

import numpy as np
import pytest
from torch import nn

from scfusion_fm import ScFusionTTTForPreTraining
from scfusion_fm.training.checkpoint import latest_checkpoint, load_weights
from scfusion_fm.training.engine import decay_groups, read_deepspeed_settings
from scfusion_fm.training.log import METRICS_FILE, RunLog, format_seconds
from scfusion_fm.training.loop import Schedule


def test_schedule_warms_up_and_decays_to_its_last_value():
    schedule = Schedule(total_steps=100, warmup_steps=10, lr=2.0, min_ratio=0.1)
    rates = np.array([schedule.at(s) for s in range(101)])
    assert rates[9] == 2.0
    assert np.allclose(np.diff(rates[:10]), 0.2)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[100] == pytest.approx(0.2)
    assert Schedule(5, 0, 1.0, 0.0).at(0) == 1.0


def test_only_matrices_of_linear_layers_decay(tiny_config):
    model = ScFusionTTTForPreTraining(tiny_config)
    decayed, kept = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in linear}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_deepspeed_settings_are_checked(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    assert read_deepspeed_settings(path)["zero_optimization"]["stage"] == 2
    path.write_text('{"train_batch_size": 8}')
    with pytest.raises(ValueError, match=r"leave \['train_batch_size'\] to the `optim` settings"):
        read_deepspeed_settings(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="`deepspeed` must be a readable JSON file"):
        read_deepspeed_settings(path)
    with pytest.raises(ValueError, match="`deepspeed` must be a readable JSON file"):
        read_deepspeed_settings(tmp_path / "none.json")


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


def test_pointer_to_a_missing_checkpoint_is_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "latest").write_text("step_00000010")
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "step_00000010").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010"


def test_weights_need_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="`run` must hold a checkpoint"):
        load_weights(tmp_path / "checkpoints")
