"""The DeepSpeed file of a run: what may stand in it. Read without DeepSpeed, whose import takes seconds."""

import json
from pathlib import Path
from typing import Any

from scfusion_fm.config.shipped import find_settings

OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "checkpoint",
)
# What decides in which precision a model is trained; it may not change within a run.
PRECISION = ("bf16", "torch_autocast", "data_types", "communication_data_type")
# What was run and compared. DeepSpeed takes much more, ignores what it does not know, and with some of it updates by
# gradients that are not finite (compute_grad_norm, check_grad_overflow) or hides where its partitions are
# (round_robin_gradients).
KNOWN = {
    "": (*PRECISION, "zero_optimization"),
    "bf16": ("enabled",),
    "torch_autocast": ("enabled", "dtype"),
    "data_types": ("grad_accum_dtype",),
    "zero_optimization": (
        "stage",
        "reduce_bucket_size",
        "allgather_bucket_size",
        "overlap_comm",
        "contiguous_gradients",
        "sub_group_size",
        "offload_optimizer",
        "offload_param",
        "stage3_prefetch_bucket_size",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_param_persistence_threshold",
        "zero_hpz_partition_size",
    ),
    "offload_optimizer": ("device", "pin_memory"),
    "offload_param": ("device", "pin_memory"),
}


def read_deepspeed_settings(path: str | Path) -> dict[str, Any]:
    """
    Read a DeepSpeed JSON file; `configs/...` may be one that comes with the package.

    Raises
    ------
    ValueError
        If it is missing, is no JSON, sets what the training configuration decides, or what cannot be trained or resumed
        exactly.
    """
    path = find_settings(path)
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"`deepspeed` must be a readable JSON file, got {str(path)!r}: {error}.") from error
    ours = sorted(settings.keys() & set(OURS)) if isinstance(settings, dict) else []
    if ours:
        raise ValueError(
            f"`deepspeed` must leave {ours} to the `optim` settings of the run, got them in {str(path)!r}."
        )
    try:
        _check_keys(settings, "")
        _check_supported(settings)
    except ValueError as error:
        raise ValueError(f"`deepspeed` cannot be {str(path)!r}: {error}") from error
    return settings


def precision(settings: dict[str, Any]) -> dict[str, Any]:
    """Give the settings that decide in which precision a model is trained, where they are switched on."""
    given = {key: settings[key] for key in PRECISION if key in settings}
    return {
        key: value for key, value in given.items() if not (isinstance(value, dict) and value.get("enabled") is False)
    }


def is_on(settings: dict[str, Any], part: str) -> bool:
    """Tell whether a precision is switched on."""
    return bool(settings.get(part, {}).get("enabled"))


def zero_stage(settings: dict[str, Any]) -> int:
    """Give the ZeRO stage; 0 where there is none."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def offload_device(settings: dict[str, Any], part: str) -> str:
    """Give where `offload_optimizer` or `offload_param` puts things: none or cpu."""
    return settings.get("zero_optimization", {}).get(part, {}).get("device", "none")


def _check_keys(settings: Any, where: str) -> None:
    """Refuse what is not known, all the way down."""
    if not isinstance(settings, dict):
        raise ValueError(f"`{where or 'the file'}` must be a JSON object, got {settings!r}.")
    unknown = sorted(settings.keys() - set(KNOWN[where]))
    if unknown:
        raise ValueError(
            f"`{where or 'the file'}` must hold settings that are known to be resumed exactly, got {unknown}; known: "
            f"{sorted(KNOWN[where])}."
        )
    for key, value in settings.items():
        if key in KNOWN:
            _check_keys(value, key)


def _check_supported(settings: dict[str, Any]) -> None:
    """Refuse what DeepSpeed would run, but wrongly or without a way back."""
    stage = zero_stage(settings)
    if type(stage) is not int or stage not in range(4):
        raise ValueError(f"`zero_optimization.stage` must be 0, 1, 2 or 3, got {stage!r}.")
    if is_on(settings, "bf16") and stage == 0:
        raise ValueError(
            "`bf16` must come with ZeRO stage 1, 2 or 3, got stage 0: there, DeepSpeed keeps no float32 weights in its "
            "partitions and clips by a wrong norm. Use stage 1, or torch_autocast."
        )
    dtype = settings.get("torch_autocast", {}).get("dtype", "bfloat16")
    if dtype not in ("bfloat16", "torch.bfloat16"):
        raise ValueError(f"`torch_autocast.dtype` must be bfloat16, got {dtype!r}: float16 needs a scale of the loss.")
    for part, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = offload_device(settings, part)
        if device not in ("none", "cpu"):
            raise ValueError(f"`{part}.device` must be none or cpu, got {device!r}.")
        if device == "cpu" and stage < least:
            raise ValueError(f"`{part}` must come with ZeRO stage {least} or more, got stage {stage}.")
