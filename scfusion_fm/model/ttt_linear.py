"""TTT-Linear over a sequence: the dual form with a closed-form backward, a few mini-batches at a time.

Letters: B cells, L tokens, H heads, K head width, M mini-batch.

Of a long sequence only the inner gradients, what they belong to, and the fast weights at the start of every group of
mini-batches are kept for the backward pass; everything else is computed again there, while it is in the cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .ttt_linear_backward import BackwardGroup, Gradients
from .ttt_linear_groups import Kept, Options, Settings, make_groups
from .ttt_linear_lanes import runs_on_lanes, scan_lanes
from .ttt_linear_triton import TritonTTTLinear, runs_on_triton


class TTTState(NamedTuple):
    """
    Fast weights of the inner linear model: weight (B, H, K, K) and bias (B, H, 1, K).

    `at_border` tells whether the state was left at the end of a mini-batch, where a sequence can be continued.
    """

    weight: Tensor
    bias: Tensor
    at_border: bool = True


class TTTNorm(NamedTuple):
    """Gain and offset (H, 1, K) and epsilon of the LayerNorm inside the inner model."""

    weight: Tensor
    bias: Tensor
    eps: float


def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    state: TTTState,
    norm: TTTNorm,
    inner_loss: Tensor | None = None,
) -> tuple[Tensor, TTTState]:
    """
    Run TTT-Linear over a sequence.

    Parameters
    ----------
    q, k, v
        (B, H, L, K) queries, keys and values, already rotated.
    inner_lr
        (B, H, L) inner learning rate of each token, at least 0; 0 leaves the state untouched.
    token_scale
        (M,) factor of each position of a mini-batch; its length sets the mini-batch.
    state
        Fast weights before the first token.
    norm
        LayerNorm of the inner model.
    inner_loss
        (B, H, L) filled, without a gradient, with 1/2 || LN(z) - (v - k) ||^2 of each token, where z is what the
        state that entered its mini-batch made of k.

    Returns
    -------
    (B, H, L, K) outputs, and the fast weights after the last mini-batch.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620). Equal to `ttt_reference.ttt_linear_reference` in outputs and gradients.
    """
    length = q.shape[2]
    missing = -length % token_scale.shape[0]
    qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4)  # (B, L, 3, H, K)
    qkv = F.pad(qkv, (0, 0, 0, 0, 0, 0, 0, missing))
    inner_lr = F.pad(inner_lr, (0, missing)).transpose(1, 2)
    packed_loss = None if inner_loss is None else torch.empty_like(inner_lr)
    out, state = ttt_linear_packed(qkv, inner_lr, token_scale, state, norm, inner_loss=packed_loss)
    if inner_loss is not None:
        inner_loss.copy_(packed_loss[:, :length].transpose(1, 2))
    return out[:, :length].transpose(1, 2), state._replace(at_border=missing == 0)


@torch.compiler.disable  # its buffers are written in place, which inductor cannot follow; what is around it compiles
def ttt_linear_packed(
    qkv: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    state: TTTState,
    norm: TTTNorm,
    rotation: Tensor | None = None,
    inner_loss: Tensor | None = None,
    backwards: bool = False,
) -> tuple[Tensor, TTTState]:
    """
    Run TTT-Linear over whole mini-batches in the layout that a projection of the tokens has.

    Parameters
    ----------
    qkv
        (B, L, 3, H, K) queries, keys and values of each token; L is a multiple of M.
    inner_lr
        (B, L, H) inner learning rate of each token.
    token_scale, state, norm
        As for `ttt_linear`.
    rotation
        (2, M, K / 2) cosine and sine by which queries and keys are still to be rotated; None when they are.
    inner_loss
        (B, L, H) filled as by `ttt_linear`.
    backwards
        Whether tokens are read from the last to the first; only where `runs_on_lanes`.

    Returns
    -------
    (B, L, H, K) outputs, and the fast weights after the token that is read last.
    """
    assert qkv.shape[1] % token_scale.shape[0] == 0, "the last mini-batch is not whole"
    if qkv.numel() == 0:
        return qkv[:, :, 0], state
    fast = torch.cat((state.weight, state.bias), dim=2)  # (B, H, K + 1, K)
    arguments = (Options(rotation, norm.eps, inner_loss), qkv, inner_lr, token_scale, fast, norm.weight, norm.bias)
    if runs_on_lanes(qkv, token_scale):
        out, fast = scan_lanes(*arguments, backwards)
    else:
        function = TritonTTTLinear if runs_on_triton(qkv, token_scale) else _TTTLinear
        out, fast = function.apply(*arguments)
    return out, TTTState(fast[:, :, :-1], fast[:, :, -1:])


def _sum_tokens(x: Tensor) -> Tensor:
    """Sum (B, L, H, K) over cells and tokens; (H, 1, K)."""
    flat = x.flatten(0, 1).flatten(1)
    return (flat.new_ones(1, flat.shape[0]) @ flat).view(x.shape[2], 1, x.shape[3])


class _TTTLinear(torch.autograd.Function):
    """TTT-Linear on packed projections, with fast weights (B, H, K + 1, K); writes the inner loss of the options."""

    @staticmethod
    def forward(ctx, options, qkv, inner_lr, token_scale, fast, gain, offset):
        with torch.autocast(qkv.device.type, enabled=False):
            settings = Settings(options, qkv.shape, token_scale, gain, offset)
            kept = Kept.empty(settings, fast)
            work = make_groups(settings, own=settings.is_short)
            current = fast.flatten(0, 1)
            out = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
            for (start, count), group, entering in zip(settings.groups(), work, kept.starts, strict=True):
                here = kept.group(start, count)
                group.fast[0].copy_(entering.copy_(current))
                group.read(qkv, inner_lr, start)
                group.scan(here)
                group.answer(here.gradient)
                group.write(out, start)
                if settings.inner_loss is not None:
                    group.write_loss(here, start)
                current = group.fast[count]
        ctx.options, ctx.work = options._replace(inner_loss=None), work if settings.is_short else None
        ctx.save_for_backward(qkv, inner_lr, token_scale, gain, offset, *kept)
        return out, current.clone().view_as(fast)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_fast):
        qkv, inner_lr, token_scale, gain, offset, *kept = ctx.saved_tensors
        kept = Kept(*kept)
        with torch.autocast(qkv.device.type, enabled=False):
            settings = Settings(ctx.options, qkv.shape, token_scale, gain, offset)
            work = ctx.work or make_groups(settings, own=False)
            backward = {count: BackwardGroup.empty(settings, count) for _, count in settings.groups()}
            grads = Gradients.start(settings, qkv, inner_lr, d_fast)
            for (start, count), group, entering in reversed(
                list(zip(settings.groups(), work, kept.starts, strict=True))
            ):
                here = kept.group(start, count)
                z_hat = backward[count].restore_z_hat(here)
                if ctx.work is None:
                    group.fast[0].copy_(entering)
                    group.read(qkv, inner_lr, start)
                    group.restore(here, z_hat)
                    group.answer(here.gradient)
                backward[count].backward(group, here, d_out, start, grads)
            d_offset = _sum_tokens(d_out) - _sum_tokens(grads.qkv[:, :, 2])
            d_gain = sum(group.d_gain.sum((0, 2)) for group in backward.values())
            d_gain = d_gain.view(settings.batch, settings.heads, 1, settings.width).sum(0)
        return None, grads.qkv, grads.inner_lr, grads.token_scale, grads.fast.view_as(d_fast), d_gain, d_offset
