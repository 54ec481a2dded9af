"""TTT-Linear over a sequence: the dual form with a closed-form backward, a few mini-batches at a time.

Letters: B cells, L tokens, H heads, K head width, M mini-batch, n mini-batches of a group, R = B * H.

The fast weights of the inner linear model are kept as one matrix (K + 1, K) whose last row is the bias; queries and
keys carry a column of ones for it. Only the projections and the fast weights at the start of every group are kept
for the backward pass, everything else is computed again there, while it is in the cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GROUP_ELEMENTS = 2**17  # of one (n, R, M, K) buffer: about what lets the buffers of a group stay in the cache
MOST_MINI_BATCHES_PER_GROUP = 16


class TTTState(NamedTuple):
    """Fast weights of the inner linear model: weight (B, H, K, K) and bias (B, H, 1, K)."""

    weight: Tensor
    bias: Tensor


class TTTNorm(NamedTuple):
    """Gain and offset (H, 1, K) and epsilon of the LayerNorm inside the inner model."""

    weight: Tensor
    bias: Tensor
    eps: float


def ttt_linear(
    q: Tensor, k: Tensor, v: Tensor, inner_lr: Tensor, token_scale: Tensor, state: TTTState, norm: TTTNorm
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
    out, state = ttt_linear_packed(qkv, inner_lr, token_scale, state, norm)
    return out[:, :length].transpose(1, 2), state


def ttt_linear_packed(
    qkv: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    state: TTTState,
    norm: TTTNorm,
    rotation: Tensor | None = None,
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

    Returns
    -------
    (B, L, H, K) outputs, and the fast weights after the last token.
    """
    fast = torch.cat((state.weight, state.bias), dim=2)  # (B, H, K + 1, K)
    out, fast = _TTTLinear.apply(
        (rotation, norm.eps), qkv, inner_lr, token_scale, fast, norm.weight, norm.bias
    )
    return out, TTTState(fast[:, :, :-1], fast[:, :, -1:])


class _Settings:
    """What all groups of mini-batches share."""

    def __init__(self, options: tuple, shape: torch.Size, token_scale: Tensor, gain: Tensor, offset: Tensor):
        self.rotation, self.eps = options
        self.batch, self.length, _, self.heads, self.width = shape
        self.rows, self.size = self.batch * self.heads, token_scale.shape[0]
        self.gain, self.offset = gain.repeat(self.batch, 1, 1), offset.repeat(self.batch, 1, 1)  # (R, 1, K)
        self.squared_gain, self.gain_offset = self.gain.square(), self.gain * self.offset
        self.last_scale = token_scale[-1]
        self.triangle = torch.tril(token_scale[:, None].expand(self.size, self.size))  # (M, M)
        self.average = gain.new_full((self.width,), 1.0 / self.width)

    def groups(self) -> list[tuple[int, int]]:
        """Give the first mini-batch of each group and how many it has."""
        number = self.length // self.size
        most = GROUP_ELEMENTS // (self.rows * self.size * self.width)
        most = min(max(most, 2), MOST_MINI_BATCHES_PER_GROUP)
        return [(start, min(most, number - start)) for start in range(0, number, most)]

    def split(self, tokens: Tensor, start: int, count: int) -> Tensor:
        """View mini-batches of (B, L, ...) as (B, n, M, ...)."""
        return tokens[:, start * self.size : (start + count) * self.size].unflatten(1, (count, self.size))

    def join(self, x: Tensor) -> Tensor:
        """View (n, R, M, C) as (n, B, H, M, C)."""
        return x.unflatten(1, (self.batch, self.heads))

    def row_mean(self, x: Tensor) -> Tensor:
        """Average the last dimension of a contiguous tensor: as a product, which is faster than a reduction."""
        return torch.mv(x.view(-1, self.width), self.average).view(*x.shape[:-1], 1)

    def standardise(self, z: Tensor, z_hat: Tensor, inverse_std: Tensor) -> None:
        """Centre z in place and write its standardised rows and the inverse of their standard deviations."""
        z.sub_(self.row_mean(z))
        torch.add(self.row_mean(torch.mul(z, z, out=z_hat)), self.eps, out=inverse_std).rsqrt_()
        torch.mul(z, inverse_std, out=z_hat)

    def standardise_backward(self, gradient: Tensor, z: Tensor, inverse_std: Tensor) -> Tensor:
        """Carry the gradient at the standardised rows back to z, of which the centred rows are given."""
        return torch.ops.aten.native_layer_norm_backward(
            gradient,
            z,
            [self.width],
            torch.zeros_like(inverse_std),
            inverse_std,
            None,
            None,
            [True, False, False],
        )[0]


