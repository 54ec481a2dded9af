"""TTT-MLP over a sequence: the dual form of a two-layer inner network.

Letters: B cells, L tokens, H heads, K head width, J inner width, M mini-batch, N mini-batches, R = B * H.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .ttt_linear import TTTNorm


class TTTMLPState(NamedTuple):
    """
    Fast weights of the inner two-layer network `gelu(x @ weight_1 + bias_1) @ weight_2 + bias_2`.

    Shapes (B, H, K, J), (B, H, 1, J), (B, H, J, K) and (B, H, 1, K); `at_border` tells whether the state was left
    at the end of a mini-batch, where a sequence can be continued.
    """

    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor
    bias_2: Tensor
    at_border: bool = True


class _MiniBatch(NamedTuple):
    """Tokens of one mini-batch: (R, M, K) queries, keys and targets, (R, 1, M) rates, (R, M, M) scores."""

    q: Tensor
    k: Tensor
    target: Tensor
    rate: Tensor
    score: Tensor


def ttt_mlp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    state: TTTMLPState,
    norm: TTTNorm,
    inner_loss: Tensor | None = None,
) -> tuple[Tensor, TTTMLPState]:
    """
    Run TTT-MLP over a sequence; arguments and results as for `ttt_linear.ttt_linear`.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620). The gradient of the inner loss is in closed form, the backward pass is left
    to autograd. Lists of mini-batches come from `unbind`: indexing the stacked tensor in the loop would make its
    backward quadratic in length. Equal to `ttt_reference.ttt_mlp_reference` in outputs and gradients.
    """
    if q.numel() == 0:
        return q, state
    batch, heads, length, _ = q.shape
    size = token_scale.shape[0]
    norm = TTTNorm(*(x.repeat(batch, 1, 1) for x in (norm.weight, norm.bias)), norm.eps)  # (R, 1, K)
    parts = [_split(x, size) for x in (q, k, v - k, inner_lr.unsqueeze(-1))]
    parts = [*parts[:3], parts[3].mT, parts[0] @ parts[1].mT + 1.0]
    fast = tuple(x.flatten(0, 1) for x in state[:4])
    triangle = torch.tril(token_scale[:, None].expand(size, size))  # (M, M)
    read, losses = [], []
    for at in zip(*(x.unbind(0) for x in parts), strict=True):
        z, loss, fast = _read_mini_batch(_MiniBatch(*at), fast, norm, triangle)
        read.append(z)
        losses.append(loss)
    z = torch.stack(read)  # (N, R, M, K)
    out = parts[0] + F.layer_norm(z, z.shape[-1:], eps=norm.eps) * norm.weight + norm.bias
    if inner_loss is not None:
        inner_loss.copy_(_join(torch.stack(losses).detach(), batch).squeeze(-1)[:, :, :length])
    fast = (x.unflatten(0, (batch, heads)) for x in fast)
    return _join(out, batch)[:, :, :length], TTTMLPState(*fast, at_border=length % size == 0)


def _read_mini_batch(
    at: _MiniBatch, fast: tuple[Tensor, ...], norm: TTTNorm, triangle: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Give what the queries read before the norm, (R, M, 1) inner losses, and the next fast weights."""
    weight_1, bias_1, weight_2, bias_2 = fast
    z_1 = torch.baddbmm(bias_1, at.k, weight_1)
    x_2, slope = _gelu_and_slope(z_1)
    gradient_2, loss = _inner_gradient(torch.baddbmm(bias_2, x_2, weight_2), at.target, norm)
    gradient_1 = torch.bmm(gradient_2, weight_2.mT) * slope
    scale = triangle * at.rate  # (R, M, M), zero above the diagonal
    z_1 = torch.baddbmm(torch.baddbmm(bias_1, at.q, weight_1), at.score * scale, gradient_1, alpha=-1)
    read = F.gelu(z_1, approximate="tanh")
    mixing = (torch.bmm(read, x_2.mT) + 1.0) * scale
    z_2 = torch.baddbmm(torch.baddbmm(bias_2, read, weight_2), mixing, gradient_2, alpha=-1)
    step = triangle[-1, -1] * at.rate  # (R, 1, M)
    fast = (
        torch.baddbmm(weight_1, at.k.mT * step, gradient_1, alpha=-1),
        torch.baddbmm(bias_1, step, gradient_1, alpha=-1),
        torch.baddbmm(weight_2, x_2.mT * step, gradient_2, alpha=-1),
        torch.baddbmm(bias_2, step, gradient_2, alpha=-1),
    )
    return z_2, loss, fast


def _inner_gradient(z: Tensor, target: Tensor, norm: TTTNorm) -> tuple[Tensor, Tensor]:
    """Give d/dz of 1/2 || LN(z) - target ||^2, and the (R, M, 1) loss without a gradient."""
    centred = z - z.mean(-1, keepdim=True)
    inverse_std = torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps)
    z_hat = centred * inverse_std
    error = z_hat * norm.weight + (norm.bias - target)
    slope = error * norm.weight
    projected = slope - slope.mean(-1, keepdim=True) - z_hat * (slope * z_hat).mean(-1, keepdim=True)
    return projected * inverse_std, 0.5 * error.detach().square().sum(-1, keepdim=True)


def _gelu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give the tanh approximation of GELU and its derivative."""
    scale, cubic = math.sqrt(2.0 / math.pi), 0.044715
    square = x.square()
    tanh = torch.tanh(scale * x * (1.0 + cubic * square))
    inner_slope = scale * (1.0 + 3.0 * cubic * square)
    half = 0.5 * (1.0 + tanh)
    return x * half, half + 0.5 * x * (1.0 - tanh.square()) * inner_slope


def _split(x: Tensor, size: int) -> Tensor:
    """Turn (B, H, L, C) into (N, R, M, C), padded with zeros at the end."""
    padded = F.pad(x, (0, 0, 0, -x.shape[2] % size))
    return padded.unflatten(2, (-1, size)).permute(2, 0, 1, 3, 4).flatten(1, 2)


def _join(x: Tensor, batch: int) -> Tensor:
    """Turn (N, R, M, C) into (B, H, L, C)."""
    return x.unflatten(1, (batch, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)
