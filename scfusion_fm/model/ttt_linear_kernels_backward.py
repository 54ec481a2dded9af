"""
The Triton kernels of the backward pass of TTT-Linear; `ttt_linear_kernels` has letters, dtypes and the forward pass.

Three kernels go back through a segment, given the fast weights that enter each of its mini-batches. What the outputs
say does not need the gradient at the fast weights: `reads_backward_kernel` goes through all mini-batches at once. Then
`scan_backward_kernel` carries this gradient from the last mini-batch to the first, and stores what arrives at each;
`projections_backward_kernel` makes the gradients at the projections of all mini-batches of it. The derivation is in
`ttt_linear_backward.BackwardGroup`.
"""

from typing import NamedTuple

from torch import Tensor

from .ttt_linear_kernels import (
    _dot,
    _dot_onto,
    _fits_ahead,
    _inner_gradient,
    _load_fast,
    _load_gain,
    _load_projections,
    _load_rates,
    _load_state,
    _load_values,
    _locate,
    _mean,
    _mixing,
    _rows,
    _square,
    _standardise,
    _standardise_backward,
    _store_fast,
    _store_state,
    _whole,
)

try:  # what a model directory imports outside of a try must be installed before transformers loads it
    import triton
    import triton.language as tl
except ImportError:
    raise


class Between(NamedTuple):
    """What the first kernel tells the others of each mini-batch of a segment."""

    q: Tensor  # (n, R, M, K) rotated queries, in their dtype
    k: Tensor  # (n, R, M, K) rotated keys, likewise
    d_z_q: Tensor  # (n, R, M, K) gradient at what the fast weights made of the queries, likewise
    d_gradient: Tensor  # (n, R, M, K) at the inner gradient, by what the queries read of it
    gradient: Tensor  # (n, R, M, K) inner gradient
    z_hat: Tensor  # (n, R, M, K) standardised rows of the keys
    inverse_std: Tensor  # (n, R, M)
    by_slope: Tensor  # (n, R, M) mean of slope * z_hat


class Gradients(NamedTuple):
    """The gradients: the first is given, the others are written."""

    out: Tensor  # (W * B, L, H, K)
    qkv: Tensor  # (W * B, L, 3, H, K)
    inner_lr: Tensor  # (W * B, L, H)
    sums: Tensor  # (N, R, 4 K + M) at gain and offset, by queries and by keys, and at the scale, of one mini-batch


@triton.jit
def _own_rows(at, M: tl.constexpr, K: tl.constexpr):
    """Give the offset of a mini-batch in a (n, R, M, K), and those behind it."""
    row = at * tl.num_programs(0).to(tl.int64) + tl.program_id(0)
    return row * (M * K), _square(M, K)


@triton.jit
def _own_sums(sums, place, at, M: tl.constexpr, K: tl.constexpr):
    """Find the place of the sums of a mini-batch."""
    row = (place.first + at) * tl.num_programs(0).to(tl.int64) + tl.program_id(0)
    return sums + row * (4 * K + M)


@triton.jit
def reads_backward_kernel(inputs, states, between, grads, eps, place, M: tl.constexpr, K: tl.constexpr):
    """Go back through what the queries of each mini-batch read; the grid is (R, n)."""
    at, place = tl.program_id(1), _whole(place)
    weight, bias = _load_state(states, at, K)
    gain = _load_gain(inputs, place, K)
    q, k, shift, rate = _load_projections(inputs, place, at, M, K)
    head, _, start, token = _locate(place, at, M)
    base, rows = _rows(place.heads, head, start, token, K)
    d_out = tl.load(grads.out + base + rows).to(tl.float32)
    gradient, slope, z_hat, inverse_std = _inner_gradient(_dot(k, weight, inputs.qkv) + bias, shift, gain, eps, K, 1)
    base, rows = _own_rows(at, M, K)
    tl.store(between.q + base + rows, q.to(between.q.dtype.element_ty))
    tl.store(between.k + base + rows, k.to(between.k.dtype.element_ty))
    tl.store(between.gradient + base + rows, gradient)
    tl.store(between.z_hat + base + rows, z_hat)
    own = base // K + tl.arange(0, M)
    tl.store(between.inverse_std + own, tl.sum(inverse_std, 1))
    tl.store(between.by_slope + own, tl.sum(slope * z_hat, 1) / K)

    mixing, _, _ = _mixing(q, k, rate, inputs.token_scale, inputs.qkv, M)
    z = _dot_onto(_dot(q, weight, inputs.qkv), mixing, gradient, inputs.qkv) + bias
    z_out, inverse_std_out = _standardise(z, eps, K, 1)
    d_z = _standardise_backward(gain * d_out, z_out, inverse_std_out, K, 1)
    tl.store(between.d_z_q + base + rows, d_z.to(between.d_z_q.dtype.element_ty))
    tl.store(between.d_gradient + base + rows, _dot(tl.trans(mixing), d_z, inputs.qkv))
    sums = _own_sums(grads.sums, place, at, M, K)
    tl.store(sums + tl.arange(0, K), tl.sum(d_out * z_out, 0))
    tl.store(sums + K + tl.arange(0, K), tl.sum(d_out, 0))


