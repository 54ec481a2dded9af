"""What decides about the memory of a GPU in a DeepSpeed file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scfusion_fm.training.settings import is_on, offload_device, zero_stage


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
