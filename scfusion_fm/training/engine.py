"""The DeepSpeed engine of a run: process group, optimizer and settings."""

import copy
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from scfusion_fm.config.pretrain import OptimConfig
from scfusion_fm.training.fragments import check_layout
from scfusion_fm.training.optimizer import build_optimizer
from scfusion_fm.training.parted import explained_refusals, finish_parts, is_parted
from scfusion_fm.training.settings import is_on, offload_device, zero_stage


def build_engine(
    model: nn.Module, settings: dict[str, Any], optim: OptimConfig, accumulation_steps: int
) -> deepspeed.DeepSpeedEngine:
    """
    Wrap a model for pretraining on all ranks.

    Parameters
    ----------
    model
        The model, the same on every rank, or built in parts (`scfusion_fm.training.parted`).
    settings
        DeepSpeed settings without batch sizes, optimizer and schedule.
    optim
        Settings of the run.
    accumulation_steps
        Forward passes per optimizer step.

    Raises
    ------
    ValueError
        If DeepSpeed refuses the settings.
    """
    on_cpu = offload_device(settings, "offload_optimizer") == "cpu"
    optimizer = build_optimizer(model, optim, zero_stage(settings), on_cpu)
    batch = {
        "train_micro_batch_size_per_gpu": optim.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
    }
    return start_engine(model, optimizer, settings, batch, optim.max_grad_norm)


def start_engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
    batch: dict[str, int],
    max_grad_norm: float,
) -> deepspeed.DeepSpeedEngine:
    """
    Wrap a model and its optimizer for training on all ranks.

    Parameters
    ----------
    model, optimizer
        The same on every rank, or built in parts; the optimizer is one of `make_adamw`.
    settings
        DeepSpeed settings without batch sizes, optimizer and schedule.
    batch
        DeepSpeed's settings of the batch.
    max_grad_norm
        Largest norm of all gradients together, 0 for any.

    Raises
    ------
    ValueError
        If DeepSpeed refuses the settings.
    """
    stage = zero_stage(settings)
    settings = copy.deepcopy(settings) | batch
    if any(is_parted(parameter) for parameter in model.parameters()):
        finish_parts(model, settings, torch.device(get_accelerator().current_device_name()))
    settings["gradient_clipping"] = max_grad_norm if stage else 0.0  # stage 0: the optimizer clips
    settings["steps_per_print"] = None
    if stage == 3 and is_on(settings, "torch_autocast"):
        # Parameters that stay gathered would have other bits after a resume than before it.
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    with explained_refusals():
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    check_layout(engine)
    return engine
