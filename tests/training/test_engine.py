"""DeepSpeed settings."""

import json

import pytest
from launch import ROOT

from scfusion_fm.training.engine import precision, read_deepspeed_settings


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": {"enabled": True}}, "must use float32 or bf16, got fp16"),
        ({"bf16": {"enabled": True}}, "must not combine bf16 with ZeRO stage 0"),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}}, "Use stage 1, or torch_autocast"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "got offload_param 'nvme'"),
        ({"checkpoint": {"load_universal": True}}, r"leave \['checkpoint'\]"),
    ],
)
def test_settings_that_deepspeed_would_run_wrongly_are_refused(tmp_path, settings, message):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        read_deepspeed_settings(path)


def test_precision_is_what_the_settings_switch_on():
    bf16 = {"enabled": True}
    assert precision({"zero_optimization": {"stage": 1}, "bf16": {"enabled": False}}) == {}
    assert precision({"zero_optimization": {"stage": 1}, "bf16": bf16}) == {"bf16": bf16}


@pytest.mark.parametrize("path", sorted((ROOT / "configs/deepspeed").glob("*.json")), ids=lambda p: p.stem)
def test_settings_of_the_repository_are_accepted(path):
    assert read_deepspeed_settings(path)["zero_optimization"]["stage"] in range(4)
