"""
The Triton kernels of the forward pass of TTT-Linear; `ttt_linear_kernels_backward` has the way back.

Letters: B cells, W ways in which a layer reads (1 or 2), L tokens, H heads, K head width, M mini-batch, n mini-batches
of a segment, R = W * B * H; at: which mini-batch of the segment.

Only the fast weights have to be found one mini-batch after the other. `scan_kernel` does this, one program for a head
of a cell, and stores those that enter each mini-batch. `read_kernel` then reads all mini-batches at once.

Tensors of tokens and operands of products have the dtype of the projections, float32 or bfloat16. Fast weights while
they learn, means, variances, rates and all sums are in float32. Float32 is multiplied on tensor cores in three parts of
10 bits each, which keeps nearly all of its digits.

No two programs write to one address, so results do not depend on their order. A gradient at x is called d_x.
"""

from typing import NamedTuple

from torch import Tensor

try:  # what a model directory imports outside of a try must be installed before transformers loads it
    import triton
    import triton.language as tl
except ImportError:
    raise

PRECISION: tl.constexpr = tl.constexpr("tf32x3")


class Inputs(NamedTuple):
    """What all kernels read: all contiguous."""

    qkv: Tensor  # (B, L, 3, H, K)
    inner_lr: Tensor  # (B, L, H)
    token_scale: Tensor  # (M,)
    gain: Tensor  # (H, 1, K)
    offset: Tensor  # (H, 1, K)
    rotation: Tensor  # (2, M, K / 2)


class Place(NamedTuple):
    """
    Which part of which tokens the programs of a launch read.

    The host gives whole numbers as floats: for integers in a tuple that are 1 or divisible by 16, Triton would compile
    a kernel once more.
    """

    length: int  # L
    cells: int  # B
    heads: int  # H
    forth: int  # of the W * B ways through a cell, how many are read from the first token to the last
    first: int  # mini-batch, in order of reading, with which the segment starts
    count: int  # mini-batches of the segment (n)
    span: int  # mini-batches for each program of a scan
    every: int  # mini-batches from one kept state to the next


class States(NamedTuple):
    """Fast weights, or gradients at them, at each mini-batch of a segment."""

    weight: Tensor  # (n, R, K, K) in the dtype of the projections
    bias: Tensor  # (n, R, K)


class Scanned(NamedTuple):
    """What a scan starts from and writes; nothing where None."""

    fast: Tensor  # (R, K + 1, K), or (parts, R, K + 1, K) where several programs share a segment; bias last
    states: States
    kept: Tensor | None = None  # (N / every, R, K + 1, K) fast weights that enter every `every`-th mini-batch
    last: Tensor | None = None  # (R, K + 1, K) behind the segment


class Tokens(NamedTuple):
    """What is read; the loss may be None."""

    out: Tensor  # (W * B, L, H, K)
    loss: Tensor | None  # (W * B, L, H)


@triton.jit
def _whole(place):
    """Turn the numbers of a place to integers."""
    return Place(
        length=tl.cast(place.length, tl.int32),
        cells=tl.cast(place.cells, tl.int32),
        heads=tl.cast(place.heads, tl.int32),
        forth=tl.cast(place.forth, tl.int32),
        first=tl.cast(place.first, tl.int32),
        count=tl.cast(place.count, tl.int32),
        span=tl.cast(place.span, tl.int32),
        every=tl.cast(place.every, tl.int32),
    )


@triton.jit
def _dot(a, b, like):
    """Multiply (m, c) by (c, n) in the dtype of a pointer; the sum is in float32."""
    return tl.dot(a.to(like.dtype.element_ty), b.to(like.dtype.element_ty), input_precision=PRECISION)


@triton.jit
def _dot_onto(total, a, b, like):
    """Add the product of (m, c) and (c, n) to what there is."""
    return tl.dot(a.to(like.dtype.element_ty), b.to(like.dtype.element_ty), total, input_precision=PRECISION)


