"""The DeepSpeed engine of a run: process group, optimizer and settings."""

import copy
import json
from pathlib import Path
from typing import Any

import deepspeed
from torch import nn

from .optimizer import build_optimizer

OURS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "checkpoint",
}
PRECISION = ("bf16", "torch_autocast")


def read_deepspeed_settings(path: str | Path) -> dict[str, Any]:
    """
    Read a DeepSpeed JSON file.

    Raises
    ------
    ValueError
        If it is missing, is no JSON, sets what the training configuration decides, or what cannot be resumed exactly.
    """
    path = Path(path)
    try:
        settings = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"`deepspeed` must be a readable JSON file, got {str(path)!r}: {error}.") from error
    ours = OURS & settings.keys()
    if ours:
        raise ValueError(
            f"`deepspeed` must leave {sorted(ours)} to the `optim` settings of the run, got them in {str(path)!r}."
        )
    _check_supported(settings, str(path))
    return settings


def _check_supported(settings: dict[str, Any], path: str) -> None:
    """Refuse what DeepSpeed would run, but wrongly or without a way back."""
    zero = settings.get("zero_optimization", {})
    if settings.get("fp16", {}).get("enabled"):
        raise ValueError(f"`deepspeed` must use float32 or bf16, got fp16 in {path!r}. Use bf16, or torch_autocast.")
    if settings.get("bf16", {}).get("enabled") and zero.get("stage", 0) == 0:
        raise ValueError(
            f"`deepspeed` must not combine bf16 with ZeRO stage 0, got it in {path!r}: there, DeepSpeed keeps no "
            "float32 weights in its partitions and clips by a wrong norm. Use stage 1, or torch_autocast."
        )
    for part in ("offload_optimizer", "offload_param"):
        device = (zero.get(part) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise ValueError(f"`deepspeed` must offload to the CPU, if at all, got {part} {device!r} in {path!r}.")


def precision(settings: dict[str, Any]) -> dict[str, Any]:
    """Give the settings that decide in which precision a model is trained; it may not change within a run."""
    return {key: settings[key] for key in PRECISION if settings.get(key, {}).get("enabled")}


def build_engine(
    model: nn.Module,
    settings: dict[str, Any],
    micro_batch_size: int,
    accumulation_steps: int,
    optim: Any,
) -> deepspeed.DeepSpeedEngine:
    """
    Wrap a model for training on all ranks.

    Parameters
    ----------
    model
        The model, the same on every rank.
    settings
        DeepSpeed settings without batch sizes, optimizer and schedule.
    micro_batch_size
        Cells per rank and forward pass.
    accumulation_steps
        Forward passes per optimizer step.
    optim
        Has `lr`, `weight_decay` and `max_grad_norm`.
    """
    zero = settings.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    on_cpu = (zero.get("offload_optimizer") or {}).get("device", "none") == "cpu"
    settings = copy.deepcopy(settings) | {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": optim.max_grad_norm if stage else 0.0,  # stage 0: the optimizer clips
        "steps_per_print": None,
    }
    optimizer = build_optimizer(model, optim, stage, on_cpu)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
