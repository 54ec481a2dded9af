"""The passes of TTT-Linear over a group of mini-batches: forward, and its closed-form backward.

Letters: B cells, L tokens, H heads, K head width, M mini-batch, N mini-batches of a sequence, n of a group,
R = B * H.

The fast weights of the inner linear model are one matrix (K + 1, K) whose last row is the bias; queries and keys
carry a column of ones for it. A group is what fits the cache.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

GROUP_ELEMENTS = 2**16  # of one (n, R, M, K) buffer: about what lets the buffers of a group stay in the cache
MOST_MINI_BATCHES_PER_GROUP = 16
KEPT_ELEMENTS = 2**18  # of the queries of a short sequence


class Settings:
    """What all groups of mini-batches share."""

    def __init__(self, options: tuple, shape: torch.Size, token_scale: Tensor, gain: Tensor, offset: Tensor):
        self.rotation, self.eps, self.inner_loss = options
        self.batch, self.length, _, self.heads, self.width = shape
        self.rows, self.size = self.batch * self.heads, token_scale.shape[0]
        self.gain, self.offset = gain.repeat(self.batch, 1, 1), offset.repeat(self.batch, 1, 1)  # (R, 1, K)
        self.squared_gain = self.gain.square()
        # Steps are kept with their minus sign.
        self.last_step = -token_scale[-1]
        self.triangle = -torch.tril(token_scale[:, None].expand(self.size, self.size))  # (M, M)
        self.average = gain.new_full((self.width,), 1.0 / self.width)

    @property
    def is_short(self) -> bool:
        """Whether the buffers of the forward pass are kept for the backward pass, instead of being filled again."""
        return self.rows * self.length * self.width <= KEPT_ELEMENTS

    def groups(self) -> list[tuple[int, int]]:
        """Give the first mini-batch of each group and how many it has, as evenly as possible."""
        number = self.length // self.size
        most = GROUP_ELEMENTS // (self.rows * self.size * self.width)
        groups = max(round(number / min(max(most, 2), MOST_MINI_BATCHES_PER_GROUP)), 1)
        borders = [number * i // groups for i in range(groups + 1)]
        return [(start, stop - start) for start, stop in pairwise(borders)]

    def split(self, tokens: Tensor, start: int, count: int) -> Tensor:
        """View mini-batches of (B, L, ...) as (B, n, M, ...)."""
        return tokens[:, start * self.size : (start + count) * self.size].unflatten(1, (count, self.size))

    def projections(self, tokens: Tensor, start: int, count: int) -> Tensor:
        """View mini-batches of (B, L, 3, H, K) as (n, B, H, 3, M, K)."""
        return self.split(tokens, start, count).permute(1, 0, 4, 3, 2, 5)

    def join(self, x: Tensor) -> Tensor:
        """View (n, R, M, C) as (n, B, H, M, C)."""
        return x.unflatten(1, (self.batch, self.heads))

    def row_mean(self, x: Tensor) -> Tensor:
        """Average the last dimension of a contiguous tensor: as a product, which is faster than a reduction."""
        return torch.mv(x.view(-1, self.width), self.average).view(*x.shape[:-1], 1)

    def standardise(self, z: Tensor, z_hat: Tensor, inverse_std: Tensor) -> None:
        """Divide centred rows by their standard deviation."""
        square_mean = self.row_mean(torch.mul(z, z, out=z_hat))
        torch.add(square_mean, self.eps, out=inverse_std).rsqrt_()
        torch.mul(z, inverse_std, out=z_hat)

    def standardise_backward(self, gradient: Tensor, z: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
        """Carry the gradient at the standardised rows back to z."""
        return torch.ops.aten.native_layer_norm_backward(
            gradient, z, [self.width], mean, inverse_std, None, None, [True, False, False]
        )[0]


class Kept(NamedTuple):
    """
    What the forward pass of a sequence, or of a group of it, keeps for the backward pass.

    For each of N mini-batches: z (N, R, M, K) of its keys with mean and inverse standard deviation (N, R, M, 1), and
    the inner gradient at z; for each group, the fast weights (R, K + 1, K) that entered it.
    """

    z: Tensor
    gradient: Tensor
    mean: Tensor
    inverse_std: Tensor
    starts: Tensor

    @classmethod
    def empty(cls, settings: Settings, like: Tensor) -> "Kept":
        """Make room for a sequence."""
        rows, size, width = settings.rows, settings.size, settings.width
        number = settings.length // size
        z, gradient = (like.new_empty(number, rows, size, width) for _ in range(2))
        mean, inverse_std = (like.new_empty(number, rows, size, 1) for _ in range(2))
        return cls(z, gradient, mean, inverse_std, like.new_empty(len(settings.groups()), rows, width + 1, width))

    def group(self, start: int, count: int) -> "Kept":
        """View the mini-batches of a group."""
        return Kept(*(x[start : start + count] for x in self[:4]), self.starts)


class Group:
    """
    The forward pass over n mini-batches, on buffers that serve one group after the other or are kept for backward.

    The rows of `qk` are the queries of a mini-batch, then its keys; each carries a one for the bias.
    """

    def __init__(self, settings: Settings, count: int):
        self.settings, self.count = settings, count
        rows, size, width = settings.rows, settings.size, settings.width
        new = settings.gain.new_empty
        self.qk = new(count, rows, 2 * size, width + 1)
        self.qk[..., width] = 1.0
        self.q, self.k = self.qk.split(size, 2)
        self.step_k = new(count, rows, size, width + 1)
        self.shift, self.slope, self.z_out, self.z_out_hat = new(4, count, rows, size, width).unbind(0)
        self.step, self.inverse_std_out = new(2, count, rows, size, 1).unbind(0)
        self.rate = new(count, rows, 1, size)
        self.score, self.mixing = new(2, count * rows, size, size).unbind(0)
        self.fast = new(count + 1, rows, width + 1, width)

    def read(self, qkv: Tensor, inner_lr: Tensor, start: int) -> None:
        """Take in the projections of a group."""
        s = self.settings
        qkv, qk = s.projections(qkv, start, self.count), s.join(self.qk)[..., : s.width].unflatten(3, (2, s.size))
        rotate(qkv[:, :, :, :2], s.rotation, out=qk)
        torch.sub(qk[:, :, :, 1], qkv[:, :, :, 2], out=s.join(self.shift))
        self.shift.add_(s.offset)
        s.join(self.rate).squeeze(3).copy_(s.split(inner_lr, start, self.count).permute(1, 0, 3, 2))
        torch.mul(self.rate.mT, s.last_step, out=self.step)
        torch.mul(self.k, self.step, out=self.step_k)
        torch.mul(self.shift, s.gain, out=self.slope)

    def scan(self, kept: Kept) -> None:
        """Take the inner gradients of each mini-batch at the state that entered it."""
        s, gradients, means, inverse_stds = self.settings, [], [], []
        views = (self.k, kept.z, self.slope, self.step_k.mT, self.fast[:-1], self.fast[1:])
        for k, z, slope, step_k, fast, next_fast in zip(*(x.unbind(0) for x in views), strict=True):
            torch.bmm(k, fast, out=z)
            z_hat, mean, inverse_std = torch.native_layer_norm(z, [s.width], None, None, s.eps)
            slope.addcmul_(s.squared_gain, z_hat)
            gradient = s.standardise_backward(slope, z, mean, inverse_std)
            torch.baddbmm(fast, step_k, gradient, out=next_fast)
            gradients.append(gradient)
            means.append(mean)
            inverse_stds.append(inverse_std)
        for parts, to in ((gradients, kept.gradient), (means, kept.mean), (inverse_stds, kept.inverse_std)):
            torch.stack(parts, out=to)

    def restore(self, kept: Kept, z_hat: Tensor) -> None:
        """Do what `scan` did from what it kept; the fast weights at the start are there already."""
        self.slope.addcmul_(self.settings.squared_gain, z_hat)
        views = (self.step_k.mT, kept.gradient, self.fast[:-1], self.fast[1:])
        for step_k, gradient, fast, next_fast in zip(*(x.unbind(0) for x in views), strict=True):
            torch.baddbmm(fast, step_k, gradient, out=next_fast)

    def answer(self, gradient: Tensor) -> None:
        """Read the inner model with every query, at the state that its token has left."""
        s = self.settings
        z_out = self.z_out.flatten(0, 1)
        torch.bmm(self.q.flatten(0, 1), self.fast[:-1].flatten(0, 1), out=z_out)
        torch.bmm(self.q.flatten(0, 1), self.k.flatten(0, 1).mT, out=self.score)
        torch.mul(self.score, s.triangle, out=self.mixing)
        self.mixing.mul_(self.rate.flatten(0, 1))
        z_out.baddbmm_(self.mixing, gradient.flatten(0, 1))
        z_out.sub_(s.row_mean(z_out))
        s.standardise(self.z_out, self.z_out_hat, self.inverse_std_out)

    def write(self, out: Tensor, start: int) -> None:
        """Write q + LN(z) of every token to (B, L, H, K)."""
        s = self.settings
        normed = torch.addcmul(s.offset, self.z_out_hat, s.gain)
        target = s.split(out, start, self.count).permute(1, 0, 3, 2, 4)
        torch.add(s.join(normed), s.join(self.q)[..., : s.width], out=target)

    def write_loss(self, kept: Kept, start: int) -> None:
        """Write the inner loss of every token to (B, L, H)."""
        s = self.settings
        error = torch.addcmul(self.shift, kept.z.sub(kept.mean).mul_(kept.inverse_std), s.gain)
        loss = s.join(error.square_().sum(-1, keepdim=True)).squeeze(-1).mul_(0.5)
        s.split(s.inner_loss, start, self.count).permute(1, 0, 3, 2).copy_(loss)


class Gradients:
    """What the backward pass collects: gradients at the inputs of `_TTTLinear`."""

    def __init__(self, settings: Settings, qkv: Tensor, inner_lr: Tensor, fast: Tensor):
        self.qkv, self.inner_lr = torch.empty_like(qkv), torch.empty_like(inner_lr)
        self.token_scale = torch.zeros_like(settings.last_step.expand(settings.size))
        self.fast = fast.flatten(0, 1)  # (R, K + 1, K), of the fast weights that the next group enters with


class BackwardGroup:
    """The closed-form backward pass over n mini-batches; a gradient at x is called d_x."""

    def __init__(self, settings: Settings, count: int):
        self.settings, self.count = settings, count
        rows, size, width = settings.rows, settings.size, settings.width
        new = settings.gain.new_empty
        self.d_fast = new(count + 1, rows, width + 1, width)
        self.d_qk, self.d_y = new(2, count, rows, 2 * size, width).unbind(0)
        self.d_step_k = new(count, rows, size, width + 1)
        self.pair = new(2, count, rows, size, width)
        self.d_out, self.d_gradient, self.d_slope, self.z_hat, self.scratch = new(5, count, rows, size, width).unbind(0)
        self.products, self.d_gain = new(2, rows, size, width), torch.zeros_like(self.scratch)
        self.by_slope, self.zero = new(2, count, rows, size, 1).zero_().unbind(0)
        self.d_mixing = new(count * rows, size, size)
        self.d_scores = new(count * rows, 2 * size, 2 * size).zero_()

    def restore_z_hat(self, kept: Kept) -> Tensor:
        """Give the standardised rows of the keys."""
        return torch.sub(kept.z, kept.mean, out=self.z_hat).mul_(kept.inverse_std)

    def backward(self, group: Group, kept: Kept, d_out: Tensor, start: int, grads: Gradients) -> None:
        """Add to the gradients, given those at the outputs; `group` stays as it was, `z_hat` is restored."""
        s = self.settings
        s.join(self.d_out).copy_(s.split(d_out, start, self.count).permute(1, 0, 3, 2, 4))
        self.answer_backward(group, kept, grads)
        self.d_fast[-1].copy_(grads.fast)
        self.scan_backward(group, kept)
        grads.fast = self.d_fast[0]
        self.rates_backward(group, grads, start)
        self.projections_backward(group, grads, start)

    def answer_backward(self, group: Group, kept: Kept, grads: Gradients) -> None:
        """Go back through the outputs of the queries."""
        s = self.settings
        self.d_gain.addcmul_(group.z_out_hat, self.d_out)
        torch.mul(self.d_out, s.gain, out=self.scratch)
        d_z_out = s.standardise_backward(self.scratch, group.z_out, self.zero, group.inverse_std_out)
        self.d_y[:, :, : s.size].copy_(d_z_out)
        d_z_out = d_z_out.flatten(0, 1)
        torch.bmm(d_z_out, kept.gradient.flatten(0, 1).mT, out=self.d_mixing)
        torch.bmm(group.mixing.mT, d_z_out, out=self.d_gradient.flatten(0, 1))

    def scan_backward(self, group: Group, kept: Kept) -> None:
        """
        Go back through the mini-batches, and with the gradient at the fast weights.

        Notes
        -----
        With P the projection in a LayerNorm's backward pass, the inner gradient is G = P(g) / std with the slope
        g = squared_gain * z_hat + rest. Let w be the gradient at G. The one at g is P(w) / std; z gets that through g,
        and, through P and std, the terms with the coefficients <w, z_hat>, <w, G> and <g, z_hat>.
        """
        s, d_slopes = self.settings, []
        minus_inverse_std = torch.neg(kept.inverse_std)
        torch.mul(group.slope, self.z_hat, out=self.scratch)
        torch.mul(s.row_mean(self.scratch), minus_inverse_std, out=self.by_slope)
        torch.mul(self.z_hat, minus_inverse_std, out=self.pair[0])
        torch.mul(kept.gradient, minus_inverse_std, out=self.pair[1])
        pair, d_fast, d_y_k = self.pair.transpose(0, 1), self.d_fast, self.d_y[:, :, s.size :]
        views = (*kept[:4], self.d_gradient, group.step_k, pair, self.z_hat, self.by_slope)
        views = (*views, d_y_k, group.qk.mT, self.d_y, d_fast[1:], d_fast[:-1])
        for (
            z,
            gradient,
            mean,
            inverse_std,
            w,
            step_k,
            scaled,
            z_hat,
            by_slope,
            d_z_k,
            qk,
            d_y,
            d_left,
            d_entered,
        ) in reversed(list(zip(*(x.unbind(0) for x in views), strict=True))):
            w.baddbmm_(step_k, d_left)
            d_slope = s.standardise_backward(w, z, mean, inverse_std)
            by_z_hat, by_gradient = s.row_mean(torch.mul(scaled, w, out=self.products)).unbind(0)
            d_z = s.standardise_backward(d_slope * s.squared_gain, z, mean, inverse_std)
            d_z.addcmul_(d_slope, by_slope).addcmul_(gradient, by_z_hat)
            torch.addcmul(d_z, z_hat, by_gradient, out=d_z_k)
            torch.baddbmm(d_left, qk, d_y, out=d_entered)
            d_slopes.append(d_slope)
        torch.stack(d_slopes[::-1], out=self.d_slope)
        torch.bmm(kept.gradient.flatten(0, 1), d_fast[1:].flatten(0, 1).mT, out=self.d_step_k.flatten(0, 1))

    def rates_backward(self, group: Group, grads: Gradients, start: int) -> None:
        """Add to the gradients at the inner learning rates and the scale of positions."""
        s, rate = self.settings, group.rate.flatten(0, 1)  # (n * R, 1, M)
        d_step = (self.d_step_k * group.k).sum(-1).view_as(rate)
        d_mixing = group.score * self.d_mixing
        d_rate = (d_mixing * s.triangle).sum(1, keepdim=True).addcmul_(d_step, s.last_step)
        to = s.split(grads.inner_lr, start, self.count).permute(1, 0, 3, 2)  # (n, B, H, M)
        to.copy_(d_rate.view(to.shape))
        grads.token_scale -= d_mixing.mul_(rate).sum(0).tril_().sum(-1)
        grads.token_scale[-1] -= d_step.mul_(rate).sum()

    def projections_backward(self, group: Group, grads: Gradients, start: int) -> None:
        """Write the gradients at the projections of a group."""
        s = self.settings
        slope_by_gain = torch.addcmul(group.shift, self.z_hat, 2.0 * s.gain, out=self.scratch)
        self.d_gain.addcmul_(slope_by_gain, self.d_slope)
        d_score = self.d_scores[:, : s.size, s.size :]
        torch.mul(self.d_mixing.mul_(s.triangle), group.rate.flatten(0, 1), out=d_score)
        self.d_scores[:, s.size :, : s.size] = d_score.mT
        fast = group.fast[:-1, :, :-1].flatten(0, 1)
        d_qk = torch.bmm(self.d_y.flatten(0, 1), fast.mT, out=self.d_qk.flatten(0, 1))
        d_qk.baddbmm_(self.d_scores, group.qk[..., :-1].flatten(0, 1))
        d_q, d_k = self.d_qk.split(s.size, 2)
        d_q.add_(self.d_out)
        d_k.addcmul_(self.d_slope, s.gain).addcmul_(self.d_step_k[..., :-1], group.step)
        to = s.projections(grads.qkv, start, self.count)
        torch.mul(s.join(self.d_slope), s.join(-s.gain.expand(self.count, -1, -1, -1)), out=to[:, :, :, 2])
        back = s.rotation if s.rotation is None else torch.stack((s.rotation[0], -s.rotation[1]))
        rotate(s.join(self.d_qk).unflatten(3, (2, s.size)), back, out=to[:, :, :, :2])


def make_groups(settings: Settings, own: bool) -> list[Group]:
    """Make the buffers of every group: its own, or one for all groups of the same size."""
    counts = [count for _, count in settings.groups()]
    if own:
        return [Group(settings, count) for count in counts]
    shared = {count: Group(settings, count) for count in set(counts)}
    return [shared[count] for count in counts]


def rotate(x: Tensor, rotation: Tensor | None, out: Tensor) -> None:
    """Write x, the halves of its last dimension rotated by (2, M, K / 2) cosine and sine, if there are any."""
    if rotation is None:
        out.copy_(x)
        return
    cos, sin = rotation
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
