"""Whether a pretraining run fits the memory of its GPUs, and how long it is: `scfusion plan`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from scfusion_fm.config.pretrain import MaskingConfig
from scfusion_fm.model.configuration_scfusion_ttt import ScFusionTTTConfig
from scfusion_fm.planning.communication import communication_per_gpu
from scfusion_fm.planning.memory import Memory, memory_per_gpu
from scfusion_fm.planning.settings import DeepSpeedSettings
from scfusion_fm.planning.sizing import ParameterCounts, activation_bytes, count_parameters, forward_flops, train_flops
from scfusion_fm.planning.tokens import longest_tokens, mean_tokens
from scfusion_fm.training.optimizer import count_steps

SCALES = (8, 16, 32, 64, 128, 256, 512, 1024)  # GPUs
USABLE_SHARE = 0.9  # of a GPU's memory; the rest is for the context, NCCL, and pieces too small to be used


@dataclass(frozen=True)
class PlanRequest:
    """
    The run that is to be planned, and its GPUs.

    Attributes
    ----------
    gpus
        Number of GPUs.
    gpu_memory
        GiB of each.
    global_batch_size, micro_batch_size
        Cells per optimizer step, and per GPU and forward pass.
    checkpointing
        Whether activations are computed again.
    epochs
        Passes over the cells.
    cells
        Training cells; None when they are not known.
    tflops
        What a GPU does in a second, in 10^12 operations, sustained; None makes no estimate of time.

    Raises
    ------
    ValueError
        If a number is out of range or the batches cannot be dealt to the GPUs.
    """

    gpus: int
    gpu_memory: float
    global_batch_size: int
    micro_batch_size: int
    checkpointing: bool
    epochs: float
    cells: int | None = None
    tflops: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("gpus", self.gpus), ("cells", self.cells)):
            if value is not None and value < 1:
                raise ValueError(f"`--{option}` must be at least 1, got {value}.")
        for option, value in (("gpu-memory", self.gpu_memory), ("tflops", self.tflops)):
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"`--{option}` must be a positive number, got {value}.")
        for name in ("global_batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`optim.{name}` must be at least 1, got {getattr(self, name)}.")
        if self.global_batch_size % self.gpus:
            raise ValueError(
                f"`optim.global_batch_size` must be a multiple of the {self.gpus} GPUs, got {self.global_batch_size}. "
                "Change it, or the number of GPUs."
            )

    @property
    def cells_per_gpu(self) -> int:
        """Cells per GPU and optimizer step."""
        return self.global_batch_size // self.gpus

    @property
    def micro_batch_sizes(self) -> list[int]:
        """Micro-batches that make up the share of a GPU, largest first."""
        return [n for n in range(self.cells_per_gpu, 0, -1) if self.cells_per_gpu % n == 0]

    @property
    def planned_micro_batch(self) -> int:
        """The micro-batch of the recipe, or the next smaller one that makes up the share of a GPU."""
        return next(n for n in self.micro_batch_sizes if n <= self.micro_batch_size)

    @property
    def accumulation_steps(self) -> int:
        """Planned micro-batches per GPU and optimizer step."""
        return self.cells_per_gpu // self.planned_micro_batch


@dataclass(frozen=True)
class Scale:
    """
    The run of the recipe on a number of GPUs.

    Attributes
    ----------
    gpus, micro_batch_size, accumulation_steps
        How the global batch is cut.
    sent
        Bytes that a GPU sends in an optimizer step, by ZeRO stage.
    needed
        Bytes that it must send in a second, by stage, for sending to take as long as computing; None where the speed of
        a GPU is not known.
    """

    gpus: int
    micro_batch_size: int
    accumulation_steps: int
    sent: dict[int, float]
    needed: dict[int, float] | None


@dataclass(frozen=True)
class Choice:
    """
    One row of the plan.

    Attributes
    ----------
    settings
        How the model is parted.
    memory, sent
        Of a GPU at the planned micro-batch; bytes that it sends in an optimizer step.
    fits, largest_micro_batch
        Whether the planned micro-batch fits, and the largest that does.
    is_recipe
        Whether these are the settings of the recipe.
    """

    settings: DeepSpeedSettings
    memory: Memory
    sent: float
    fits: bool
    largest_micro_batch: int | None
    is_recipe: bool


@dataclass(frozen=True)
class Plan:
    """
    What `scfusion plan` says.

    Attributes
    ----------
    parameters
        Of the model.
    flops_forward, flops_train
        Of one cell.
    choices
        The ways to part the model, that of the recipe among them.
    steps, seconds
        Of the whole run; None where cells or speed are not known.
    scales
        The same global batch on other numbers of GPUs.
    largest_with_checkpointing
        The largest micro-batch of the recipe's settings when activations are computed again; None if none fits.
    """

    request: PlanRequest
    parameters: ParameterCounts
    flops_forward: float
    flops_train: float
    choices: list[Choice]
    steps: int | None
    seconds: float | None
    scales: list[Scale]
    largest_with_checkpointing: int | None

    def to_dict(self) -> dict[str, Any]:
        """Give the plan for JSON."""
        found = dataclasses.asdict(self)
        found["parameters"]["total"] = self.parameters.total
        for row, choice in zip(found["choices"], self.choices, strict=True):
            row["memory"]["total"] = choice.memory.total
        return found


def plan_run(
    config: ScFusionTTTConfig, masking: MaskingConfig, settings: DeepSpeedSettings, request: PlanRequest
) -> Plan:
    """Size a run with its own DeepSpeed settings and with the others that there are."""
    parameters = count_parameters(config)
    limit = USABLE_SHARE * request.gpu_memory * 2**30

    def memory(choice: DeepSpeedSettings, cells: int, checkpointing: bool) -> Memory:
        tokens = longest_tokens(config, masking)
        activations = activation_bytes(config, tokens, cells, checkpointing, choice.element_bytes)
        return memory_per_gpu(parameters, choice, request.gpus, activations)

    def largest(choice: DeepSpeedSettings, checkpointing: bool) -> int | None:
        sizes = request.micro_batch_sizes
        return next((n for n in sizes if memory(choice, n, checkpointing).total <= limit), None)

    choices = []
    for choice in _alternatives(settings):
        found = memory(choice, request.planned_micro_batch, request.checkpointing)
        fitting = largest(choice, request.checkpointing)
        sent = communication_per_gpu(parameters, choice, request.gpus, request.accumulation_steps).total
        choices.append(Choice(choice, found, sent, found.total <= limit, fitting, choice == settings))
    tokens = mean_tokens(config, masking, request.planned_micro_batch)
    per_cell, steps, seconds = train_flops(config, tokens), None, None
    if request.cells is not None:
        steps = count_steps(request.epochs, request.cells, request.global_batch_size)
        if request.tflops is not None:
            seconds = steps * request.global_batch_size * per_cell / (request.gpus * request.tflops * 1e12)
    forward = forward_flops(config, tokens)
    scales = _scale(parameters, settings, request, per_cell)
    return Plan(request, parameters, forward, per_cell, choices, steps, seconds, scales, largest(settings, True))


def _scale(parameters: ParameterCounts, settings: DeepSpeedSettings, request: PlanRequest, flops: float) -> list[Scale]:
    """Cut the global batch for 8 to 1,024 GPUs, where it can be."""
    found = []
    for gpus in SCALES:
        if request.global_batch_size % gpus:
            continue
        there = dataclasses.replace(request, gpus=gpus)
        cut = (gpus, there.planned_micro_batch, there.accumulation_steps)
        stages = range(int(settings.is_bf16), 4)
        sent = {
            stage: communication_per_gpu(
                parameters, dataclasses.replace(settings, stage=stage), gpus, there.accumulation_steps
            ).total
            for stage in stages
        }
        needed = None
        if request.tflops is not None:
            seconds = there.cells_per_gpu * flops / (request.tflops * 1e12)
            needed = {stage: size / seconds for stage, size in sent.items()}
        found.append(Scale(*cut, sent, needed))
    return found


def _alternatives(settings: DeepSpeedSettings) -> list[DeepSpeedSettings]:
    """List the stages with the precision and buckets of the settings, without and with the host, and the settings."""
    hosts = [(stage, False, False) for stage in range(int(settings.is_bf16), 4)]
    hosts += [(2, True, False), (3, True, False), (3, True, True)]
    found = [
        dataclasses.replace(settings, stage=stage, offload_optimizer=optimizer, offload_parameters=parameters)
        for stage, optimizer, parameters in hosts
    ]
    return found if settings in found else [*found, settings]
