"""How much memory of a GPU a pretraining run takes, part by part."""

from dataclasses import dataclass

from scfusion_fm.planning.settings import DeepSpeedSettings
from scfusion_fm.planning.sizing import ParameterCounts

ALLREDUCE_ELEMENTS = 500_000_000  # what DeepSpeed joins without ZeRO, whatever its settings are
MASTER_BYTES = 4  # the optimizer works in float32
MOMENTS_BYTES = 8  # two of AdamW


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