class _Group:
    """
    The forward pass over n mini-batches, on buffers that are made once and used for one group after the other.

    All buffers are (n, R, M, ...), but for the fast weights: (n + 1, R, K + 1, K), those that enter each mini-batch
    and those that leave the last one.
    """

    def __init__(self, settings: _Settings, count: int):
        self.settings, self.count = settings, count
        tokens = (count, settings.rows, settings.size)
        width, new = settings.width, settings.gain.new_empty
        self.q, self.k, self.step_k = new(3, *tokens, width + 1).unbind(0)
        for augmented in (self.q, self.k):
            augmented[..., width] = 1.0
        self.fast = new(count + 1, settings.rows, width + 1, width)
        self.shift, self.slope = new(2, *tokens, width).unbind(0)
        self.z, self.z_out, self.z_out_hat = new(3, *tokens, width).unbind(0)
        self.pair = new(2, *tokens, width)
        self.z_hat, self.gradient = self.pair.unbind(0)
        self.rate, self.inverse_std, self.inverse_std_out = new(3, *tokens, 1).unbind(0)
        self.score, self.mixing = new(2, *tokens, settings.size).unbind(0)
        steps = (
            self.k,
            self.step_k,
            self.z,
            self.inverse_std,
            self.z_hat,
            self.slope,
            self.gradient,
            self.fast,
        )
        self.steps = list(zip(*(x.unbind(0) for x in steps), self.fast[1:].unbind(0), strict=False))

    def read(self, qkv: Tensor, inner_lr: Tensor, start: int) -> None:
        """Take in the projections of a group."""
        s, width = self.settings, self.settings.width
        q, k, v = s.split(qkv, start, self.count).permute(3, 1, 0, 4, 2, 5)  # (n, B, H, M, K) each
        rotate(q, s.rotation, out=s.join(self.q)[..., :width])
        rotate(k, s.rotation, out=s.join(self.k)[..., :width])
        torch.sub(s.join(self.k)[..., :width], v, out=s.join(self.shift))
        s.join(self.rate).copy_(s.split(inner_lr, start, self.count).permute(1, 0, 3, 2).unsqueeze(-1))
        torch.mul(self.k, self.rate * s.last_scale, out=self.step_k)

    def scan(self) -> None:
        """Take the inner gradients of each mini-batch at the state that entered it, then read with every query."""
        s = self.settings
        torch.addcmul(s.gain_offset, self.shift, s.gain, out=self.slope)  # gain * (offset - target)
        for k, step_k, z, inverse_std, z_hat, slope, gradient, fast, next_fast in self.steps:
            torch.bmm(k, fast, out=z)
            s.standardise(z, z_hat, inverse_std)
            slope.addcmul_(s.squared_gain, z_hat)
            gradient.copy_(s.standardise_backward(slope, z, inverse_std))
            torch.baddbmm(fast, step_k.mT, gradient, alpha=-1, out=next_fast)
        q, k, z_out, gradient = (x.flatten(0, 1) for x in (self.q, self.k, self.z_out, self.gradient))
        torch.bmm(q, k.mT, out=self.score.flatten(0, 1))
        torch.mul(self.score, s.triangle, out=self.mixing).mul_(self.rate.mT)
        torch.bmm(q, self.fast[:-1].flatten(0, 1), out=z_out)
        z_out.baddbmm_(self.mixing.flatten(0, 1), gradient, alpha=-1)
        s.standardise(self.z_out, self.z_out_hat, self.inverse_std_out)

    def write(self, out: Tensor, start: int) -> None:
        """Write q + LN(z) of every token to (B, L, H, K)."""
        s = self.settings
        normed = torch.addcmul(s.offset, self.z_out_hat, s.gain, out=self.z_out)
        target = s.split(out, start, self.count).permute(1, 0, 3, 2, 4)
        torch.add(s.join(normed), s.join(self.q)[..., : s.width], out=target)


class _Gradients:
    """What the backward pass collects: gradients at the inputs of `_TTTLinear`."""

    def __init__(self, settings: _Settings, qkv: Tensor, inner_lr: Tensor, token_scale: Tensor):
        self.qkv, self.inner_lr = torch.empty_like(qkv), torch.empty_like(inner_lr)
        self.token_scale = torch.zeros_like(token_scale)
        self.gain, self.offset = torch.zeros_like(settings.gain), torch.zeros_like(settings.gain)