@triton.constexpr_function
def _fits_ahead(like, M, K):
    """Tell whether a scan has registers for tiles (M, K) of two mini-batches."""
    return like.dtype.element_ty.primitive_bitwidth == 16 and M <= 32 and M * K <= 1024


@triton.jit
def _square(M: tl.constexpr, K: tl.constexpr):
    """Give the offsets of a contiguous (M, K)."""
    return tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]


@triton.jit
def _locate(place, at, M: tl.constexpr):
    """
    Find the tokens of a mini-batch.

    Gives the head; the first of the tokens among all that are read, and among all that are written, in 64 bits; and
    the place of each behind it, in order of reading.
    """
    head, way = tl.program_id(0) % place.heads, tl.program_id(0) // place.heads
    start, token = (place.first + at) * M, tl.arange(0, M)
    turned = way >= place.forth
    start = tl.where(turned, place.length - M - start, start)
    token = tl.where(turned, M - 1 - token, token)
    read = (way % place.cells).to(tl.int64) * place.length + start
    return head, read, way.to(tl.int64) * place.length + start, token


@triton.jit
def _rows(heads, head, start, token, K: tl.constexpr):
    """Give the offset of the first and those of the others (M, K) in a (..., L, H, K)."""
    return (start * heads + head) * K, (token * heads * K)[:, None] + tl.arange(0, K)[None, :]


@triton.jit
def _angles(rotation, M: tl.constexpr, K: tl.constexpr):
    """Load by what a coordinate and its partner in the other half are multiplied in a rotation, twice (M, K)."""
    half: tl.constexpr = K // 2
    column = tl.arange(0, K)
    at = tl.arange(0, M)[:, None] * half + (column % half)[None, :]
    sin = tl.load(rotation + M * half + at)
    return tl.load(rotation + at), tl.where(column[None, :] < half, -sin, sin)


