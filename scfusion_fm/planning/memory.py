"""Whether a pretraining run fits the memory of its GPUs, and how long it is: `scfusion plan`."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scfusion_fm.config.pretrain import MaskingConfig
from scfusion_fm.model.configuration_scfusion_ttt import ScFusionTTTConfig
from scfusion_fm.planning.sizing import (
    ParameterCounts,
    TokenCounts,
    activation_bytes,
    count_parameters,
    forward_flops,
    train_flops,
)
from scfusion_fm.training.settings import is_on, offload_device, zero_stage

USABLE_SHARE = 0.9  # of a GPU's memory; the rest is for the context, NCCL, and pieces too small to be used
ALLREDUCE_ELEMENTS = 500_000_000  # what DeepSpeed joins without ZeRO, whatever its settings are
MASTER_BYTES = 4  # the optimizer works in float32
MOMENTS_BYTES = 8  # two of AdamW


@dataclass(frozen=True)
class DeepSpeedSettings:
    """
    What decides about memory in a DeepSpeed file; the defaults are DeepSpeed's.

    Attributes
    ----------
    stage
        ZeRO stage: 0 keeps everything on every GPU, 1 parts the optimizer, 2 the gradients too, 3 the parameters too.
    is_bf16
        Whether parameters, gradients and activations are bfloat16.
    offload_optimizer, offload_parameters
        Whether these live in the memory of the host.
    reduce_bucket_size, prefetch_bucket_size, max_live_parameters, sub_group_size
        In elements; the last three of stage 3.
    overlap_comm
        Whether gradients travel during the backward pass, from a second bucket.
    """

    stage: int = 0
    is_bf16: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reduce_bucket_size: int = 500_000_000
    prefetch_bucket_size: int = 50_000_000
    max_live_parameters: int = 1_000_000_000
    sub_group_size: int = 1_000_000_000
    overlap_comm: bool = False

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "DeepSpeedSettings":
        """Read the checked content of a DeepSpeed file."""
        zero = settings.get("zero_optimization", {})
        names = ("prefetch_bucket_size", "max_live_parameters")
        given = {name: int(zero[f"stage3_{name}"]) for name in names if f"stage3_{name}" in zero}
        given |= {name: int(zero[name]) for name in ("reduce_bucket_size", "sub_group_size") if name in zero}
        return cls(
            stage=zero_stage(settings),
            is_bf16=is_on(settings, "bf16"),
            offload_optimizer=offload_device(settings, "offload_optimizer") == "cpu",
            offload_parameters=offload_device(settings, "offload_param") == "cpu",
            overlap_comm=bool(zero.get("overlap_comm")),
            **given,
        )

    @property
    def element_bytes(self) -> int:
        """Bytes of a parameter, a gradient and an activation."""
        return 2 if self.is_bf16 else 4

    def describe(self) -> str:
        """Name the choice, as `2, bf16, optimizer on host`."""
        words = [str(self.stage), "bf16" if self.is_bf16 else "float32"]
        if self.offload_optimizer:
            words.append("all on host" if self.offload_parameters else "optimizer on host")
        elif self.offload_parameters:
            words.append("parameters on host")
        return ", ".join(words)


@dataclass(frozen=True)
class Memory:
    """
    Bytes on one GPU, and on its host for it.

    Attributes
    ----------
    parameters
        Those that stay, and with stage 3 those that are gathered for use.
    gradients
        As they are kept until the step.
    optimizer
        AdamW's moments and float32 master weights.
    buffers
        Of communication.
    activations
        Of one micro-batch.
    step
        Gradients in float32 for the optimizer, when the activations are gone.
    host
        In the memory of the host.
    """

    parameters: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    step: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        """The most on the GPU at once."""
        stays = self.parameters + self.gradients + self.optimizer + self.buffers
        return stays + max(self.activations, self.step)


def memory_per_gpu(parameters: ParameterCounts, settings: DeepSpeedSettings, gpus: int, activations: float) -> Memory:
    """
    Estimate the memory of one GPU.

    Parameters
    ----------
    parameters
        Of the model.
    settings
        How DeepSpeed parts them.
    gpus
        Data-parallel ranks.
    activations
        Bytes of the activations of a micro-batch.

    Notes
    -----
    As DeepSpeed 0.19.8 allocates (runtime/zero/stage_1_and_2.py, stage3.py, engine.py), with P parameters of e bytes
    on n GPUs. Its stages keep a float32 copy of their share of the weights even where these are float32.
    Docs: section "Sizing" of docs/pretraining.md.
    """
    count, size = parameters.total, settings.element_bytes
    share, weights = count / gpus, count * size
    if settings.stage == 0:
        buffers = min(count, ALLREDUCE_ELEMENTS) * size if gpus > 1 else 0
        return Memory(weights, weights, MOMENTS_BYTES * count, buffers, activations)

    kept = weights if settings.stage < 3 else share * size
    gradients = weights if settings.stage == 1 else share * size
    optimizer, step, host = share * (MASTER_BYTES + MOMENTS_BYTES), share * MASTER_BYTES, 0.0
    bucket = settings.reduce_bucket_size * size
    if settings.stage < 3:
        buffers = bucket * (2 if settings.overlap_comm else 1)
    else:
        buffers = bucket + min(settings.prefetch_bucket_size, count) * size
        if not settings.offload_optimizer:  # in float32, the step reads the gradients where they are
            step = min(share, settings.sub_group_size) * MASTER_BYTES if settings.is_bf16 else 0.0
    if settings.offload_optimizer:
        host = optimizer + step + share * size  # a copy of the share in the type of the parameters
        optimizer = step = 0.0
        gradients = gradients if settings.stage == 1 else 0.0
    if settings.offload_parameters:
        host, kept = host + kept, 0.0
    if settings.stage == 3 and (gpus > 1 or settings.offload_parameters):
        kept += min(count, max(settings.max_live_parameters, parameters.largest_module)) * size
    return Memory(kept, gradients, optimizer, buffers, activations, step, host)


def longest_cell(config: ScFusionTTTConfig, masking: MaskingConfig) -> TokenCounts:
    """Give the tokens of the longest cell that can be: of a hidden modality, every token is read."""
    return _count_tokens(config, masking, masking.hide_rna_probability > 0, masking.hide_adt_probability > 0)


def mean_cell(config: ScFusionTTTConfig, masking: MaskingConfig, cells: int) -> TokenCounts:
    """
    Give the tokens that are computed per cell, on average over micro-batches of paired cells.

    All cells of a micro-batch are filled up to the longest: where one of them has a hidden modality, all are as
    long as if they had.
    """
    hidden = (1 - (1 - p) ** cells for p in (masking.hide_rna_probability, masking.hide_adt_probability))
    return _count_tokens(config, masking, *hidden)


def _count_tokens(config: ScFusionTTTConfig, masking: MaskingConfig, hide_rna: float, hide_adt: float) -> TokenCounts:
    counts, size = [], config.ttt_mini_batch_size
    for number, ratio, hide in (
        (config.num_rna_tokens, masking.rna_ratio, hide_rna),
        (config.num_proteins, masking.adt_ratio, hide_adt),
    ):
        whole, visible = (math.ceil(n / size) * size for n in (number, number - round(ratio * number)))
        read = hide * whole + (1 - hide) * visible
        counts += [read, whole - read]
    return TokenCounts(*counts)


@dataclass(frozen=True)
class Request:
    """
    What is to be planned.

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


