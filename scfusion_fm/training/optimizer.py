"""AdamW that can be told to leave out an update, its groups of parameters, and its learning rate by step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scfusion_fm.config.pretrain import OptimConfig

BETAS = (0.9, 0.95)
SCHEDULES = ("cosine", "wsd")


@dataclass(frozen=True)
class Schedule:
    """
    Learning rate by step: linear warm-up, then a way down.

    Parameters
    ----------
    total_steps, warmup_steps
        Length of the run and of its warm-up, in optimizer steps.
    lr
        Highest learning rate.
    min_ratio
        Last learning rate as a share of the highest.
    kind
        `cosine`, or `wsd` (warm-up, stable, decay): constant until the last `decay_steps`, then linear.
    decay_steps
        Length of the way down of `wsd`.

    Raises
    ------
    ValueError
        If the kind is unknown, or the parts are longer than the run.
    """

    total_steps: int
    warmup_steps: int
    lr: float
    min_ratio: float
    kind: str = "cosine"
    decay_steps: int = 0

    def __post_init__(self):
        if self.kind not in SCHEDULES:
            raise ValueError(f"`schedule` must be one of {SCHEDULES}, got {self.kind!r}.")
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                "`warmup_ratio` and `decay_ratio` must be at most 1 together, got "
                f"{self.warmup_steps} and {self.decay_steps} of {self.total_steps} steps."
            )

    def at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
            left = 0.5 * (1 + math.cos(math.pi * done))
        else:
            left = min((self.total_steps - step) / max(self.decay_steps, 1), 1.0)
        return self.lr * (self.min_ratio + (1 - self.min_ratio) * left)


def count_steps(epochs: float, cells: int, global_batch_size: int) -> int:
    """Count the optimizer steps of so many passes over the cells."""
    return math.ceil(epochs * cells / global_batch_size)


def build_schedule(optim: OptimConfig, cells: int) -> Schedule:
    """
    Turn passes over the cells, and shares of the run, into steps.

    Parameters
    ----------
    optim
        Settings of the run.
    cells
        Training cells of a pass.

    Raises
    ------
    ValueError
        If the run has no step.
    """
    steps = count_steps(optim.epochs, cells, optim.global_batch_size)
    if steps < 1:
        raise ValueError(f"`optim.epochs` must make at least one step, got {optim.epochs}.")
    decay = math.ceil(steps * optim.decay_ratio) if optim.schedule == "wsd" else 0
    warmup = min(math.ceil(steps * optim.warmup_ratio), steps)
    return Schedule(steps, warmup, optim.lr, optim.min_lr_ratio, optim.schedule, decay)


def parameter_groups(model: nn.Module, weight_decay: float, embedding_lr_ratio: float = 1.0) -> list[dict[str, Any]]:
    """
    Split parameters by weight decay and learning rate.

    Matrices of linear layers decay; embeddings, norms, biases and fast weights do not. The weights by which tokens
    embed their values may learn at a lower rate: Adam moves the weight of a gene that is hardly ever expressed as fast
    as that of any other, and what it adds is noise.

    Parameters
    ----------
    model
        Model whose parameters are trained; those in a module's `value_weights` are embeddings of values.
    weight_decay
        AdamW weight decay.
    embedding_lr_ratio
        `lr_ratio` of the group of embeddings of values; 1 makes no such group.
    """
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    slow = (
        {id(p) for m in model.modules() for p in getattr(m, "value_weights", ())} if embedding_lr_ratio != 1 else set()
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed | slow], "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in slow], "weight_decay": 0.0, "lr_ratio": embedding_lr_ratio},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, times the `lr_ratio` of those that have one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


class Skipping:
    """Let an optimizer leave out an update: `skip` is set before the step and holds for that step."""

    skip: bool = False

    def first_step(self) -> torch.Tensor | int:
        """Give the count of updates of a fresh state, of the type that this optimizer counts with."""
        return torch.tensor(0.0)

    def step(self, closure: Any = None) -> Any:
        """Update, unless told not to."""
        return None if self.skip else super().step(closure)


class SkippingAdamW(Skipping, torch.optim.AdamW):
    """AdamW for the partitions of ZeRO, whose norm and clipping are DeepSpeed's."""


class ClippingAdamW(Skipping, torch.optim.AdamW):
    """
    AdamW for stage 0, where DeepSpeed neither reports the norm of the gradients nor looks whether it is finite.

    Parameters
    ----------
    parameters
        Groups of parameters.
    max_grad_norm
        Largest norm of all gradients together; 0 does not clip.
    settings
        Other arguments of AdamW.

    Attributes
    ----------
    overflow
        Whether the last update was left out because the gradients were not finite, as DeepSpeed's optimizers tell it.
    """

    def __init__(self, parameters: Any, max_grad_norm: float, **settings: Any):
        super().__init__(parameters, **settings)
        self.max_grad_norm = max_grad_norm
        self.overflow = False
        self._global_grad_norm: float | None = None  # where DeepSpeed's engine looks for it

    def step(self, closure: Any = None) -> Any:
        """Clip and update; leave everything as it is where a gradient is not finite."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return None
        if self.max_grad_norm > 0:
            for gradient in gradients:  # as DeepSpeed's ZeRO does it
                gradient.mul_(min(1.0, self.max_grad_norm / (self._global_grad_norm + 1e-6)))
        return super().step(closure)


def build_optimizer(model: nn.Module, optim: OptimConfig, stage: int, on_cpu: bool) -> torch.optim.Optimizer:
    """
    Make the optimizer of a pretraining.

    Parameters
    ----------
    model
        Model whose parameters are trained.
    optim
        Settings of the run.
    stage, on_cpu
        As in `make_adamw`.
    """
    groups = parameter_groups(model, optim.weight_decay, optim.embedding_lr_ratio)
    return make_adamw(groups, stage, on_cpu, optim.max_grad_norm, lr=optim.lr, betas=BETAS)


def make_adamw(
    groups: list[dict[str, Any]], stage: int, on_cpu: bool, max_grad_norm: float, **settings: Any
) -> torch.optim.Optimizer:
    """
    Make the optimizer that a ZeRO stage needs.

    Parameters
    ----------
    groups
        Parameters with their settings.
    stage
        ZeRO stage.
    on_cpu
        Whether the optimizer state is offloaded, so that the update runs on the CPU.
    max_grad_norm
        Largest norm of all gradients together, 0 for any; with stages above 0, DeepSpeed is to be told.
    settings
        Other arguments of AdamW.
    """
    if stage == 0:
        return ClippingAdamW(groups, max_grad_norm, **settings)
    if not on_cpu:
        return _known_to_deepspeed(SkippingAdamW(groups, **settings))
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    class SkippingCPUAdam(Skipping, DeepSpeedCPUAdam):
        """DeepSpeed's vectorised AdamW for offloaded states."""

        def first_step(self) -> int:
            return 0

    return _known_to_deepspeed(SkippingCPUAdam(groups, adamw_mode=True, **settings))


def _known_to_deepspeed(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Tell DeepSpeed, which compares types, that an optimizer is as good for ZeRO as the one it is derived from."""
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    if type(optimizer) not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(type(optimizer))
    return optimizer
