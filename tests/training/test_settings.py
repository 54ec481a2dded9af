"""DeepSpeed settings."""

import json

import pytest
from launch import ROOT

from scfusion_fm.training.settings import precision, read_deepspeed_settings


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


ZERO = "zero_optimization"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": {"enabled": True}}, r"got \['fp16'\]; known"),
        ({"bfloat16": {"enabled": True}}, r"got \['bfloat16'\]; known"),
        ({"zero_optimizaton": {"stage": 2}}, r"got \['zero_optimizaton'\]; known"),
        ({ZERO: {"stage": 2, "round_robin_gradients": True}}, r"`zero_optimization` must hold .*round_robin_gradients"),
        ({ZERO: {"stage": 2, "compute_grad_norm": False}}, "compute_grad_norm"),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}, ZERO: {"stage": 2}}, "check_grad_overflow"),
        ({"bf16": {"enabled": True}}, "`bf16` must come with ZeRO stage 1, 2 or 3, got stage 0"),
        ({"bf16": True}, "`bf16` must be a JSON object, got True"),
        ({ZERO: None}, "`zero_optimization` must be a JSON object, got None"),
        ([], r"`the file` must be a JSON object, got \[\]"),
        ({ZERO: {"stage": "2"}}, "`zero_optimization.stage` must be 0, 1, 2 or 3, got '2'"),
        ({ZERO: {"stage": 4}}, "`zero_optimization.stage` must be 0, 1, 2 or 3, got 4"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "`torch_autocast.dtype` must be bfloat16"),
        ({ZERO: {"stage": 3, "offload_param": {"device": "nvme"}}}, "`offload_param.device` must be none or cpu"),
        ({ZERO: {"stage": 2, "offload_param": {"device": "cpu"}}}, "`offload_param` must come with ZeRO stage 3"),
        ({ZERO: {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "must come with ZeRO stage 1 or more"),
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