class _BackwardGroup(_Group):
    """The forward pass over n mini-batches and its closed-form backward pass; a gradient at x is called d_x."""

    def __init__(self, settings: _Settings, count: int):
        super().__init__(settings, count)
        tokens = (count, settings.rows, settings.size)
        new = settings.gain.new_empty
        self.d_out, self.d_z_out, self.d_z, self.d_slope, self.d_gradient, self.d_next = new(
            6, *tokens, settings.width
        ).unbind(0)
        self.d_fast, self.d_mixing = torch.empty_like(self.fast), torch.empty_like(self.mixing)

    def backward(self, d_out: Tensor, d_fast: Tensor, start: int, grads: _Gradients) -> Tensor:
        """Add to the gradients, given those at the outputs and the last fast weights; give that at the first ones."""
        s = self.settings
        self.d_fast[-1].copy_(d_fast)
        s.join(self.d_out).copy_(s.split(d_out, start, self.count).permute(1, 0, 3, 2, 4))
        self.output_backward(grads)
        self.scan_backward()
        self.rates_backward(grads, start)
        self.projections_backward(grads, start)
        return self.d_fast[0]

    def output_backward(self, grads: _Gradients) -> None:
        s = self.settings
        grads.offset += self.d_out.sum((0, 2)).unsqueeze(1)
        grads.gain += self.z_out_hat.mul_(self.d_out).sum((0, 2)).unsqueeze(1)
        d_z_out_hat = torch.mul(self.d_out, s.gain, out=self.z_out_hat)
        self.d_z_out = s.standardise_backward(d_z_out_hat, self.z_out, self.inverse_std_out)
        d_z_out = self.d_z_out.flatten(0, 1)
        torch.bmm(
            d_z_out, self.gradient.flatten(0, 1).mT, out=self.d_mixing.flatten(0, 1)
        )  # with the sign turned
        torch.bmm(
            self.mixing.flatten(0, 1).mT, d_z_out, out=self.d_gradient.flatten(0, 1)
        )  # with the sign turned

    def scan_backward(self) -> None:
        """
        Go back through the mini-batches.

        Notes
        -----
        With P the projection of a LayerNorm's backward pass, G = P(g) / std, g = squared_gain * z_hat + rest, and w
        the gradient at G: the one at g is P(w) / std, and what z gets is that through g and that through P and std,
        whose terms <w, z_hat>, <w, G> and <g, z_hat> are the coefficients below.
        """
        s = self.settings
        negative = self.inverse_std.neg()
        by_slope = s.row_mean(self.slope * self.z_hat).mul_(negative)
        step = self.rate * -s.last_scale
        for j in range(self.count - 1, -1, -1):
            z, inverse_std, next_fast = self.z[j], self.inverse_std[j], self.d_fast[j + 1]
            reached = torch.bmm(self.k[j], next_fast, out=self.d_next[j])
            w = torch.mul(reached, step[j]).sub_(self.d_gradient[j])
            d_slope = s.standardise_backward(w, z, inverse_std)
            self.d_slope[j] = d_slope
            by_z_hat, by_gradient = s.row_mean(self.pair[:, j] * w).mul_(negative[j]).unbind(0)
            d_z = s.standardise_backward(d_slope * s.squared_gain, z, inverse_std)
            d_z.addcmul_(d_slope, by_slope[j]).addcmul_(self.gradient[j], by_z_hat)
            d_z.addcmul_(self.z_hat[j], by_gradient)
            self.d_z[j] = d_z
            torch.baddbmm(next_fast, self.k[j].mT, d_z, out=self.d_fast[j])
            self.d_fast[j].baddbmm_(self.q[j].mT, self.d_z_out[j])

    def rates_backward(self, grads: _Gradients, start: int) -> None:
        s = self.settings
        d_step = self.d_next.mul_(self.gradient).sum(-1, keepdim=True)  # (n, R, M, 1) with the sign turned
        d_mixing = self.score.mul_(self.d_mixing)
        d_rate = (d_mixing * s.triangle).sum(-2).unsqueeze(-1).addcmul_(d_step, s.last_scale).neg_()
        s.split(grads.inner_lr, start, self.count).permute(1, 0, 3, 2).unsqueeze(-1).copy_(s.join(d_rate))
        grads.token_scale -= d_mixing.mul_(self.rate.mT).sum((0, 1)).tril_().sum(-1)
        grads.token_scale[-1] -= d_step.mul_(self.rate).sum()

    def projections_backward(self, grads: _Gradients, start: int) -> None:
        s = self.settings
        slope_by_gain = torch.addcmul(self.shift, self.z_hat, 2.0 * s.gain, out=self.slope).add_(s.offset)
        grads.gain += slope_by_gain.mul_(self.d_slope).sum((0, 2)).unsqueeze(1)
        d_shift = self.d_slope.mul_(s.gain)
        grads.offset += d_shift.sum((0, 2)).unsqueeze(1)
        to_q, to_k, to_v = s.split(grads.qkv, start, self.count).permute(3, 1, 0, 4, 2, 5)
        torch.neg(s.join(d_shift), out=to_v)
        d_score = self.d_mixing.mul_(s.triangle).mul_(self.rate.mT).flatten(0, 1)  # with the sign turned
        weight = self.fast[:-1, :, :-1].flatten(0, 1).mT
        d_next_weight = self.d_fast[1:, :, :-1].flatten(0, 1).mT
        q, k = (x[..., :-1].flatten(0, 1) for x in (self.q, self.k))
        d_q, d_k = self.d_out.flatten(0, 1), d_shift.flatten(0, 1)
        d_q.baddbmm_(self.d_z_out.flatten(0, 1), weight).baddbmm_(d_score, k, alpha=-1)
        d_step_k = torch.bmm(self.gradient.flatten(0, 1), d_next_weight, out=self.z.flatten(0, 1))
        d_k.addcmul_(d_step_k, (self.rate * s.last_scale).flatten(0, 1), value=-1)
        d_k.baddbmm_(self.d_z.flatten(0, 1), weight).baddbmm_(d_score.mT, q, alpha=-1)
        back = s.rotation if s.rotation is None else torch.stack((s.rotation[0], -s.rotation[1]))
        rotate(s.join(self.d_out), back, out=to_q)
        rotate(s.join(d_shift), back, out=to_k)