@triton.jit
def _inner_gradient_backward(d_gradient, gain, made, K: tl.constexpr, axis: tl.constexpr):
    """Go back through `_inner_gradient`; give the gradients at the slope, and at what the fast weights made of k."""
    gradient, by_slope, z_hat, inverse_std = made
    d_slope = _standardise_backward(d_gradient, z_hat, inverse_std, K, axis)
    d_z = d_slope * by_slope + gradient * _mean(d_gradient * z_hat, K, axis)
    d_z += z_hat * _mean(d_gradient * gradient, K, axis)
    return d_slope, _standardise_backward(gain * gain * d_slope, z_hat, inverse_std, K, axis) - d_z * inverse_std


@triton.jit
def _load_ahead(inputs, between, place, at, M: tl.constexpr, K: tl.constexpr):
    """Load that with which a mini-batch begins in `scan_backward_kernel`."""
    head, start, _, token = _locate(place, at, M)
    rate = _load_rates(inputs.inner_lr, place.heads, head, start, token)
    base, rows = _own_rows(at, M, K)
    own = base // K + tl.arange(0, M)
    k, d_gradient = tl.load(between.k + base + rows), tl.load(between.d_gradient + base + rows)
    gradient, z_hat = tl.load(between.gradient + base + rows), tl.load(between.z_hat + base + rows)
    return k, d_gradient, gradient, tl.load(between.by_slope + own), z_hat, tl.load(between.inverse_std + own), rate


@triton.jit
def _load_queries(between, at, M: tl.constexpr, K: tl.constexpr):
    """Load the rotated queries of a mini-batch, and the gradient at what the fast weights made of them."""
    base, rows = _own_rows(at, M, K)
    return tl.load(between.q + base + rows), tl.load(between.d_z_q + base + rows)


@triton.jit
def scan_backward_kernel(inputs, between, scanned, place, M: tl.constexpr, K: tl.constexpr):
    """
    Carry the gradient at the fast weights from the last mini-batch of a segment to the first; the grid is (R,).

    `scanned.fast` has the one behind the segment, and gets the one in front of it; `scanned.states` get those behind
    each mini-batch. Everything is turned, as in `scan_kernel`.
    """
    place, row = _whole(place), tl.program_id(0).to(tl.int64)
    d_weight, d_bias = _load_fast(scanned.fast + row * (K + 1) * K, K)
    d_weight, gain = tl.trans(d_weight), tl.trans(_load_gain(inputs, place, K))
    last_scale = tl.load(inputs.token_scale + M - 1)
    ahead = _load_ahead(inputs, between, place, place.count - 1, M, K)
    for back in range(place.count):
        at = place.count - 1 - back
        _store_state(scanned.states, at, (tl.trans(d_weight), d_bias), K)
        if _fits_ahead(inputs.qkv, M, K):
            here = ahead
            ahead = _load_ahead(inputs, between, place, tl.maximum(at - 1, 0), M, K)
            q, d_z_q = _load_queries(between, at, M, K)
        else:
            here = _load_ahead(inputs, between, place, at, M, K)
        k, d_gradient, gradient, by_slope, z_hat, inverse_std, rate = here
        reached = _dot(d_weight, tl.trans(k), inputs.qkv) + d_bias[:, None]
        d_gradient = tl.trans(d_gradient) + reached * (-last_scale * rate)[None, :]
        made = (tl.trans(gradient), by_slope[None, :], tl.trans(z_hat), inverse_std[None, :])
        _, d_z_k = _inner_gradient_backward(d_gradient, gain, made, K, 0)
        if not _fits_ahead(inputs.qkv, M, K):
            q, d_z_q = _load_queries(between, at, M, K)
        d_weight = _dot_onto(d_weight, tl.trans(d_z_q), q, inputs.qkv)
        d_weight = _dot_onto(d_weight, d_z_k, k, inputs.qkv)
        d_bias += tl.sum(d_z_q.to(tl.float32), 0) + tl.sum(d_z_k, 1)
    _store_fast(scanned.fast + row * (K + 1) * K, (tl.trans(d_weight), d_bias), K)


@triton.jit
def _rotate_back(x, rotation, M: tl.constexpr, K: tl.constexpr):
    """Undo the rotation of (M, K)."""
    half: tl.constexpr = K // 2
    at = _square(M, half)
    cos, sin = tl.load(rotation + at), tl.load(rotation + M * half + at)
    first, second = tl.split(tl.permute(tl.reshape(x, (M, 2, half)), (0, 2, 1)))
    both = tl.join(first * cos + second * sin, second * cos - first * sin)
    return tl.reshape(tl.permute(both, (0, 2, 1)), (M, K))


