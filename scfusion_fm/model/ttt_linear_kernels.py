"""
The Triton kernels of TTT-Linear: a scan over mini-batches, and its closed-form backward pass.

Letters: B cells, L tokens, H heads, K head width, M mini-batch; at: which mini-batch.

One program owns one head of one cell: it goes from mini-batch to mini-batch with the fast weights, all in float32. The
fast weights (K + 1, K) have the bias as their last row. A gradient at x is called d_x, the derivation is in
`ttt_linear_backward.BackwardGroup`. No two programs write to one address, so results do not depend on their order.
"""

from typing import NamedTuple

from torch import Tensor

try:  # what a model directory imports outside of a try must be installed before transformers loads it
    import triton
    import triton.language as tl
except ImportError:
    raise

# TF32, what Triton multiplies with unless told, keeps 10 bits: too few for fast weights that add up over a sequence.
PRECISION: tl.constexpr = tl.constexpr("ieee")
MOST_PER_PRODUCT: tl.constexpr = tl.constexpr(32)


class Inputs(NamedTuple):
    """What both kernels read: all contiguous, `rotation` may be None."""

    fast: Tensor  # fast weights (B, H, K + 1, K) at the start, or (n, B, H, K + 1, K) that enter each mini-batch
    qkv: Tensor  # (B, L, 3, H, K)
    inner_lr: Tensor  # (B, L, H)
    token_scale: Tensor  # (M,)
    gain: Tensor  # (H, 1, K)
    offset: Tensor  # (H, 1, K)
    rotation: Tensor | None  # (2, M, K / 2)


class Outputs(NamedTuple):
    """What the scan writes; nothing where None."""

    last: Tensor  # (B, H, K + 1, K) fast weights at the end
    entering: Tensor  # (n, B, H, K + 1, K) fast weights that entered every `every`-th mini-batch
    tokens: Tensor | None = None  # (B, L, H, K)
    loss: Tensor | None = None  # (B, L, H)


class Gradients(NamedTuple):
    """The gradients: the first is given, the second given at the end and left at the start, the others written."""

    tokens: Tensor  # (B, L, H, K)
    fast: Tensor  # (B, H, K + 1, K)
    qkv: Tensor  # (B, L, 3, H, K)
    inner_lr: Tensor  # (B, L, H)
    token_scale: Tensor  # (B, H, M), of one cell and head
    gain: Tensor  # (B, H, K), of one cell
    offset: Tensor  # (B, H, K), of one cell