def rotate(x: Tensor, rotation: Tensor | None, out: Tensor) -> None:
    """Write x, the halves of its last dimension rotated by (2, M, K / 2) cosine and sine, if there are any."""
    if rotation is None:
        out.copy_(x)
        return
    cos, sin = rotation
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)


class _TTTLinear(torch.autograd.Function):
    """TTT-Linear on packed projections; options are the rotation and epsilon, fast weights are (B, H, K + 1, K)."""

    @staticmethod
    def forward(ctx, options, qkv, inner_lr, token_scale, fast, gain, offset):
        with torch.autocast(qkv.device.type, enabled=False):
            settings = _Settings(options, qkv.shape, token_scale, gain, offset)
            groups = settings.groups()
            work = {count: _Group(settings, count) for count in {count for _, count in groups}}
            current = fast.flatten(0, 1)
            starts = fast.new_empty(len(groups), *current.shape)
            out = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
            for (start, count), entering in zip(groups, starts.unbind(0), strict=True):
                group = work[count]
                group.fast[0] = current
                entering.copy_(current)
                group.read(qkv, inner_lr, start)
                group.scan()
                group.write(out, start)
                current = group.fast[count]
        ctx.options = options
        ctx.save_for_backward(qkv, inner_lr, token_scale, starts, gain, offset)
        return out, current.clone().view_as(fast)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_fast):
        qkv, inner_lr, token_scale, starts, gain, offset = ctx.saved_tensors
        with torch.autocast(qkv.device.type, enabled=False):
            settings = _Settings(ctx.options, qkv.shape, token_scale, gain, offset)
            groups = settings.groups()
            work = {count: _BackwardGroup(settings, count) for count in {count for _, count in groups}}
            grads = _Gradients(settings, qkv, inner_lr, token_scale)
            current = d_fast.flatten(0, 1)
            for (start, count), entering in zip(groups[::-1], starts.unbind(0)[::-1], strict=True):
                group = work[count]
                group.fast[0] = entering
                group.read(qkv, inner_lr, start)
                group.scan()
                current = group.backward(d_out, current, start, grads)
            d_gain, d_offset = (
                x.unflatten(0, (-1, *gain.shape[:1])).sum(0) for x in (grads.gain, grads.offset)
            )
        d_fast = current.view_as(d_fast)
        return None, grads.qkv, grads.inner_lr, grads.token_scale, d_fast, d_gain, d_offset
