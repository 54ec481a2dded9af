"""TTT-Linear over a sequence: the dual form with a closed-form backward, a few mini-batches at a time.

Letters: B cells, L tokens, H heads, K head width, M mini-batch, n mini-batches of a group, R = B * H.

The fast weights of the inner linear model are kept as one matrix (K + 1, K) whose last row is the bias; queries and
keys carry a column of ones for it. Only the projections and the fast weights at the start of every group are kept
for the backward pass, everything else is computed again there, while it is in the cache.
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GROUP_ELEMENTS = 2**16  # of one (n, R, M, K) buffer: about what lets the buffers of a group stay in the cache
MOST_MINI_BATCHES_PER_GROUP = 16


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

    Returns
    -------
    (B, L, H, K) outputs, and the fast weights after the last token.
    """
    assert qkv.shape[1] % token_scale.shape[0] == 0, "the last mini-batch is not whole"
    fast = torch.cat((state.weight, state.bias), dim=2)  # (B, H, K + 1, K)
    out, fast = _TTTLinear.apply(
        (rotation, norm.eps, inner_loss), qkv, inner_lr, token_scale, fast, norm.weight, norm.bias
    )
    return out, TTTState(fast[:, :, :-1], fast[:, :, -1:])


class _Settings:
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
        """Divide centred rows by their standard deviation."""
        square_mean = self.row_mean(torch.mul(z, z, out=z_hat))
        torch.add(square_mean, self.eps, out=inverse_std).rsqrt_()
        torch.mul(z, inverse_std, out=z_hat)

    def standardise_backward(self, gradient: Tensor, z: Tensor, inverse_std: Tensor, zero: Tensor) -> Tensor:
        """Carry the gradient at the standardised rows back to z, of which the centred rows are given."""
        return torch.ops.aten.native_layer_norm_backward(
            gradient, z, [self.width], zero, inverse_std, None, None, [True, False, False]
        )[0]


def _mini_batches(buffers: dict[str, Tensor], count: int) -> list[SimpleNamespace]:
    """Give the views of each mini-batch once, as making a view takes as long as a small operation on it."""
    return [SimpleNamespace(**{name: x[j] for name, x in buffers.items()}) for j in range(count)]


