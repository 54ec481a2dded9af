"""
The forward pass of TTT-Linear over a group of mini-batches; `ttt_linear_backward` has the way back.

Letters: B cells, L tokens, H heads, K head width, M mini-batch, N mini-batches of a sequence, n of a group,
R = B * H.

Of one head, let W be the fast weights that enter a mini-batch, eta_j the inner learning rate of its token j, s_i the
scale of position i, and LN(z) = gain * z_hat + offset the inner LayerNorm, with z_hat = (z - mean(z)) / std(z). Then

    z_j    = k_j W                                                  what the inner model makes of a key
    loss_j = 1/2 || LN(z_j) - (v_j - k_j) ||^2                      how far that is from its target
    g_j    = d loss_j / d z_j                                       the inner gradient
    y_i    = q_i W - s_i sum_(j <= i) eta_j (q_i . k_j) g_j         what a query reads, its own token included
    out_i  = q_i + LN(y_i)
    W'     = W - s_M sum_j eta_j k_j^T g_j                          the fast weights that enter the next mini-batch

W (K + 1, K) has the bias of the inner model as its last row, for which queries and keys carry a one at their end. As
matrices of a mini-batch, with `triangle` the lower triangle of -s, `step` = -s_M eta and G the rows g_j:

    Y  = Q W + (Q K^T * triangle * eta) G                           `score` = Q K^T, `mixing` = the bracket
    W' = W + (step * K)^T G

and, as LN has a simple derivative, with `shift` = offset + k - v and `slope` = d loss / d z_hat = gain * shift +
gain^2 * z_hat,

    g  = (slope - mean(slope) - z_hat * mean(slope * z_hat)) / std(z)

A group is what fits the cache. Whatever is called `out` or named in a docstring as written is written in place.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

GROUP_ELEMENTS = 2**16  # of one (n, R, M, K) buffer: about what lets the buffers of a group stay in the cache
MOST_MINI_BATCHES_PER_GROUP = 16
KEPT_ELEMENTS = 2**18  # of the queries of a short sequence


class Options(NamedTuple):
    """
    What TTT-Linear takes besides what has a gradient.

    Attributes
    ----------
    rotation
        (2, M, K / 2) cosine and sine by which queries and keys are still to be rotated; None when they are.
    eps
        Of the inner LayerNorm.
    inner_loss
        (B, L, H) written: the inner loss of each token; None where nobody asks for it.
    direction
        In which tokens are read, as for `ttt_linear.ttt_linear_packed`.
    """

    rotation: Tensor | None
    eps: float
    inner_loss: Tensor | None
    direction: str = "forward"

    def angles(self, qkv: Tensor, size: int) -> Tensor:
        """Give the rotation (2, M, K / 2) of projections (B, L, 3, H, K), or one that changes nothing."""
        if self.rotation is not None:
            return self.rotation
        none = torch.zeros(2, size, qkv.shape[-1] // 2, device=qkv.device)
        none[0] = 1.0
        return none


class Settings:
    """What all groups of mini-batches share."""

    def __init__(self, options: Options, shape: torch.Size, token_scale: Tensor, gain: Tensor, offset: Tensor):
        self.rotation, self.eps, self.inner_loss, direction = options
        assert direction == "forward", "tokens come in the order of reading"
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
        """Divide centred rows z by their standard deviation; `z_hat` and `inverse_std` are written."""
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


@dataclass(eq=False)
class Group:
    """
    The forward pass over n mini-batches, on buffers that serve one group after the other or are kept for backward.

    Attributes
    ----------
    settings
        What all groups share.
    qk
        (n, R, 2 M, K + 1) the queries of a mini-batch, then its keys; each with a one for the bias.
    rate
        (n, R, 1, M) inner learning rates eta.
    step, step_k
        (n, R, M, 1) step of each key, and (n, R, M, K + 1) that times the key.
    shift, slope
        (n, R, M, K) offset + k - v, and the gradient of the inner loss at z_hat.
    fast
        (n + 1, R, K + 1, K) fast weights that enter each mini-batch, and those after the last.
    score, mixing
        (n * R, M, M) products of queries and keys, and how much a query takes of each inner gradient.
    y, y_hat, inverse_std
        (n, R, M, K) what the queries read, centred, and standardised; (n, R, M, 1) by which factor.
    """

    settings: Settings
    qk: Tensor
    rate: Tensor
    step: Tensor
    step_k: Tensor
    shift: Tensor
    slope: Tensor
    fast: Tensor
    score: Tensor
    mixing: Tensor
    y: Tensor
    y_hat: Tensor
    inverse_std: Tensor

    @classmethod
    def empty(cls, settings: Settings, count: int) -> "Group":
        """Make room for `count` mini-batches."""
        rows, size, width = settings.rows, settings.size, settings.width
        new = settings.gain.new_empty
        qk, step_k = new(count, rows, 2 * size, width + 1), new(count, rows, size, width + 1)
        qk[..., width] = 1.0
        shift, slope, y, y_hat = new(4, count, rows, size, width).unbind(0)
        step, inverse_std = new(2, count, rows, size, 1).unbind(0)
        rate = new(count, rows, 1, size)
        score, mixing = new(2, count * rows, size, size).unbind(0)
        fast = new(count + 1, rows, width + 1, width)
        return cls(settings, qk, rate, step, step_k, shift, slope, fast, score, mixing, y, y_hat, inverse_std)

    @property
    def count(self) -> int:
        """Number of mini-batches (n)."""
        return self.qk.shape[0]

    @property
    def q(self) -> Tensor:
        """The queries, (n, R, M, K + 1)."""
        return self.qk[:, :, : self.settings.size]

    @property
    def k(self) -> Tensor:
        """The keys, (n, R, M, K + 1)."""
        return self.qk[:, :, self.settings.size :]

    def read(self, qkv: Tensor, inner_lr: Tensor, start: int) -> None:
        """Write `qk`, `rate`, `step`, `step_k`, `shift`, and into `slope` the part of it without z_hat."""
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
        """Write `fast` after `fast[0]`, the other part of `slope`, and `kept`: z, inner gradients and statistics."""
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
        """Write `fast` and `slope` again from what `scan` kept; `fast[0]` is there already."""
        self.slope.addcmul_(self.settings.squared_gain, z_hat)
        views = (self.step_k.mT, kept.gradient, self.fast[:-1], self.fast[1:])
        for step_k, gradient, fast, next_fast in zip(*(x.unbind(0) for x in views), strict=True):
            torch.baddbmm(fast, step_k, gradient, out=next_fast)

    def answer(self, gradient: Tensor) -> None:
        """Write what every query reads, at the state that its token has left: all from `score` to `inverse_std`."""
        s = self.settings
        y = self.y.flatten(0, 1)
        torch.bmm(self.q.flatten(0, 1), self.fast[:-1].flatten(0, 1), out=y)
        torch.bmm(self.q.flatten(0, 1), self.k.flatten(0, 1).mT, out=self.score)
        torch.mul(self.score, s.triangle, out=self.mixing)
        self.mixing.mul_(self.rate.flatten(0, 1))
        y.baddbmm_(self.mixing, gradient.flatten(0, 1))
        y.sub_(s.row_mean(y))
        s.standardise(self.y, self.y_hat, self.inverse_std)

    def write(self, out: Tensor, start: int) -> None:
        """Write q + LN(y) of every token into `out` (B, L, H, K)."""
        s = self.settings
        normed = torch.addcmul(s.offset, self.y_hat, s.gain)
        target = s.split(out, start, self.count).permute(1, 0, 3, 2, 4)
        torch.add(s.join(normed), s.join(self.q)[..., : s.width], out=target)

    def write_loss(self, kept: Kept, start: int) -> None:
        """Write the inner loss of every token into that of the options."""
        s = self.settings
        error = torch.addcmul(self.shift, kept.z.sub(kept.mean).mul_(kept.inverse_std), s.gain)
        loss = s.join(error.square_().sum(-1, keepdim=True)).squeeze(-1).mul_(0.5)
        s.split(s.inner_loss, start, self.count).permute(1, 0, 3, 2).copy_(loss)


def make_groups(settings: Settings, own: bool) -> list[Group]:
    """Make the buffers of every group: its own, or one for all groups of the same size."""
    counts = [count for _, count in settings.groups()]
    if own:
        return [Group.empty(settings, count) for count in counts]
    shared = {count: Group.empty(settings, count) for count in set(counts)}
    return [shared[count] for count in counts]


def rotate(x: Tensor, rotation: Tensor | None, out: Tensor) -> None:
    """Write x into `out`; the halves of its last dimension are rotated by cosine and sine (2, M, K / 2), if given."""
    if rotation is None:
        out.copy_(x)
        return
    cos, sin = rotation
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
