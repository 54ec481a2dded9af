"""
What compiled loops calculate on a processor where nothing is learned, and else torch.

Letters: B cells, L tokens, D hidden_size.
"""

import functools
import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@functools.cache
def load_loops() -> SimpleNamespace | None:
    """Import the loops when they are first needed; None without numba, or where it cannot keep what it compiled."""
    try:
        import numba

        from .row_loops_scfusion_ttt import divide_by_root, standardise_and_gate
        from .ttt_linear_loops import Sizes, scan
    except (ImportError, RuntimeError):
        return None
    if numba.config.DISABLE_JIT:
        return None
    return SimpleNamespace(
        Sizes=Sizes, scan=scan, divide_by_root=divide_by_root, standardise_and_gate=standardise_and_gate
    )


def runs_compiled(x: Tensor) -> bool:
    """
    Tell whether what is calculated of a tensor goes to the compiled loops, if its shape fits.

    It does in inference mode, in float32 on a processor, with numba installed, unless the environment variable
    SCFUSION_COMPILED is 0.
    """
    return (
        torch.is_inference_mode_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and os.environ.get("SCFUSION_COMPILED") != "0"
        and load_loops() is not None
    )


def as_flat(x: Tensor) -> Any:
    """View the numbers of a tensor as a flat array, or those of a copy without gaps."""
    return x.detach().contiguous().view(-1).numpy()


def normalise(norm: nn.RMSNorm, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Apply an RMSNorm to tokens (B, L, D), and put zeros where a mask (B, L) is false, if there is one."""
    if not _runs_compiled(norm, x):
        return norm(x) if mask is None else torch.where(mask.unsqueeze(-1), norm(x), 0.0)
    mask = torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask
    out = torch.empty_like(x)
    load_loops().divide_by_root(as_flat(x), as_flat(norm.weight), as_flat(mask), norm.eps, as_flat(out))
    return out


def normalise_and_gate(norm: nn.LayerNorm, x: Tensor, gate: Tensor | None) -> Tensor:
    """Apply a LayerNorm to tokens (B, L, D), times a gate (B, L, D) if there is one; x may be written over."""
    if gate is None:
        return norm(x)
    if not _runs_compiled(norm, x, gate):
        return norm(x) * gate
    weight, bias = as_flat(norm.weight), as_flat(norm.bias)
    load_loops().standardise_and_gate(as_flat(x), weight, bias, as_flat(gate), norm.eps)
    return x


def _runs_compiled(norm: nn.Module, *tokens: Tensor) -> bool:
    fits = all(x.is_contiguous() and x.shape[-1] % 16 == 0 and runs_compiled(x) for x in (*tokens, norm.weight))
    return fits and type(norm) in (nn.RMSNorm, nn.LayerNorm) and not norm._forward_hooks and not norm._forward_pre_hooks
