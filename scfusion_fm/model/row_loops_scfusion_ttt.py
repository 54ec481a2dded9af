"""Compiled loops over rows of tokens; (R, D) of float32 without gaps, D a multiple of sixteen."""

import math

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
    store,
    subtract,
    total,
)


@inlined
def invert_root(x, eps):
    """Give 1 / sqrt(x + eps)."""
    return np.float32(1) / np.float32(math.sqrt(x + eps))


@inlined
def find_moments(row, width, eps):
    """Give mean and inverse standard deviation of a row, each in all lanes."""
    sums = load(row, 0)
    for c in range(WIDTH, width, WIDTH):
        sums = add(sums, load(row, c))
    centre = fill(total(sums) / np.float32(width))
    x = subtract(load(row, 0), centre)
    squares = multiply(x, x)
    for c in range(WIDTH, width, WIDTH):
        x = subtract(load(row, c), centre)
        squares = multiply_add(x, x, squares)
    return centre, fill(invert_root(total(squares) / np.float32(width), eps))


@compiled
def divide_by_root(x, weight, keep, eps, out):
    """Write rows over the root of their mean square, times a weight (D,), into `out`; zeros where not `keep` (R,)."""
    width, gain = weight.size, pointer(weight)
    nothing = fill(np.float32(0))
    for i in range(keep.size):
        row, to = move(pointer(x), i * width), move(pointer(out), i * width)
        if not keep[i]:
            for c in range(0, width, WIDTH):
                store(to, c, nothing)
            continue
        squares = nothing
        for c in range(0, width, WIDTH):
            squares = multiply_add(load(row, c), load(row, c), squares)
        inverse = fill(invert_root(total(squares) / np.float32(width), eps))
        for c in range(0, width, WIDTH):
            store(to, c, multiply(multiply(load(row, c), inverse), load(gain, c)))


@compiled
def standardise_and_gate(x, weight, bias, gate, eps):
    """Standardise rows, times a weight and plus a bias (D,), times a gate (R, D); `x` is written over."""
    width = weight.size
    for i in range(x.size // width):
        row, factor = move(pointer(x), i * width), move(pointer(gate), i * width)
        centre, inverse = find_moments(row, width, eps)
        for c in range(0, width, WIDTH):
            z_hat = multiply(subtract(load(row, c), centre), inverse)
            z = multiply_add(z_hat, load(pointer(weight), c), load(pointer(bias), c))
            store(row, c, multiply(z, load(factor, c)))
