"""
TTT-Linear on a processor where nothing is learned, by compiled loops where these can run.

Letters: B cells, L tokens, H heads, K head width, M mini-batch.
"""

from typing import Any

import torch
from torch import Tensor

from .compiled_scfusion_ttt import as_flat, load_loops, runs_compiled


def runs_on_lanes(qkv: Tensor, token_scale: Tensor) -> bool:
    """Tell whether projections (B, L, 3, H, K) go to the compiled loops; whole lanes must fit into half a head."""
    return runs_compiled(qkv) and runs_compiled(token_scale) and qkv.shape[-1] % 32 == token_scale.shape[0] % 16 == 0


def scan_lanes(
    options: Any,
    qkv: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    fast: Tensor,
    gain: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor]:
    """
    Run TTT-Linear; arguments and results as of `ttt_linear._TTTLinear`.

    `fast` may be written over.
    """
    loops = load_loops()
    batch, length, _, heads, width = qkv.shape
    size = token_scale.shape[0]
    triangle = -torch.tril(token_scale[:, None].expand(size, size))
    out, fast = qkv.new_empty(batch, length, heads, width), fast.contiguous()
    loss = qkv.new_empty(0 if options.inner_loss is None else inner_lr.shape)
    loops.scan(
        tuple(map(as_flat, (qkv, inner_lr, triangle, gain, offset, options.angles(qkv, size)))),
        tuple(map(as_flat, (out, fast, loss))),
        as_flat(qkv.new_empty(5 * size * width + size * size + size)),
        loops.Sizes(batch, length, heads, width, size),
        options.eps,
        options.direction == "reverse",
    )
    if options.inner_loss is not None:
        options.inner_loss.copy_(loss)
    return out, fast