class _Group:
    """
    The forward pass over n mini-batches, on buffers that are made once and used for one group after the other.

    The rows of `qk` are the queries of a mini-batch, then its keys; `y` is what the inner model makes of them.
    """

    def __init__(self, settings: _Settings, count: int, keep_states: bool = False):
        self.settings, self.count = settings, count
        rows, size, width = settings.rows, settings.size, settings.width
        new = settings.gain.new_empty
        self.qk, self.y = new(count, rows, 2 * size, width + 1), new(count, rows, 2 * size, width)
        self.qk[..., width] = 1.0
        (self.q, self.k), (self.y_q, self.y_k) = self.qk.split(size, 2), self.y.split(size, 2)
        self.step_k = new(count, rows, size, width + 1)
        self.shift, self.slope, self.z, self.z_out, self.z_out_hat = new(5, count, rows, size, width).unbind(0)
        self.pair = new(2, count, rows, size, width)
        self.z_hat, self.gradient = self.pair.unbind(0)
        self.step, self.inverse_std, self.inverse_std_out = new(3, count, rows, size, 1).unbind(0)
        self.zero = torch.zeros_like(self.step)
        self.rate = new(count, rows, 1, size)
        self.score, self.mixing = new(2, count * rows, size, size).unbind(0)
        fast = new(count + 1 if keep_states else 1, rows, width + 1, width)
        self.fast = fast if keep_states else fast.expand(count + 1, -1, -1, -1)
        views = {name: getattr(self, name) for name in ("qk", "y", "y_k", "z", "z_hat", "inverse_std", "zero")}
        views |= {"slope": self.slope, "gradient": self.gradient, "step_k": self.step_k.mT}
        self.mini_batches = _mini_batches(views | {"fast": self.fast, "next_fast": self.fast[1:]}, count)

    def projections(self, tokens: Tensor, start: int) -> Tensor:
        """View a group of (B, L, 3, H, K) as (n, B, H, 3, M, K)."""
        return self.settings.split(tokens, start, self.count).permute(1, 0, 4, 3, 2, 5)

    def without_ones(self) -> Tensor:
        """View queries and keys as (n, B, H, 2, M, K)."""
        s = self.settings
        return s.join(self.qk)[..., : s.width].unflatten(3, (2, s.size))

    def read(self, qkv: Tensor, inner_lr: Tensor, start: int) -> None:
        """Take in the projections of a group."""
        s, qkv, qk = self.settings, self.projections(qkv, start), self.without_ones()
        rotate(qkv[:, :, :, :2], s.rotation, out=qk)
        torch.sub(qk[:, :, :, 1], qkv[:, :, :, 2], out=s.join(self.shift))
        self.shift.add_(s.offset)
        s.join(self.rate).squeeze(3).copy_(s.split(inner_lr, start, self.count).permute(1, 0, 3, 2))
        torch.mul(self.rate.mT, s.last_step, out=self.step)
        torch.mul(self.k, self.step, out=self.step_k)

    def scan(self) -> None:
        """Take the inner gradients of each mini-batch at the state that entered it, then read with every query."""
        s = self.settings
        torch.mul(self.shift, s.gain, out=self.slope)
        for at in self.mini_batches:
            torch.bmm(at.qk, at.fast, out=at.y)
            torch.sub(at.y_k, s.row_mean(at.y)[:, s.size :], out=at.z)
            s.standardise(at.z, at.z_hat, at.inverse_std)
            at.slope.addcmul_(s.squared_gain, at.z_hat)
            at.gradient.copy_(s.standardise_backward(at.slope, at.z, at.inverse_std, at.zero))
            torch.baddbmm(at.fast, at.step_k, at.gradient, out=at.next_fast)
        torch.bmm(self.q.flatten(0, 1), self.k.flatten(0, 1).mT, out=self.score)
        torch.mul(self.score, s.triangle, out=self.mixing)
        self.mixing.mul_(self.rate.flatten(0, 1))
        z_out = self.z_out.flatten(0, 1)
        torch.baddbmm(self.y_q.flatten(0, 1), self.mixing, self.gradient.flatten(0, 1), out=z_out)
        z_out.sub_(s.row_mean(z_out))
        s.standardise(self.z_out, self.z_out_hat, self.inverse_std_out)

    def write(self, out: Tensor, start: int) -> None:
        """Write q + LN(z) of every token to (B, L, H, K)."""
        s = self.settings
        normed = torch.addcmul(s.offset, self.z_out_hat, s.gain, out=self.z_out)
        target = s.split(out, start, self.count).permute(1, 0, 3, 2, 4)
        torch.add(s.join(normed), s.join(self.q)[..., : s.width], out=target)

    def write_loss(self, start: int) -> None:
        """Write the inner loss of every token to (B, L, H)."""
        s = self.settings
        error = torch.addcmul(self.shift, self.z_hat, s.gain)
        loss = s.join(error.square_().sum(-1, keepdim=True)).squeeze(-1).mul_(0.5)
        s.split(s.inner_loss, start, self.count).permute(1, 0, 3, 2).copy_(loss)


class _Gradients:
    """What the backward pass collects: gradients at the inputs of `_TTTLinear`."""

    def __init__(self, qkv: Tensor, inner_lr: Tensor, token_scale: Tensor, fast: Tensor):
        self.qkv, self.inner_lr = torch.empty_like(qkv), torch.empty_like(inner_lr)
        self.token_scale = torch.zeros_like(token_scale)
        self.fast = fast.flatten(0, 1).clone()  # (R, K + 1, K), of the fast weights that the next group enters with