@triton.jit
def _store_projection(grads, place, at, part: tl.constexpr, x, M: tl.constexpr, K: tl.constexpr):
    """Store the gradients (M, K) at the queries (part 0), keys (1) or values (2) of a mini-batch."""
    head, _, start, token = _locate(place, at, M)
    to = grads.qkv + (start * 3 + part) * place.heads * K + head * K
    rows = (token * 3 * place.heads * K)[:, None] + tl.arange(0, K)[None, :]
    tl.store(to + rows, x.to(grads.qkv.dtype.element_ty))


@triton.jit
def _inner_backward(inputs, pair, between, grads, place, at, M: tl.constexpr, K: tl.constexpr):
    """
    Go back through the inner gradient; store the gradients at values, gain and offset.

    Gives what is known so far of the gradients at keys, the gradients (M,) at the steps, and keys, inner gradients and
    rates.
    """
    like = inputs.qkv
    states, d_states = pair
    base, rows = _own_rows(at, M, K)
    head, start, _, token = _locate(place, at, M)
    gain = _load_gain(inputs, place, K)
    k = tl.load(between.k + base + rows)
    offset = tl.load(inputs.offset + head * K + tl.arange(0, K))[None, :]
    shift = offset + k - _load_values(like, place.heads, head, start, token, K)
    gradient, z_hat = tl.load(between.gradient + base + rows), tl.load(between.z_hat + base + rows)
    own = base // K + tl.arange(0, M)
    made = (gradient, tl.load(between.by_slope + own)[:, None], z_hat, tl.load(between.inverse_std + own)[:, None])

    rate = _load_rates(inputs.inner_lr, place.heads, head, start, token)
    last_scale = tl.load(inputs.token_scale + M - 1)
    step = (-last_scale * rate)[:, None]
    d_weight, d_bias = _load_state(d_states, at, K)
    reached = _dot(k, d_weight, like) + d_bias
    d_gradient = tl.load(between.d_gradient + base + rows) + reached * step
    d_slope, d_z_k = _inner_gradient_backward(d_gradient, gain, made, K, 1)
    d_shift = gain * d_slope
    _store_projection(grads, place, at, 2, -d_shift, M, K)
    sums = _own_sums(grads.sums, place, at, M, K)
    tl.store(sums + 2 * K + tl.arange(0, K), tl.sum(d_slope * (shift + 2.0 * gain * z_hat), 0))
    tl.store(sums + 3 * K + tl.arange(0, K), tl.sum(d_shift, 0))
    weight, _ = _load_state(states, at, K)
    d_weight, _ = _load_state(d_states, at, K)  # again: the registers were needed
    d_k = _dot_onto(d_shift, gradient * step, tl.trans(d_weight), like)
    d_k = _dot_onto(d_k, d_z_k, tl.trans(weight), like)
    return d_k, tl.sum(reached * gradient, 1), k, gradient, rate


@triton.jit
def projections_backward_kernel(inputs, pair, between, grads, place, M: tl.constexpr, K: tl.constexpr):
    """
    Make the gradients at the projections of each mini-batch; the grid is (R, n).

    `pair` are the states that enter each mini-batch and the gradients at those behind it. What is needed no more is
    let go, as registers are few.
    """
    at, place, like = tl.program_id(1), _whole(place), inputs.qkv
    d_k, d_step, k, gradient, rate = _inner_backward(inputs, pair, between, grads, place, at, M, K)
    q, d_z_q = _load_queries(between, at, M, K)
    _, score, triangle = _mixing(q, k, rate, inputs.token_scale, like, M)
    d_mixing = _dot(d_z_q, tl.trans(gradient), like)
    by_step = score * d_mixing
    lower = tl.arange(0, M)[:, None] >= tl.arange(0, M)[None, :]
    d_scale = -tl.sum(tl.where(lower, by_step * rate[None, :], 0.0), 1)
    d_scale -= tl.where(tl.arange(0, M) == M - 1, tl.sum(d_step * rate, 0), 0.0)
    head, _, start, token = _locate(place, at, M)
    d_rate = tl.sum(by_step * triangle, 0) - tl.load(inputs.token_scale + M - 1) * d_step
    tl.store(grads.inner_lr + start * place.heads + head + token * place.heads, d_rate)
    tl.store(_own_sums(grads.sums, place, at, M, K) + 4 * K + tl.arange(0, M), d_scale)

    d_score = d_mixing * triangle * rate[None, :]
    d_k = _dot_onto(d_k, tl.trans(d_score), q, like)
    _store_projection(grads, place, at, 1, _rotate_back(d_k, inputs.rotation, M, K), M, K)
    weight, _ = _load_state(pair[0], at, K)
    d_q = _dot_onto(_dot(d_z_q, tl.trans(weight), like), d_score, k, like)
    base, rows = _rows(place.heads, head, start, token, K)
    d_q += tl.load(grads.out + base + rows)
    _store_projection(grads, place, at, 0, _rotate_back(d_q, inputs.rotation, M, K), M, K)
