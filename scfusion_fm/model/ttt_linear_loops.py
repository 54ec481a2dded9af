"""
TTT-Linear on a processor where nothing is learned: compiled loops over one head of one cell, which stays in the cache.

Letters: B cells, L tokens, H heads, K head width, M mini-batch. Names and formulas are those of `ttt_linear_groups`.
"""

from typing import NamedTuple

import numpy as np

from .lanes_scfusion_ttt import (
    WIDTH,
    add,
    compiled,
    fill,
    inlined,
    load,
    move,
    multiply,
    multiply_add,
    pointer,
    spread,
    store,
    subtract,
    total,
)
from .row_loops_scfusion_ttt import find_moments

ROWS = 8  # of a product that are calculated side by side


class Sizes(NamedTuple):
    """How long all is."""

    cells: int
    length: int
    heads: int
    width: int
    size: int


class Head(NamedTuple):
    """Where the numbers of one head of one cell are; rows of `q`, `k`, `z` and `y` are the tokens of a mini-batch."""

    qkv: int
    out: int
    gain: int
    offset: int
    fast: int
    triangle: int
    rotation: int
    q: int
    k: int
    k_turned: int
    z: int
    y: int
    mixing: int
    rate: int


@inlined
def _product(a, a_row, a_step, b, b_row, depth, sums):
    """Add the product of 8 rows of a matrix and 16 columns of another to sums."""
    c0, c1, c2, c3, c4, c5, c6, c7 = sums
    for i in range(depth):
        x, at = load(b, i * b_row), i * a_step
        c0 = multiply_add(spread(a, at), x, c0)
        c1 = multiply_add(spread(a, at + a_row), x, c1)
        c2 = multiply_add(spread(a, at + 2 * a_row), x, c2)
        c3 = multiply_add(spread(a, at + 3 * a_row), x, c3)
        c4 = multiply_add(spread(a, at + 4 * a_row), x, c4)
        c5 = multiply_add(spread(a, at + 5 * a_row), x, c5)
        c6 = multiply_add(spread(a, at + 6 * a_row), x, c6)
        c7 = multiply_add(spread(a, at + 7 * a_row), x, c7)
    return c0, c1, c2, c3, c4, c5, c6, c7


@inlined
def _repeat(x):
    return x, x, x, x, x, x, x, x


@inlined
def _load_rows(c, row):
    first = load(c, 0), load(c, row), load(c, 2 * row), load(c, 3 * row)
    return *first, load(c, 4 * row), load(c, 5 * row), load(c, 6 * row), load(c, 7 * row)


@inlined
def _store_rows(c, row, sums):
    c0, c1, c2, c3, c4, c5, c6, c7 = sums
    store(c, 0, c0)
    store(c, row, c1)
    store(c, 2 * row, c2)
    store(c, 3 * row, c3)
    store(c, 4 * row, c4)
    store(c, 5 * row, c5)
    store(c, 6 * row, c6)
    store(c, 7 * row, c7)


@compiled
def _read(at, sizes, start, step):
    """Rotate the queries and keys of a mini-batch."""
    width, half, size = sizes.width, sizes.width // 2, sizes.size
    own = sizes.heads * width
    for i in range(size):
        query = move(at.qkv, (start + i * step) * 3 * own)
        q, k = move(at.q, i * width), move(at.k, i * width)
        for c in range(0, half, WIDTH):
            cos, sin = load(at.rotation, i * half + c), load(at.rotation, (size + i) * half + c)
            first, second = load(query, c), load(query, half + c)
            store(q, c, subtract(multiply(first, cos), multiply(second, sin)))
            store(q, half + c, multiply_add(second, cos, multiply(first, sin)))
            first, second = load(query, own + c), load(query, own + half + c)
            store(k, c, subtract(multiply(first, cos), multiply(second, sin)))
            store(k, half + c, multiply_add(second, cos, multiply(first, sin)))
        for c in range(width):
            at.k_turned[c * size + i] = k[c]


@compiled
def _predict(at, width, size):
    """Write what the inner model makes of each key."""
    for c in range(0, width, WIDTH):
        bias = load(at.fast, width * width + c)
        for row in range(0, size, ROWS):
            sums = _product(move(at.k, row * width), width, 1, move(at.fast, c), width, width, _repeat(bias))
            _store_rows(move(at.z, row * width + c), width, sums)


@inlined
def _learn(z, k, v, gain, offset, width, eps):
    """Write the inner gradient of a token over what the inner model made of its key; give the inner loss."""
    centre, inverse = find_moments(z, width, eps)
    loss = fill(np.float32(0))
    slopes, along = loss, loss
    for c in range(0, width, WIDTH):
        z_hat, weight = multiply(subtract(load(z, c), centre), inverse), load(gain, c)
        error = multiply_add(weight, z_hat, subtract(add(load(offset, c), load(k, c)), load(v, c)))
        slope = multiply(weight, error)
        loss, slopes, along = multiply_add(error, error, loss), add(slopes, slope), multiply_add(slope, z_hat, along)
    mean_slope, mean_along = fill(total(slopes) / np.float32(width)), fill(total(along) / np.float32(width))
    for c in range(0, width, WIDTH):
        z_hat, weight = multiply(subtract(load(z, c), centre), inverse), load(gain, c)
        error = multiply_add(weight, z_hat, subtract(add(load(offset, c), load(k, c)), load(v, c)))
        gradient = subtract(subtract(multiply(weight, error), mean_slope), multiply(z_hat, mean_along))
        store(z, c, multiply(gradient, inverse))
    return np.float32(0.5) * total(loss)


