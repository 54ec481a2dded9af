"""Test-Time-Training layers: a sequence layer whose hidden state is a small model that learns while it reads.

Letters: B cells, L tokens, D hidden_size, H heads, K head width, M mini-batch, N mini-batches.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_scfusion_ttt import ScFusionTTTConfig


class TTTState(NamedTuple):
    """Fast weights of the inner linear model: weight (B, H, K, K) and bias (B, H, 1, K)."""

    weight: Tensor
    bias: Tensor


class TTTNorm(NamedTuple):
    """Gain and offset (H, 1, K) and epsilon of the LayerNorm inside the inner model."""

    weight: Tensor
    bias: Tensor
    eps: float


def _standardise(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    centred = z - z.mean(-1, keepdim=True)
    inverse_std = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * inverse_std, inverse_std


def _inner_gradient(z: Tensor, shifted_target: Tensor, squared_gain: Tensor, eps: float) -> Tensor:
    """Give d/dz of 1/2 || LN(z) - target ||^2 in closed form; shifted_target is gain * (offset - target)."""
    z_hat, inverse_std = _standardise(z, eps)
    slope = torch.addcmul(shifted_target, squared_gain, z_hat)
    projected = slope - slope.mean(-1, keepdim=True) - z_hat * (slope * z_hat).mean(-1, keepdim=True)
    return projected * inverse_std


def _to_mini_batches(x: Tensor, size: int) -> Tensor:
    """Turn (B, H, L, C) into (N, B * H, M, C), padded with zeros at the end."""
    missing = -x.shape[2] % size
    padded = F.pad(x, (0, 0, 0, missing))
    batches = padded.unflatten(2, (-1, size))  # (B, H, N, M, C)
    return batches.permute(2, 0, 1, 3, 4).flatten(1, 2)


def ttt_linear(
    q: Tensor, k: Tensor, v: Tensor, inner_lr: Tensor, token_scale: Tensor, state: TTTState, norm: TTTNorm
) -> tuple[Tensor, TTTState]:
    """
    Run TTT-Linear over a sequence in its dual form: one triangular product per mini-batch.

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

    Returns
    -------
    (B, H, L, K) outputs, and the fast weights after the last mini-batch.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620). Equal to `ttt_reference.ttt_linear_reference` in outputs and gradients.
    Lists of mini-batches come from `unbind`: indexing the stacked tensor in the loop would make its backward
    quadratic in length.
    """
    batch, heads, length, width = q.shape
    size = token_scale.shape[0]
    gain, offset = (p.repeat(batch, 1, 1) for p in (norm.weight, norm.bias))  # (B * H, 1, K)
    q_, k_, v_ = (_to_mini_batches(x, size) for x in (q, k, v))  # (N, B * H, M, K)
    lr = _to_mini_batches(inner_lr.unsqueeze(-1), size)  # (N, B * H, M, 1)
    shifted_target = gain * (offset - (v_ - k_))
    mixing = torch.tril(q_ @ k_.mT + 1.0) * (token_scale[:, None] * lr.mT)  # (N, B * H, M, M)
    step_k, step = (token_scale[-1] * lr * k_).mT, (token_scale[-1] * lr).mT
    weight, bias = state.weight.flatten(0, 1), state.bias.flatten(0, 1)
    outputs = []
    for q_n, k_n, target_n, mixing_n, step_k_n, step_n in zip(
        *(x.unbind(0) for x in (q_, k_, shifted_target, mixing, step_k, step)), strict=True
    ):
        gradient = _inner_gradient(torch.baddbmm(bias, k_n, weight), target_n, gain.square(), norm.eps)
        outputs.append(torch.baddbmm(torch.baddbmm(bias, q_n, weight), mixing_n, gradient, alpha=-1))
        weight = torch.baddbmm(weight, step_k_n, gradient, alpha=-1)
        bias = torch.baddbmm(bias, step_n, gradient, alpha=-1)
    z = torch.stack(outputs)  # (N, B * H, M, K)
    out = q_ + _standardise(z, norm.eps)[0] * gain + offset
    out = out.unflatten(1, (batch, heads)).permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
    shape = (batch, heads)
    return out, TTTState(weight.unflatten(0, shape), bias.unflatten(0, shape))


def rotate_within_mini_batch(x: Tensor, size: int, theta: float) -> Tensor:
    """Apply rotary position embedding to (B, H, L, K) with the position counted inside its mini-batch."""
    length, width = x.shape[-2:]
    position = torch.arange(length, device=x.device) % size
    frequency = theta ** (-torch.arange(0, width, 2, device=x.device, dtype=x.dtype) / width)
    angle = position[:, None] * frequency  # (L, K / 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class TTTLinear(nn.Module):
    """
    Mix tokens by a linear model that takes one gradient step per token while the sequence is read.

    The inner loop always runs in at least float32, whatever the activations are.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620), TTT-Linear.
    """

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__()
        self.config = config
        heads, width = config.num_attention_heads, config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.lr_proj = nn.Linear(config.hidden_size, heads)
        self.token_scale_offset = nn.Parameter(torch.zeros(config.ttt_mini_batch_size))
        self.weight = nn.Parameter(torch.zeros(heads, width, width))
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.norm_weight = nn.Parameter(torch.ones(heads, 1, width))
        self.norm_bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.post_norm = nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gate_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) if config.ttt_use_gate else None
        )
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def token_scale(self) -> Tensor:
        """Give the factor of each position in a mini-batch, max(1 / (i + 1) + learned, 0), shape (M,)."""
        offset = self.token_scale_offset
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        position = torch.arange(1, offset.shape[0] + 1, device=offset.device, dtype=offset.dtype)
        return (1.0 / position + offset).clamp_min(0.0)

    def inner_learning_rate(self, x: Tensor, mask: Tensor) -> Tensor:
        """Give the learning rate of each token, (B, H, L), 0 where the mask is false."""
        rate = torch.sigmoid(self.lr_proj(x)) * (self.config.ttt_base_lr / self.config.head_dim)
        return (rate * mask.unsqueeze(-1)).transpose(1, 2)

    def forward(
        self, x: Tensor, mask: Tensor, state: TTTState | None = None
    ) -> tuple[Tensor, TTTState]:
        """
        Read a sequence.

        Parameters
        ----------
        x
            (B, L, D) tokens.
        mask
            (B, L) true for real tokens. The others neither write to the state nor matter by their content.
        state
            Fast weights to start from; the layer's own initial ones when None.

        Returns
        -------
        (B, L, D) outputs, meaningful where the mask is true, and the fast weights at the end.
        """
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        heads, size = self.config.num_attention_heads, self.config.ttt_mini_batch_size
        qkv = self.qkv_proj(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, L, K)
        inner_lr = self.inner_learning_rate(x, mask)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if state is None:
            state = self.initial_state(x.shape[0], dtype)
        norm = TTTNorm(self.norm_weight.to(dtype), self.norm_bias.to(dtype), self.config.rms_norm_eps)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = qkv.to(dtype).unbind(0)
            q = rotate_within_mini_batch(q, size, self.config.rope_theta)
            k = rotate_within_mini_batch(k, size, self.config.rope_theta)
            out, state = ttt_linear(q, k, v, inner_lr.to(dtype), self.token_scale().to(dtype), state, norm)
        out = self.post_norm(out.transpose(1, 2).flatten(2).to(x.dtype))
        if self.gate_proj is not None:
            out = out * F.gelu(self.gate_proj(x), approximate="tanh")
        return self.o_proj(out), state

    def initial_state(self, batch: int, dtype: torch.dtype) -> TTTState:
        """Repeat the learned initial fast weights for every cell."""
        return TTTState(
            self.weight.to(dtype).expand(batch, -1, -1, -1), self.bias.to(dtype).expand(batch, -1, -1, -1)
        )
