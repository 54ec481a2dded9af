"""The DeepSpeed engine of a run: process group, optimizer and settings."""

import copy
import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters: matrices of linear layers decay, embeddings, norms, biases and fast weights do not."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def read_deepspeed_settings(path: str | Path) -> dict[str, Any]:
    """
    Read a DeepSpeed JSON file.

    Raises
    ------
    ValueError
        If it is missing, is no JSON, or sets what the training configuration decides.
    """
    path = Path(path)
    try:
        settings = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"`deepspeed` must be a readable JSON file, got {str(path)!r}: {error}.") from error
    ours = {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
    } & settings.keys()
    if ours:
        raise ValueError(
            f"`deepspeed` must leave {sorted(ours)} to the `optim` settings of the run, got them in {str(path)!r}."
        )
    return settings


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
    settings = copy.deepcopy(settings) | {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": optim.max_grad_norm,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(decay_groups(model, optim.weight_decay), lr=optim.lr, betas=(0.9, 0.95))
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