class _BackwardGroup(_Group):
    """The forward pass over n mini-batches and its closed-form backward pass; a gradient at x is called d_x."""

    def __init__(self, settings: _Settings, count: int):
        super().__init__(settings, count, keep_states=True)
        rows, size, width = settings.rows, settings.size, settings.width
        new = settings.gain.new_empty
        self.d_gain = torch.zeros_like(self.z)
        self.d_y = new(count, rows, 2 * size, width)
        self.d_y_q, self.d_y_k = self.d_y.split(size, 2)
        self.d_out, self.d_gradient, self.d_slope, self.d_step_k, self.reached, self.scratch = new(
            6, count, rows, size, width
        ).unbind(0)
        self.products, self.by_slope = new(2, rows, size, width), torch.empty_like(self.step)
        self.minus_inverse_std = torch.empty_like(self.step)
        self.d_mixing = torch.empty_like(self.mixing)
        self.d_scores = new(count * rows, 2 * size, 2 * size).zero_()
        names = ("d_y", "d_y_k", "z", "z_hat", "gradient", "inverse_std", "minus_inverse_std", "zero", "step")
        names = (*names, "d_gradient", "d_slope", "d_step_k", "reached", "scratch", "by_slope", "k")
        views = {name: getattr(self, name) for name in names}
        views |= {"pair": self.pair.transpose(0, 1), "qk": self.qk.mT}
        self.backward_mini_batches = _mini_batches(views, count)[::-1]

    def backward(self, d_out: Tensor, start: int, grads: _Gradients) -> None:
        """Add to the gradients, given those at the outputs."""
        s = self.settings
        s.join(self.d_out).copy_(s.split(d_out, start, self.count).permute(1, 0, 3, 2, 4))
        self.read_backward()
        self.scan_backward(grads.fast)
        self.rates_backward(grads, start)
        self.projections_backward(grads.qkv, start)

    def read_backward(self) -> None:
        """Go back through the outputs of the queries."""
        s = self.settings
        self.d_gain.addcmul_(self.z_out_hat, self.d_out)
        torch.mul(self.d_out, s.gain, out=self.scratch)
        d_z_out = s.standardise_backward(self.scratch, self.z_out, self.inverse_std_out, self.zero)
        self.d_y_q.copy_(d_z_out)
        d_z_out = d_z_out.flatten(0, 1)
        torch.bmm(d_z_out, self.gradient.flatten(0, 1).mT, out=self.d_mixing)
        torch.bmm(self.mixing.mT, d_z_out, out=self.d_gradient.flatten(0, 1))

    def scan_backward(self, d_fast: Tensor) -> None:
        """
        Go back through the mini-batches, and with the gradient at the fast weights.

        Notes
        -----
        With P the projection in a LayerNorm's backward pass, the inner gradient is G = P(g) / std with the slope
        g = squared_gain * z_hat + rest. Let w be the gradient at G. The one at g is P(w) / std; z gets that through g,
        and, through P and std, the terms with the coefficients <w, z_hat>, <w, G> and <g, z_hat>.
        """
        s = self.settings
        torch.neg(self.inverse_std, out=self.minus_inverse_std)
        torch.mul(self.slope, self.z_hat, out=self.scratch)
        torch.mul(s.row_mean(self.scratch), self.minus_inverse_std, out=self.by_slope)
        d_weight = d_fast[:, :-1].mT
        for at in self.backward_mini_batches:
            torch.bmm(at.gradient, d_weight, out=at.d_step_k)
            torch.bmm(at.k, d_fast, out=at.reached)
            w = at.d_gradient.addcmul_(at.reached, at.step)
            at.d_slope.copy_(s.standardise_backward(w, at.z, at.inverse_std, at.zero))
            torch.mul(at.pair, w, out=self.products)
            by_z_hat, by_gradient = s.row_mean(self.products).mul_(at.minus_inverse_std).unbind(0)
            torch.mul(at.d_slope, s.squared_gain, out=at.scratch)
            d_z = s.standardise_backward(at.scratch, at.z, at.inverse_std, at.zero)
            d_z.addcmul_(at.d_slope, at.by_slope).addcmul_(at.gradient, by_z_hat)
            torch.addcmul(d_z, at.z_hat, by_gradient, out=at.d_y_k)
            d_fast.baddbmm_(at.qk, at.d_y)

    def rates_backward(self, grads: _Gradients, start: int) -> None:
        """Add to the gradients at the inner learning rates and the scale of positions."""
        s, rate = self.settings, self.rate.flatten(0, 1)  # (n * R, 1, M)
        d_step = torch.mul(self.reached, self.gradient, out=self.scratch).sum(-1).view_as(rate)
        d_mixing = self.score.mul_(self.d_mixing)
        d_rate = (d_mixing * s.triangle).sum(1, keepdim=True).addcmul_(d_step, s.last_step)
        to = s.split(grads.inner_lr, start, self.count).permute(1, 0, 3, 2)  # (n, B, H, M)
        to.copy_(d_rate.view(to.shape))
        grads.token_scale -= d_mixing.mul_(rate).sum(0).tril_().sum(-1)
        grads.token_scale[-1] -= d_step.mul_(rate).sum()

    def projections_backward(self, grads: Tensor, start: int) -> None:
        """Write the gradients at the projections of a group to (B, L, 3, H, K)."""
        s = self.settings
        slope_by_gain = torch.addcmul(self.shift, self.z_hat, 2.0 * s.gain, out=self.scratch)
        self.d_gain.addcmul_(slope_by_gain, self.d_slope)
        d_shift = self.d_slope.mul_(s.gain)
        d_score = self.d_scores[:, : s.size, s.size :]
        torch.mul(self.d_mixing.mul_(s.triangle), self.rate.flatten(0, 1), out=d_score)
        self.d_scores[:, s.size :, : s.size] = d_score.mT
        d_qk = torch.bmm(self.d_y.flatten(0, 1), self.fast[:-1, :, :-1].flatten(0, 1).mT, out=self.y.flatten(0, 1))
        d_qk.baddbmm_(self.d_scores, self.qk[..., :-1].flatten(0, 1))
        self.y_q.add_(self.d_out)
        self.y_k.add_(d_shift).addcmul_(self.d_step_k, self.step)
        to = self.projections(grads, start)
        torch.neg(s.join(d_shift), out=to[:, :, :, 2])
        back = s.rotation if s.rotation is None else torch.stack((s.rotation[0], -s.rotation[1]))
        rotate(s.join(self.y).unflatten(3, (2, s.size)), back, out=to[:, :, :, :2])


