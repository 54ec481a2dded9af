"""How much a GPU sends to others in a step of pretraining."""

from dataclasses import dataclass

from scfusion_fm.planning.settings import DeepSpeedSettings
from scfusion_fm.planning.sizing import ParameterCounts


@dataclass(frozen=True)
class Communication:
    """
    Bytes that a GPU sends in one optimizer step; it receives as many.

    Attributes
    ----------
    gradients
        To add gradients up.
    weights
        To give each other the weights that each has updated, or holds.
    """

    gradients: float
    weights: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.gradients + self.weights


def communication_per_gpu(
    parameters: ParameterCounts, settings: DeepSpeedSettings, gpus: int, accumulation_steps: int
) -> Communication:
    """
    Estimate what one GPU sends in an optimizer step.

    Parameters
    ----------
    parameters
        Of the model.
    settings
        How DeepSpeed parts them.
    gpus
        Data-parallel ranks.
    accumulation_steps
        Micro-batches per step.

    Notes
    -----
    As DeepSpeed 0.19.8 calls collectives, with the volume of a ring: on n GPUs, to add up P values of e bytes
    (all-reduce) sends 2 e P (n - 1) / n, to give each its share of them (reduce-scatter) or to collect shares
    (all-gather) half of that. Stages 1 and 2 add up whole buckets, and each GPU keeps its share; stage 2 does so for
    every micro-batch. Stage 3 collects the weights of every micro-batch for the forward and again for the backward
    pass: once, if they are all kept in between (`stage3_max_live_parameters`, `stage3_max_reuse_distance`), which is
    not counted on here.

    `benchmarks/communication.py` counts what ranks send; docs/pretraining_nodes.md has the comparison.
    """
    share = parameters.total * settings.element_bytes * (gpus - 1) / gpus
    if settings.stage == 0:
        return Communication(2 * share, 0.0)
    if settings.stage == 3:
        return Communication(share * accumulation_steps, 2 * share * accumulation_steps)
    return Communication(2 * share * (accumulation_steps if settings.stage == 2 else 1), share)
