"""
Linear layers that run on oneDNN where nothing is learned: in float32, MKL has the speed of an older processor on some.

Letters: B cells, L tokens, D hidden_size.
"""

import platform
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"none": lambda x: x, "silu": F.silu, "gelu": partial(F.gelu, approximate="tanh")}
ON_X86 = platform.machine().lower() in ("x86_64", "amd64")


def runs_on_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a product without a gradient is handed to oneDNN: in float32, on an x86 processor."""
    return (
        ON_X86
        and torch.is_inference_mode_enabled()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        # Else it would be copied, or multiplied by a routine that is a hundred times slower.
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """Multiply tokens (B, L, D) by a weight as `torch.nn.functional.linear` does, and apply an activation to it."""
    if runs_on_onednn(x, weight):
        name = {"silu": "swish"}.get(activation, activation)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], "tanh" if name == "gelu" else "")
    return ACTIVATIONS[activation](F.linear(x, weight, bias))


class Linear(nn.Linear):
    """A linear layer; see `multiply`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, L, D)."""
        return multiply(x, self.weight, self.bias)


def gelu_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer, then GELU in its approximation by tanh: in one go where that can be."""
    if is_plain(layer) and runs_on_onednn(x, layer.weight):
        return multiply(x, layer.weight, layer.bias, "gelu")
    return ACTIVATIONS["gelu"](layer(x))


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is as it was built: no adapter is around it, and nobody waits for its call."""
    return type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks
