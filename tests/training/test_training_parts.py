"""Schedule, settings and parameter groups."""

import numpy as np
import pytest
from torch import nn

from scfusion_fm import ScFusionTTTForPreTraining
from scfusion_fm.training.checkpoint import latest_checkpoint, load_weights
from scfusion_fm.training.engine import decay_groups, read_deepspeed_settings
from scfusion_fm.training.log import format_seconds
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
