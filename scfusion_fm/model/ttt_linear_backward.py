"""
The closed-form backward pass of TTT-Linear over a group of mini-batches.

Letters: B cells, L tokens, H heads, K head width, M mini-batch, n mini-batches of a group, R = B * H.

`ttt_linear_groups` has the equations and the names of what is in them; a gradient at x is called d_x. Whatever is
called `out` or named in a docstring as written is written in place.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .ttt_linear_groups import Group, Kept, Settings, rotate


@dataclass(eq=False)
class Gradients:
    """
    What the backward pass collects: the gradients at the inputs of `_TTTLinear`, which are written group by group.

    Attributes
    ----------
    qkv, inner_lr
        (B, L, 3, H, K) and (B, L, H), of the groups so far.
    token_scale
        (M,), the sum over the groups so far.
    fast
        (R, K + 1, K), at the fast weights that entered the last of these groups.
    """

    qkv: Tensor
    inner_lr: Tensor
    token_scale: Tensor
    fast: Tensor

    @classmethod
    def start(cls, settings: Settings, qkv: Tensor, inner_lr: Tensor, fast: Tensor) -> "Gradients":
        """Begin behind the last group, given the gradient at the last fast weights (B, H, K + 1, K)."""
        token_scale = torch.zeros_like(settings.last_step.expand(settings.size))
        return cls(torch.empty_like(qkv), torch.empty_like(inner_lr), token_scale, fast.flatten(0, 1))


class MiniBatchBackward(NamedTuple):
    """
    What `BackwardGroup.scan_backward` reads and writes of one mini-batch.

    Attributes
    ----------
    z, gradient, mean, inverse_std
        Of the keys, as the forward pass kept them.
    step_k, qk
        As in `Group`; `qk` transposed.
    z_hat
        (R, M, K) standardised rows of the keys.
    pair
        (2, R, M, K) `z_hat` and `gradient`, both divided by minus the standard deviation.
    by_slope
        (R, M, 1) mean(slope * z_hat), divided by the same.
    d_left
        (R, K + 1, K) at the fast weights after the mini-batch.
    d_gradient
        (R, M, K) by what the queries read; what the fast weights took is added.
    d_y
        (R, 2 M, K) at Q W and K W; the second half is written, through `d_z`, which is a view of it.
    d_z
        (R, M, K) written.
    d_entered
        (R, K + 1, K) at the fast weights that entered it, written.
    """

    z: Tensor
    gradient: Tensor
    mean: Tensor
    inverse_std: Tensor
    step_k: Tensor
    qk: Tensor
    z_hat: Tensor
    pair: Tensor
    by_slope: Tensor
    d_left: Tensor
    d_gradient: Tensor
    d_y: Tensor
    d_z: Tensor
    d_entered: Tensor

    def from_last(self) -> "list[MiniBatchBackward]":
        """Give the mini-batches of a group, whose records are stacked here, from the last to the first."""
        return [MiniBatchBackward(*views) for views in zip(*(x.unbind(0) for x in self), strict=True)][::-1]


@dataclass(eq=False)
class BackwardGroup:
    """
    The backward pass over n mini-batches, on buffers that serve one group after the other.

    Attributes
    ----------
    settings
        What all groups share.
    d_out
        (n, R, M, K) the gradient at the outputs.
    d_fast
        (n + 1, R, K + 1, K) at the fast weights that enter each mini-batch, and at those after the last.
    d_qk, d_y
        (n, R, 2 M, K) at queries and keys, and at Q W and K W.
    d_step_k, d_gradient, d_slope
        As what they are the gradients of.
    d_mixing, d_scores
        (n * R, M, M) and (n * R, 2 M, 2 M), at the products of all rows of `qk`; 0 but for queries with keys.
    d_gain
        (n, R, M, K) at the gain, the sum over all groups that these buffers served.
    z_hat
        (n, R, M, K) standardised rows of the keys.
    pair, by_slope
        (2, n, R, M, K) and (n, R, M, 1), see `MiniBatchBackward`.
    scratch, products
        (n, R, M, K) and (2, R, M, K) of what is needed for a moment.
    zero
        (n, R, M, 1) the mean of rows that are centred.
    """

    settings: Settings
    d_out: Tensor
    d_fast: Tensor
    d_qk: Tensor
    d_y: Tensor
    d_step_k: Tensor
    d_gradient: Tensor
    d_slope: Tensor
    d_mixing: Tensor
    d_scores: Tensor
    d_gain: Tensor
    z_hat: Tensor
    pair: Tensor
    by_slope: Tensor
    scratch: Tensor
    products: Tensor
    zero: Tensor

    @classmethod
    def empty(cls, settings: Settings, count: int) -> "BackwardGroup":
        """Make room for `count` mini-batches."""
        rows, size, width = settings.rows, settings.size, settings.width
        new = settings.gain.new_empty
        d_qk, d_y = new(2, count, rows, 2 * size, width).unbind(0)
        d_out, d_gradient, d_slope, z_hat, scratch = new(5, count, rows, size, width).unbind(0)
        by_slope, zero = new(2, count, rows, size, 1).zero_().unbind(0)
        return cls(
            settings,
            d_out=d_out,
            d_fast=new(count + 1, rows, width + 1, width),
            d_qk=d_qk,
            d_y=d_y,
            d_step_k=new(count, rows, size, width + 1),
            d_gradient=d_gradient,
            d_slope=d_slope,
            d_mixing=new(count * rows, size, size),
            d_scores=new(count * rows, 2 * size, 2 * size).zero_(),
            d_gain=torch.zeros_like(scratch),
            z_hat=z_hat,
            pair=new(2, count, rows, size, width),
            by_slope=by_slope,
            scratch=scratch,
            products=new(2, rows, size, width),
            zero=zero,
        )

    @property
    def count(self) -> int:
        """Number of mini-batches (n)."""
        return self.d_out.shape[0]

    def restore_z_hat(self, kept: Kept) -> Tensor:
        """Write `z_hat`, the standardised rows of the keys, and give it."""
        return torch.sub(kept.z, kept.mean, out=self.z_hat).mul_(kept.inverse_std)

    def backward(self, group: Group, kept: Kept, d_out: Tensor, start: int, grads: Gradients) -> None:
        """Add to `grads`, given the gradient at the outputs and `z_hat`; `group` and `kept` stay as they were."""
        s = self.settings
        s.join(self.d_out).copy_(s.split(d_out, start, self.count).permute(1, 0, 3, 2, 4))
        self.answer_backward(group, kept)
        self.d_fast[-1].copy_(grads.fast)
        self.scan_backward(group, kept)
        grads.fast = self.d_fast[0]
        self.rates_backward(group, grads, start)
        self.projections_backward(group, grads, start)

    def answer_backward(self, group: Group, kept: Kept) -> None:
        """Go back through what the queries read: write that half of `d_y`, `d_mixing`, and its part of `d_gradient`."""
        s = self.settings
        self.d_gain.addcmul_(group.y_hat, self.d_out)
        torch.mul(self.d_out, s.gain, out=self.scratch)
        d_y = s.standardise_backward(self.scratch, group.y, self.zero, group.inverse_std)
        self.d_y[:, :, : s.size].copy_(d_y)
        d_y = d_y.flatten(0, 1)
        torch.bmm(d_y, kept.gradient.flatten(0, 1).mT, out=self.d_mixing)
        torch.bmm(group.mixing.mT, d_y, out=self.d_gradient.flatten(0, 1))

    def scan_backward(self, group: Group, kept: Kept) -> None:
        """
        Go back through the mini-batches: write all of `d_fast`, the keys' half of `d_y`, `d_slope` and `d_step_k`.

        Notes
        -----
        With P the projection in a LayerNorm's backward pass, the inner gradient is g = P(slope) / std. Let w be the
        gradient at g. The one at the slope is P(w) / std; z gets that through the slope, which is gain^2 * z_hat and
        what does not depend on z, and, through P and std, the terms with the coefficients <w, z_hat>, <w, g> and
        <slope, z_hat>.
        """
        s, d_slopes = self.settings, []
        minus_inverse_std = torch.neg(kept.inverse_std)
        torch.mul(group.slope, self.z_hat, out=self.scratch)
        torch.mul(s.row_mean(self.scratch), minus_inverse_std, out=self.by_slope)
        torch.mul(self.z_hat, minus_inverse_std, out=self.pair[0])
        torch.mul(kept.gradient, minus_inverse_std, out=self.pair[1])
        for at in self._mini_batches(group, kept).from_last():
            w = at.d_gradient.baddbmm_(at.step_k, at.d_left)
            d_slope = s.standardise_backward(w, at.z, at.mean, at.inverse_std)
            by_z_hat, by_gradient = s.row_mean(torch.mul(at.pair, w, out=self.products)).unbind(0)
            d_z = s.standardise_backward(d_slope * s.squared_gain, at.z, at.mean, at.inverse_std)
            d_z.addcmul_(d_slope, at.by_slope).addcmul_(at.gradient, by_z_hat)
            torch.addcmul(d_z, at.z_hat, by_gradient, out=at.d_z)
            torch.baddbmm(at.d_left, at.qk, at.d_y, out=at.d_entered)
            d_slopes.append(d_slope)
        torch.stack(d_slopes[::-1], out=self.d_slope)
        torch.bmm(kept.gradient.flatten(0, 1), self.d_fast[1:].flatten(0, 1).mT, out=self.d_step_k.flatten(0, 1))

    def _mini_batches(self, group: Group, kept: Kept) -> MiniBatchBackward:
        """Stack what `scan_backward` needs of each mini-batch."""
        return MiniBatchBackward(
            *kept[:4],
            step_k=group.step_k,
            qk=group.qk.mT,
            z_hat=self.z_hat,
            pair=self.pair.transpose(0, 1),
            by_slope=self.by_slope,
            d_left=self.d_fast[1:],
            d_gradient=self.d_gradient,
            d_y=self.d_y,
            d_z=self.d_y[:, :, self.settings.size :],
            d_entered=self.d_fast[:-1],
        )

    def rates_backward(self, group: Group, grads: Gradients, start: int) -> None:
        """Write `grads.inner_lr` of the group, and add to `grads.token_scale`."""
        s, rate = self.settings, group.rate.flatten(0, 1)  # (n * R, 1, M)
        d_step = (self.d_step_k * group.k).sum(-1).view_as(rate)
        d_mixing = group.score * self.d_mixing
        d_rate = (d_mixing * s.triangle).sum(1, keepdim=True).addcmul_(d_step, s.last_step)
        to = s.split(grads.inner_lr, start, self.count).permute(1, 0, 3, 2)  # (n, B, H, M)
        to.copy_(d_rate.view(to.shape))
        grads.token_scale -= d_mixing.mul_(rate).sum(0).tril_().sum(-1)
        grads.token_scale[-1] -= d_step.mul_(rate).sum()

    def projections_backward(self, group: Group, grads: Gradients, start: int) -> None:
        """Write `grads.qkv` of the group and add to `d_gain`, last of all: this overwrites `d_mixing`."""
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