def rotate(x: Tensor, rotation: Tensor | None, out: Tensor) -> None:
    """Write x, the halves of its last dimension rotated by (2, M, K / 2) cosine and sine, if there are any."""
    if rotation is None:
        out.copy_(x)
        return
    cos, sin = rotation
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)


def _sum_tokens(x: Tensor) -> Tensor:
    """Sum (B, L, H, K) over cells and tokens; (H, 1, K)."""
    flat = x.flatten(0, 1).flatten(1)
    return (flat.new_ones(1, flat.shape[0]) @ flat).view(x.shape[2], 1, x.shape[3])


class _TTTLinear(torch.autograd.Function):
    """
    TTT-Linear on packed projections, with fast weights (B, H, K + 1, K).

    The options are the rotation, epsilon and the buffer of the inner loss.
    """

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
                group.fast[0].copy_(entering.copy_(current))
                group.read(qkv, inner_lr, start)
                group.scan()
                group.write(out, start)
                if settings.inner_loss is not None:
                    group.write_loss(start)
                current = group.fast[count]
        ctx.options = (*options[:2], None)
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
            grads = _Gradients(qkv, inner_lr, token_scale, d_fast)
            for (start, count), entering in zip(groups[::-1], starts.unbind(0)[::-1], strict=True):
                group = work[count]
                group.fast[0].copy_(entering)
                group.read(qkv, inner_lr, start)
                group.scan()
                group.backward(d_out, start, grads)
            d_offset = _sum_tokens(d_out) - _sum_tokens(grads.qkv[:, :, 2])
            d_gain = sum(group.d_gain.sum((0, 2)) for group in work.values())
            d_gain = d_gain.view(settings.batch, settings.heads, 1, settings.width).sum(0)
        return None, grads.qkv, grads.inner_lr, grads.token_scale, grads.fast.view_as(d_fast), d_gain, d_offset