@triton.jit
def _load_halves(qkv, heads, head, start, token, part: tl.constexpr, K: tl.constexpr):
    """Load the queries (part 0) or keys (1) of a mini-batch (M, K), and their partners in a rotation."""
    base = qkv + (start * 3 + part) * heads * K + head * K
    row, column = (token * 3 * heads * K)[:, None], tl.arange(0, K)
    partner = tl.max_contiguous((column + K // 2) % K, K // 2)
    return tl.load(base + (row + column[None, :])), tl.load(base + (row + partner[None, :]))


@triton.jit
def _load_values(qkv, heads, head, start, token, K: tl.constexpr):
    """Load the values of a mini-batch (M, K)."""
    base = qkv + (start * 3 + 2) * heads * K + head * K
    return tl.load(base + ((token * 3 * heads * K)[:, None] + tl.arange(0, K)[None, :]))


@triton.jit
def _rotate(halves, angles):
    """Rotate (M, K) in float32."""
    own, partner = halves
    cos, sin = angles
    return own.to(tl.float32) * cos + partner.to(tl.float32) * sin


@triton.jit
def _load_rates(inner_lr, heads, head, start, token):
    """Load the learning rates of a mini-batch (M,)."""
    return tl.load(inner_lr + start * heads + head + token * heads)


@triton.jit
def _mean(x, K: tl.constexpr, axis: tl.constexpr):
    """Average over an axis of K coordinates, which stays."""
    return tl.expand_dims(tl.sum(x, axis) / K, axis)


@triton.jit
def _standardise(z, eps, K: tl.constexpr, axis: tl.constexpr):
    """Bring z to mean 0 and variance 1 along an axis; give it and what it was multiplied by."""
    z -= _mean(z, K, axis)
    inverse_std = tl.rsqrt(_mean(z * z, K, axis) + eps)
    return z * inverse_std, inverse_std


@triton.jit
def _standardise_backward(gradient, z_hat, inverse_std, K: tl.constexpr, axis: tl.constexpr):
    """Carry the gradient at what was standardised back."""
    return (gradient - _mean(gradient, K, axis) - z_hat * _mean(gradient * z_hat, K, axis)) * inverse_std


@triton.jit
def _inner_gradient(z, shift, gain, eps, K: tl.constexpr, axis: tl.constexpr):
    """Give the gradient of the inner loss at what the fast weights make of the keys, and what it was made of."""
    z_hat, inverse_std = _standardise(z, eps, K, axis)
    slope = gain * (shift + gain * z_hat)
    return _standardise_backward(slope, z_hat, inverse_std, K, axis), slope, z_hat, inverse_std


@triton.jit
def _mixing(q, k, rate, token_scale, like, M: tl.constexpr):
    """Give how much query i takes of the inner gradient of key j (M, M), and the two factors of it."""
    score = _dot(q, tl.trans(k), like) + 1.0  # the bias is a column of ones at the keys
    at = tl.arange(0, M)
    scale = tl.load(token_scale + at)
    triangle = tl.where(at[:, None] >= at[None, :], -scale[:, None], 0.0)
    return score * triangle * rate[None, :], score, triangle


@triton.jit
def _load_fast(fast, K: tl.constexpr):
    """Load fast weights (K, K) and (K,) that lie below each other."""
    return tl.load(fast + _square(K, K)), tl.load(fast + K * K + tl.arange(0, K))


@triton.jit
def _store_fast(to, fast, K: tl.constexpr):
    """Store fast weights below each other."""
    weight, bias = fast
    tl.store(to + _square(K, K), weight)
    tl.store(to + K * K + tl.arange(0, K), bias)


@triton.jit
def _load_state(states, at, K: tl.constexpr):
    """Load the state (K, K) and (1, K) at a mini-batch."""
    row = at * tl.num_programs(0).to(tl.int64) + tl.program_id(0)
    bias = tl.load(states.bias + row * K + tl.arange(0, K))
    return tl.load(states.weight + row * (K * K) + _square(K, K)), bias[None, :]


@triton.jit
def _store_state(states, at, fast, K: tl.constexpr):
    """Store the state at a mini-batch, the weight in the dtype in which it will be multiplied."""
    weight, bias = fast
    row = at * tl.num_programs(0).to(tl.int64) + tl.program_id(0)
    tl.store(states.weight + row * (K * K) + _square(K, K), weight.to(states.weight.dtype.element_ty))
    tl.store(states.bias + row * K + tl.arange(0, K), bias)


@triton.jit
def _load_keys(inputs, place, at, M: tl.constexpr, K: tl.constexpr):
    """Load what the fast weights learn from in a mini-batch."""
    head, start, _, token = _locate(place, at, M)
    own, partner = _load_halves(inputs.qkv, place.heads, head, start, token, 1, K)
    value = _load_values(inputs.qkv, place.heads, head, start, token, K)
    return own, partner, value, _load_rates(inputs.inner_lr, place.heads, head, start, token)


@triton.jit
def scan_kernel(inputs, scanned, eps, place, M: tl.constexpr, K: tl.constexpr):
    """
    Find the fast weights that enter each mini-batch of a segment.

    The grid is (R, parts): each program takes `span` mini-batches. Everything is turned, (K, M) for (M, K): warps then
    share the coordinates of a tile, and what one product gives is in the registers in which the next one wants it.
    Where there are registers enough, the tokens of the next mini-batch are loaded before those of this one are needed.
    """
    place = _whole(place)
    programs, row, part = tl.num_programs(0).to(tl.int64), tl.program_id(0), tl.program_id(1)
    weight, bias = _load_fast(scanned.fast + (part * programs + row) * (K + 1) * K, K)
    weight = tl.trans(weight)
    head = row % place.heads
    gain = tl.load(inputs.gain + head * K + tl.arange(0, K))[:, None]
    offset = tl.load(inputs.offset + head * K + tl.arange(0, K))[:, None]
    angles = _angles(inputs.rotation, M, K)
    last_scale = tl.load(inputs.token_scale + M - 1)
    begin = part * place.span
    end = tl.minimum(begin + place.span, place.count)
    ahead = _load_keys(inputs, place, begin, M, K)
    for at in range(begin, end):
        if scanned.kept is not None:  # noqa: SIM102 (known when it is compiled, the other is not)
            if (place.first + at) % place.every == 0:
                kept = ((place.first + at) // place.every) * programs + row
                _store_fast(scanned.kept + kept * (K + 1) * K, (tl.trans(weight), bias), K)
        _store_state(scanned.states, at, (tl.trans(weight), bias), K)
        if _fits_ahead(inputs.qkv, M, K):
            here = ahead
            ahead = _load_keys(inputs, place, tl.minimum(at + 1, end - 1), M, K)
        else:
            here = _load_keys(inputs, place, at, M, K)
            angles = _angles(inputs.rotation, M, K)
        own, partner, value, rate = here
        k = _rotate((own, partner), angles)
        z = _dot(weight, tl.trans(k), inputs.qkv) + bias[:, None]
        gradient, _, _, _ = _inner_gradient(z, offset + tl.trans(k - value), gain, eps, K, 0)
        taken = gradient * (-last_scale * rate)[None, :]
        weight = _dot_onto(weight, taken, k, inputs.qkv)
        bias += tl.sum(taken, 1)
    if scanned.last is not None:
        _store_fast(scanned.last + row.to(tl.int64) * (K + 1) * K, (tl.trans(weight), bias), K)


@triton.jit
def _load_projections(inputs, place, at, M: tl.constexpr, K: tl.constexpr):
    """Load the rotated queries and keys (M, K), offset + key - value, and the learning rates (M,), of a mini-batch."""
    head, start, _, token = _locate(place, at, M)
    angles = _angles(inputs.rotation, M, K)
    q = _rotate(_load_halves(inputs.qkv, place.heads, head, start, token, 0, K), angles)
    k = _rotate(_load_halves(inputs.qkv, place.heads, head, start, token, 1, K), angles)
    offset = tl.load(inputs.offset + head * K + tl.arange(0, K))[None, :]
    shift = offset + k - _load_values(inputs.qkv, place.heads, head, start, token, K)
    return q, k, shift, _load_rates(inputs.inner_lr, place.heads, head, start, token)


@triton.jit
def _load_gain(inputs, place, K: tl.constexpr):
    """Load the gain (1, K) of the inner norm."""
    return tl.load(inputs.gain + (tl.program_id(0) % place.heads) * K + tl.arange(0, K))[None, :]


@triton.jit
def read_kernel(inputs, states, tokens, eps, place, M: tl.constexpr, K: tl.constexpr):
    """Read each mini-batch of a segment with the fast weights that enter it; the grid is (R, n)."""
    at, place = tl.program_id(1), _whole(place)
    weight, bias = _load_state(states, at, K)
    gain = _load_gain(inputs, place, K)
    q, k, shift, rate = _load_projections(inputs, place, at, M, K)
    gradient, _, z_hat, _ = _inner_gradient(_dot(k, weight, inputs.qkv) + bias, shift, gain, eps, K, 1)
    mixing, _, _ = _mixing(q, k, rate, inputs.token_scale, inputs.qkv, M)
    z = _dot_onto(_dot(q, weight, inputs.qkv), mixing, gradient, inputs.qkv) + bias
    z_out, _ = _standardise(z, eps, K, 1)
    head, _, start, token = _locate(place, at, M)
    offset = tl.load(inputs.offset + head * K + tl.arange(0, K))[None, :]
    base, rows = _rows(place.heads, head, start, token, K)
    out = q + (gain * z_out + offset)
    tl.store(tokens.out + base + rows, out.to(tokens.out.dtype.element_ty))
    if tokens.loss is not None:
        error = shift + gain * z_hat
        loss = 0.5 * tl.sum(error * error, 1)
        tl.store(tokens.loss + start * place.heads + head + token * place.heads, loss)