@dataclass(frozen=True)
class Choice:
    """One row of the plan: settings, memory at the planned micro-batch, and the largest micro-batch that fits."""

    settings: DeepSpeedSettings
    memory: Memory
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
    largest_with_checkpointing
        The largest micro-batch of the recipe's settings when activations are computed again; None if none fits.
    """

    request: Request
    parameters: ParameterCounts
    flops_forward: float
    flops_train: float
    choices: list[Choice]
    steps: int | None
    seconds: float | None
    largest_with_checkpointing: int | None

    def to_dict(self) -> dict[str, Any]:
        """Give the plan for JSON."""
        found = dataclasses.asdict(self)
        found["parameters"]["total"] = self.parameters.total
        for row, choice in zip(found["choices"], self.choices, strict=True):
            row["memory"]["total"] = choice.memory.total
        return found


def plan_run(config: ScFusionTTTConfig, masking: MaskingConfig, settings: DeepSpeedSettings, request: Request) -> Plan:
    """Size a run with its own DeepSpeed settings and with the others that there are."""
    parameters = count_parameters(config)
    limit = USABLE_SHARE * request.gpu_memory * 2**30

    def memory(choice: DeepSpeedSettings, cells: int, checkpointing: bool) -> Memory:
        tokens = longest_cell(config, masking)
        activations = activation_bytes(config, tokens, cells, checkpointing, choice.element_bytes)
        return memory_per_gpu(parameters, choice, request.gpus, activations)

    def largest(choice: DeepSpeedSettings, checkpointing: bool) -> int | None:
        sizes = request.micro_batch_sizes
        return next((n for n in sizes if memory(choice, n, checkpointing).total <= limit), None)

    choices = []
    for choice in _alternatives(settings):
        found = memory(choice, request.planned_micro_batch, request.checkpointing)
        fitting = largest(choice, request.checkpointing)
        choices.append(Choice(choice, found, found.total <= limit, fitting, choice == settings))
    tokens = mean_cell(config, masking, request.planned_micro_batch)
    per_cell, steps, seconds = train_flops(config, tokens), None, None
    if request.cells is not None:
        steps = math.ceil(request.epochs * request.cells / request.global_batch_size)
        if request.tflops is not None:
            seconds = steps * request.global_batch_size * per_cell / (request.gpus * request.tflops * 1e12)
    forward = forward_flops(config, tokens)
    return Plan(request, parameters, forward, per_cell, choices, steps, seconds, largest(settings, True))


def _alternatives(settings: DeepSpeedSettings) -> list[DeepSpeedSettings]:
    """List the stages with the precision and buckets of the settings, without and with the host, and the settings."""
    hosts = [(stage, False, False) for stage in range(int(settings.is_bf16), 4)]
    hosts += [(2, True, False), (3, True, False), (3, True, True)]
    found = [
        dataclasses.replace(settings, stage=stage, offload_optimizer=optimizer, offload_parameters=parameters)
        for stage, optimizer, parameters in hosts
    ]
    return found if settings in found else [*found, settings]