@triton.jit
def _dot(a, b):
    """
    Multiply (m, c) by (c, n), in two pieces where c is 64.

    A thread holds the rows and columns that it multiplies in registers: for c = 64 more than there are.
    """
    m: tl.constexpr = a.shape[0]
    c: tl.constexpr = a.shape[1]
    n: tl.constexpr = b.shape[1]
    if c > MOST_PER_PRODUCT:
        a_0, a_1 = tl.split(tl.permute(tl.reshape(a, (m, 2, c // 2)), (0, 2, 1)))
        b_0, b_1 = tl.split(tl.permute(tl.reshape(b, (2, c // 2, n)), (1, 2, 0)))
        product = tl.dot(a_0, b_0, input_precision=PRECISION) + tl.dot(a_1, b_1, input_precision=PRECISION)
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def _program():
    """Count heads of cells; 64 bits, as the offsets made of it are large."""
    return tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def _square(M: tl.constexpr, K: tl.constexpr):
    """Give the offsets of a contiguous (M, K)."""
    return tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]


@triton.jit
def _tokens(length, at, M: tl.constexpr):
    """Give the offsets (M,) of a mini-batch in a (B, L, H)."""
    token = tl.program_id(0).to(tl.int64) * length + at * M + tl.arange(0, M)
    return token * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def _rows(length, at, M: tl.constexpr, K: tl.constexpr):
    """Give the offsets (M, K) of a mini-batch in a (B, L, H, K)."""
    return _tokens(length, at, M)[:, None] * K + tl.arange(0, K)[None, :]


@triton.jit
def _projections(length, at, M: tl.constexpr, K: tl.constexpr):
    """Give the offsets (M, K) of the queries of a mini-batch in a (B, L, 3, H, K), and how far it is to the keys."""
    token = tl.program_id(0).to(tl.int64) * length + at * M + tl.arange(0, M)
    step = tl.num_programs(1) * K
    return (token * 3 * step + tl.program_id(1) * K)[:, None] + tl.arange(0, K)[None, :], step


@triton.jit
def _rotate(x, rotation, sign: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """Rotate the halves of each row of x (M, K), or rotate them back with the sign -1."""
    at = _square(M, K // 2)
    cos, sin = tl.load(rotation + at), sign * tl.load(rotation + M * (K // 2) + at)
    first, second = tl.split(tl.permute(tl.reshape(x, (M, 2, K // 2)), (0, 2, 1)))
    both = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(tl.permute(both, (0, 2, 1)), (M, K))


@triton.jit
def _read(inputs, length, at, M: tl.constexpr, K: tl.constexpr):
    """Load the rotated queries and keys (M, K), and offset + key - value, of a mini-batch."""
    rows, step = _projections(length, at, M, K)
    q = tl.load(inputs.qkv + rows)
    k = tl.load(inputs.qkv + rows + step)
    if inputs.rotation is not None:
        q = _rotate(q, inputs.rotation, 1, M, K)
        k = _rotate(k, inputs.rotation, 1, M, K)
    offset = tl.load(inputs.offset + tl.program_id(1) * K + tl.arange(0, K))
    return q, k, offset[None, :] + k - tl.load(inputs.qkv + rows + 2 * step)


@triton.jit
def _standardise(z, eps, K: tl.constexpr):
    """Bring the rows of z to mean 0 and variance 1; give them and what they were multiplied by."""
    z -= (tl.sum(z, 1) / K)[:, None]
    inverse_std = tl.rsqrt(tl.sum(z * z, 1) / K + eps)
    return z * inverse_std[:, None], inverse_std[:, None]


@triton.jit
def _standardise_backward(gradient, z_hat, inverse_std, K: tl.constexpr):
    """Carry the gradient at the standardised rows back."""
    mean = tl.sum(gradient, 1) / K
    along = tl.sum(gradient * z_hat, 1) / K
    return (gradient - mean[:, None] - z_hat * along[:, None]) * inverse_std


@triton.jit
def _inner_gradient(k, shift, gain, fast, eps, K: tl.constexpr):
    """Give the gradient of the inner loss at what the fast weights make of the keys, and what it was made of."""
    weight, bias = fast
    z_hat, inverse_std = _standardise(_dot(k, weight) + bias[None, :], eps, K)
    slope = gain * (shift + gain * z_hat)
    return _standardise_backward(slope, z_hat, inverse_std, K), slope, z_hat, inverse_std


@triton.jit
def _mixing(q, k, rate, scale, M: tl.constexpr):
    """Give how much query i takes of the inner gradient of key j (M, M), and the two factors of it."""
    score = _dot(q, tl.trans(k)) + 1.0  # the bias is a column of ones at the keys
    at = tl.arange(0, M)
    triangle = tl.where(at[:, None] >= at[None, :], -scale[:, None], 0.0)
    return score * triangle * rate[None, :], score, triangle


@triton.jit
def _load_fast(fast, K: tl.constexpr):
    """Load the fast weights (K, K) and (K,)."""
    return tl.load(fast + _square(K, K)), tl.load(fast + K * K + tl.arange(0, K))


@triton.jit
def _store_fast(to, fast, K: tl.constexpr):
    """Store the fast weights."""
    weight, bias = fast
    tl.store(to + _square(K, K), weight)
    tl.store(to + K * K + tl.arange(0, K), bias)


@triton.jit(do_not_specialize=["length", "count", "every"])
def scan_kernel(inputs, outputs, length, count, every, eps, M: tl.constexpr, K: tl.constexpr):
    """
    Run `count` mini-batches and keep the fast weights that enter every `every`-th.

    The grid is (B, H); `length` is the number of tokens between two cells in the tensors, which need not start at the
    first mini-batch.
    """
    programs = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    weight, bias = _load_fast(inputs.fast + _program() * (K + 1) * K, K)
    gain = tl.load(inputs.gain + tl.program_id(1) * K + tl.arange(0, K))[None, :]
    offset = tl.load(inputs.offset + tl.program_id(1) * K + tl.arange(0, K))[None, :]
    scale = tl.load(inputs.token_scale + tl.arange(0, M))
    last_scale = tl.load(inputs.token_scale + M - 1)
    for at in range(count):
        if at % every == 0:
            _store_fast(outputs.entering + (at // every * programs + _program()) * (K + 1) * K, (weight, bias), K)
        q, k, shift = _read(inputs, length, at, M, K)
        rate = tl.load(inputs.inner_lr + _tokens(length, at, M))
        gradient, _, z_hat, _ = _inner_gradient(k, shift, gain, (weight, bias), eps, K)
        if outputs.tokens is not None:
            mixing, _, _ = _mixing(q, k, rate, scale, M)
            z = _dot(q, weight) + bias[None, :]
            z_out, _ = _standardise(z + _dot(mixing, gradient), eps, K)
            tl.store(outputs.tokens + _rows(length, at, M, K), q + (gain * z_out + offset))
        if outputs.loss is not None:
            error = shift + gain * z_hat
            tl.store(outputs.loss + _tokens(length, at, M), 0.5 * tl.sum(error * error, 1))
        taken = gradient * (-last_scale * rate)[:, None]
        weight += _dot(tl.trans(k), taken)
        bias += tl.sum(taken, 0)
    _store_fast(outputs.last + _program() * (K + 1) * K, (weight, bias), K)


@triton.jit
def _queries_backward(q, d_out, gradient, mixing, fast, gain, eps, K: tl.constexpr):
    """Go back through the outputs; give the gradients at what the fast weights made of q, the mixing, the gain."""
    weight, bias = fast
    z = _dot(q, weight) + bias[None, :]
    z_out, inverse_std = _standardise(z + _dot(mixing, gradient), eps, K)
    d_z = _standardise_backward(gain * d_out, z_out, inverse_std, K)
    d_mixing = _dot(d_z, tl.trans(gradient))
    return d_z, d_mixing, tl.sum(d_out * z_out, 0)


@triton.jit
def _inner_gradient_backward(d_gradient, gain, gradient, slope, z_hat, inverse_std, K: tl.constexpr):
    """Go back through `_inner_gradient`; give the gradients at the slope, and at what the fast weights made of k."""
    d_slope = _standardise_backward(d_gradient, z_hat, inverse_std, K)
    by_slope = tl.sum(slope * z_hat, 1) / K
    by_z_hat = tl.sum(d_gradient * z_hat, 1) / K
    by_gradient = tl.sum(d_gradient * gradient, 1) / K
    d_z = d_slope * by_slope[:, None] + gradient * by_z_hat[:, None] + z_hat * by_gradient[:, None]
    return d_slope, _standardise_backward(gain * gain * d_slope, z_hat, inverse_std, K) - d_z * inverse_std


@triton.jit
def _store_projections(to, rotation, rows, step, d_qkv, M: tl.constexpr, K: tl.constexpr):
    """Store the gradients at the queries, keys and values before their rotation."""
    d_q, d_k, d_v = d_qkv
    if rotation is not None:
        d_q = _rotate(d_q, rotation, -1, M, K)
        d_k = _rotate(d_k, rotation, -1, M, K)
    tl.store(to + rows, d_q)
    tl.store(to + rows + step, d_k)
    tl.store(to + rows + 2 * step, d_v)


@triton.jit(do_not_specialize=["length", "count"])
def backward_kernel(inputs, grads, length, count, eps, M: tl.constexpr, K: tl.constexpr):
    """Go back through `count` mini-batches, given the fast weights that entered each; the grid is that of the scan."""
    programs = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    d_weight, d_bias = _load_fast(grads.fast + _program() * (K + 1) * K, K)
    gain = tl.load(inputs.gain + tl.program_id(1) * K + tl.arange(0, K))[None, :]
    scale = tl.load(inputs.token_scale + tl.arange(0, M))
    last_scale = tl.load(inputs.token_scale + M - 1)
    d_gain, d_offset = tl.zeros((K,), tl.float32), tl.zeros((K,), tl.float32)
    d_scale, d_last_scale = tl.zeros((M,), tl.float32), 0.0
    for back in range(count):
        at = count - 1 - back
        weight, bias = _load_fast(inputs.fast + (at * programs + _program()) * (K + 1) * K, K)
        q, k, shift = _read(inputs, length, at, M, K)
        rate = tl.load(inputs.inner_lr + _tokens(length, at, M))
        d_out = tl.load(grads.tokens + _rows(length, at, M, K))
        gradient, slope, z_hat, inverse_std = _inner_gradient(k, shift, gain, (weight, bias), eps, K)
        mixing, score, triangle = _mixing(q, k, rate, scale, M)
        d_z_q, d_mixing, by_gain = _queries_backward(q, d_out, gradient, mixing, (weight, bias), gain, eps, K)

        # To the inner gradient, by what the queries read of it and by the next fast weights.
        step = (-last_scale * rate)[:, None]
        reached = _dot(k, d_weight) + d_bias[None, :]
        d_gradient = _dot(tl.trans(mixing), d_z_q) + reached * step
        d_slope, d_z_k = _inner_gradient_backward(d_gradient, gain, gradient, slope, z_hat, inverse_std, K)

        d_step = tl.sum(reached * gradient, 1)
        by_step = score * d_mixing
        d_rate = tl.sum(by_step * triangle, 0) - last_scale * d_step
        tl.store(grads.inner_lr + _tokens(length, at, M), d_rate)
        lower = tl.arange(0, M)[:, None] >= tl.arange(0, M)[None, :]
        d_scale -= tl.sum(tl.where(lower, by_step * rate[None, :], 0.0), 1)
        d_last_scale -= tl.sum(d_step * rate, 0)
        d_shift = gain * d_slope
        d_gain += by_gain + tl.sum(d_slope * (shift + 2.0 * gain * z_hat), 0)
        d_offset += tl.sum(d_out, 0) + tl.sum(d_shift, 0)

        d_score = d_mixing * triangle * rate[None, :]
        d_q = d_out + _dot(d_z_q, tl.trans(weight))
        d_q += _dot(d_score, k)
        d_k = d_shift + _dot(d_z_k, tl.trans(weight))
        d_k += _dot(tl.trans(d_score), q)
        d_k += step * _dot(gradient, tl.trans(d_weight))
        rows, part = _projections(length, at, M, K)
        _store_projections(grads.qkv, inputs.rotation, rows, part, (d_q, d_k, -d_shift), M, K)

        d_weight += _dot(tl.trans(q), d_z_q)
        d_weight += _dot(tl.trans(k), d_z_k)
        d_bias += tl.sum(d_z_q, 0) + tl.sum(d_z_k, 0)
    _store_fast(grads.fast + _program() * (K + 1) * K, (d_weight, d_bias), K)
    own = _program() * K + tl.arange(0, K)
    tl.store(grads.gain + own, d_gain)
    tl.store(grads.offset + own, d_offset)
    d_scale += tl.where(tl.arange(0, M) == M - 1, d_last_scale, 0.0)
    tl.store(grads.token_scale + _program() * M + tl.arange(0, M), d_scale)