@compiled
def _mix(at, width, size):
    """Write how much each query takes of the inner gradient of each token."""
    one = fill(np.float32(1))  # what the bias adds to the product of a query and a key
    for c in range(0, size, WIDTH):
        for row in range(0, size, ROWS):
            sums = _product(move(at.q, row * width), width, 1, move(at.k_turned, c), size, width, _repeat(one))
            _store_rows(move(at.mixing, row * size + c), size, sums)
        rate = load(at.rate, c)
        for i in range(c, size * size, size):
            store(at.mixing, i, multiply(multiply(load(at.mixing, i), load(at.triangle, i)), rate))


@compiled
def _answer(at, width, size):
    """Write what each query reads."""
    for c in range(0, width, WIDTH):
        bias = load(at.fast, width * width + c)
        for row in range(0, size, ROWS):
            sums = _product(move(at.q, row * width), width, 1, move(at.fast, c), width, width, _repeat(bias))
            sums = _product(move(at.mixing, row * size), size, 1, move(at.z, c), width, row + ROWS, sums)
            _store_rows(move(at.y, row * width + c), width, sums)


@inlined
def _write(y, q, gain, offset, width, eps, out):
    """Write the sum of a query and the standardised answer to it."""
    centre, inverse = find_moments(y, width, eps)
    for c in range(0, width, WIDTH):
        y_hat = multiply(subtract(load(y, c), centre), inverse)
        store(out, c, add(multiply_add(y_hat, load(gain, c), load(offset, c)), load(q, c)))


@compiled
def _step(at, width, size):
    """Let the fast weights take the steps of a mini-batch."""
    scale = at.triangle[size * size - size]
    for c in range(0, width, WIDTH):
        bias = load(at.fast, width * width + c)
        for i in range(size):
            stepped = multiply(load(at.z, i * width + c), fill(scale * at.rate[i]))
            store(at.z, i * width + c, stepped)
            bias = add(bias, stepped)
        store(at.fast, width * width + c, bias)
        for row in range(0, width, ROWS):
            fast = move(at.fast, row * width + c)
            sums = _product(move(at.k, row), 1, width, move(at.z, c), width, size, _load_rows(fast, width))
            _store_rows(fast, width, sums)


@compiled
def _scan_head(at, sizes, inner_lr, loss, with_loss, backwards, eps):
    """Read the tokens of one head of one cell."""
    heads, width, size = sizes.heads, sizes.width, sizes.size
    own, step = heads * width, -1 if backwards else 1
    for first in range(0, sizes.length, size):
        start = sizes.length - 1 - first if backwards else first
        _read(at, sizes, start, step)
        _predict(at, width, size)
        for i in range(size):
            token, row = start + i * step, i * width
            at.rate[i] = inner_lr[token * heads]
            value = move(at.qkv, (3 * token + 2) * own)
            found = _learn(move(at.z, row), move(at.k, row), value, at.gain, at.offset, width, eps)
            if with_loss:
                loss[token * heads] = found
        _mix(at, width, size)
        _answer(at, width, size)
        for i in range(size):
            row, out = i * width, move(at.out, (start + i * step) * own)
            _write(move(at.y, row), move(at.q, row), at.gain, at.offset, width, eps, out)
        _step(at, width, size)


@compiled
def scan(inputs, outputs, work, sizes, eps, backwards):
    """
    Read the tokens of all cells.

    Parameters
    ----------
    inputs
        Arrays of float32 without gaps: queries, keys and values (B, L, 3, H, K); inner learning rates (B, L, H); the
        lower triangle (M, M) of -s; gain and offset (H, K) of the inner LayerNorm; the rotation (2, M, K / 2).
    outputs
        Likewise: (B, L, H, K) written; fast weights (B, H, K + 1, K) at the start, which become those at the end; the
        inner loss (B, L, H), or nothing.
    work
        Room for 5 M K + M M + M numbers.
    sizes
        B, L, H, K and M.
    eps
        Of the inner LayerNorm.
    backwards
        Whether tokens are read from the last to the first.
    """
    cells, length, heads, width, size = sizes
    qkv, inner_lr, triangle, gain, offset, rotation = inputs
    out, fast, loss = outputs
    room, part = pointer(work), size * width
    for cell in range(cells):
        for head in range(heads):
            own = head * width
            at = Head(
                move(pointer(qkv), cell * length * 3 * heads * width + own),
                move(pointer(out), cell * length * heads * width + own),
                move(pointer(gain), own),
                move(pointer(offset), own),
                move(pointer(fast), (cell * heads + head) * (width + 1) * width),
                pointer(triangle),
                pointer(rotation),
                room,
                move(room, part),
                move(room, 2 * part),
                move(room, 3 * part),
                move(room, 4 * part),
                move(room, 5 * part),
                move(room, 5 * part + size * size),
            )
            rates, losses = move(pointer(inner_lr), cell * length * heads + head), move(pointer(loss), 0)
            if loss.size:
                losses = move(losses, cell * length * heads + head)
            _scan_head(at, Sizes(cells, length, heads, width, size), rates, losses, loss.size > 0, backwards, eps)
