"""
TTT-Linear on a CUDA device by Triton kernels, where these can run.

Letters: B cells, W ways in which a layer reads (1 or 2), L tokens, H heads, K head width, M mini-batch, N mini-batches,
n mini-batches of a segment, R = W * B * H.
"""

import functools
import os
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Warps of a program by head width and mini-batch: about as few as keep its tiles in registers, in bfloat16 and float32.
# `benchmarks/gpu_compile.py` reads what comes out; larger mini-batches spill on one device or another.
WARPS = {(16, 16): (1, 2), (32, 16): (2, 2), (64, 16): (4, 4)}
OLDEST_DEVICE = (8, 0)  # the first with tensor cores for both precisions
EVERY = 8  # mini-batches from one state that is kept for the backward pass to the next
SEGMENT_BYTES = 2**27  # of the states of a segment, which are there for a moment only


def choose_warps(kernel: str, dtype: torch.dtype, width: int, size: int) -> int:
    """Say how many warps of 32 threads a program of a kernel has; scans have no use for more than one per 16 rows."""
    warps = WARPS[width, size][dtype == torch.float32]
    return 8 if width == 64 and dtype == torch.float32 and not kernel.startswith("scan") else warps


@functools.cache
def load_kernels() -> SimpleNamespace | None:
    """Import the kernels when they are first needed; None without triton, which only CUDA builds of torch bring."""
    try:
        from .ttt_linear_kernels import Inputs, Place, Scanned, States, Tokens, read_kernel, scan_kernel
        from .ttt_linear_kernels_backward import (
            Between,
            Gradients,
            projections_backward_kernel,
            reads_backward_kernel,
            scan_backward_kernel,
        )
    except ImportError:
        return None
    records = (Inputs, Place, Scanned, States, Tokens, Between, Gradients)
    return SimpleNamespace(
        **{record.__name__: record for record in records},
        scan=scan_kernel,
        read=read_kernel,
        reads_backward=reads_backward_kernel,
        scan_backward=scan_backward_kernel,
        projections_backward=projections_backward_kernel,
    )


def runs_on_triton(qkv: Tensor, token_scale: Tensor) -> bool:
    """
    Tell whether projections (B, L, 3, H, K) can go to the Triton kernels.

    They can in float32 and bfloat16 on an NVIDIA device of compute capability 8.0 or later, with triton installed, at
    the head widths and mini-batches of `WARPS`, unless the environment variable SCFUSION_TRITON is 0.
    """
    if not qkv.is_cuda or torch.version.hip or os.environ.get("SCFUSION_TRITON") == "0":
        return False
    fits = (qkv.shape[-1], token_scale.shape[0]) in WARPS and qkv.dtype in (torch.float32, torch.bfloat16)
    return fits and torch.cuda.get_device_capability(qkv.device) >= OLDEST_DEVICE and load_kernels() is not None


class Launcher:
    """
    Launches the kernels on one set of projections, segment after segment.

    A segment is what a scan reads before the outputs of all its mini-batches are calculated at once.
    """

    def __init__(self, inputs: tuple, direction: str):
        self.kernels, self.inputs = load_kernels(), inputs
        self.cells, self.length, _, self.heads, self.width = inputs.qkv.shape
        self.size = inputs.token_scale.shape[0]
        self.ways = 2 if direction == "both" else 1
        self.forth = 0 if direction == "reverse" else self.cells
        self.rows = self.ways * self.cells * self.heads
        self.number = self.length // self.size

    def segments(self) -> Iterator[tuple[int, int]]:
        """Give the first mini-batch of each segment and how many it has."""
        each = self.rows * self.width**2 * self.inputs.qkv.element_size()
        most = max(SEGMENT_BYTES // each // EVERY, 1) * EVERY
        return ((first, min(most, self.number - first)) for first in range(0, self.number, most))

    def new(self, *shape: int, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """Make room for what a kernel writes."""
        return self.inputs.qkv.new_empty(shape, dtype=dtype)

    def states(self, count: int) -> tuple:
        """Make room for the states of a segment."""
        weight = self.new(count, self.rows, self.width, self.width, dtype=self.inputs.qkv.dtype)
        return self.kernels.States(weight, self.new(count, self.rows, self.width))

    def launch(self, name: str, grid: tuple[int, ...], first: int, count: int, *arguments, span: int = 0) -> None:
        """Run a kernel on a segment, on the device of the tensors, which need not be the current one."""
        numbers = (self.length, self.cells, self.heads, self.forth, first, count, span or count, EVERY)
        place = self.kernels.Place(*map(float, numbers))
        kernel = getattr(self.kernels, name)
        shape = {"M": self.size, "K": self.width}
        warps = choose_warps(name, self.inputs.qkv.dtype, self.width, self.size)
        with torch.cuda.device_of(self.inputs.qkv):
            kernel[grid](self.inputs, *arguments, place, **shape, num_warps=warps, num_stages=1)


class TritonTTTLinear(torch.autograd.Function):
    """
    TTT-Linear on packed projections; arguments and results as of `ttt_linear._TTTLinear`.

    Notes
    -----
    Kept for the backward pass are the projections and the fast weights that enter every `EVERY`-th mini-batch; those
    between are found again, many at a time.
    """

    @staticmethod
    def forward(ctx, options, qkv, inner_lr, token_scale, fast, gain, offset):
        """Find the fast weights, and read with them."""
        _, eps, inner_loss, direction = options
        tensors = (qkv, inner_lr, token_scale, gain, offset, options.angles(qkv, token_scale.shape[0]))
        inputs = load_kernels().Inputs(*(x.contiguous() for x in tensors))
        run = Launcher(inputs, direction)
        kernels, last = run.kernels, fast.clone(memory_format=torch.contiguous_format)
        kept = run.new(-(-run.number // EVERY), *fast.shape)
        out = run.new(run.ways * run.cells, run.length, run.heads, run.width, dtype=qkv.dtype)
        loss = None if inner_loss is None else run.new(*out.shape[:3])
        for first, count in run.segments():
            scanned = kernels.Scanned(last, run.states(count), kept, last)
            run.launch("scan", (run.rows, 1), first, count, scanned, eps)
            run.launch("read", (run.rows, count), first, count, scanned.states, kernels.Tokens(out, loss), eps)
        if inner_loss is not None:
            inner_loss.copy_(loss)
        ctx.eps, ctx.direction = eps, direction
        ctx.save_for_backward(kept, *inputs)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_fast):
        """Go back segment by segment."""
        kept, *inputs = ctx.saved_tensors
        run = Launcher(load_kernels().Inputs(*inputs), ctx.direction)
        d_fast = d_fast.clone(memory_format=torch.contiguous_format)
        grads = run.kernels.Gradients(
            d_out.contiguous(),
            qkv=run.new(run.ways * run.cells, *run.inputs.qkv.shape[1:], dtype=run.inputs.qkv.dtype),
            inner_lr=run.new(*d_out.shape[:3]),
            sums=run.new(run.number, run.ways * run.cells, run.heads, 4 * run.width + run.size),
        )
        for first, count in reversed(list(run.segments())):
            _go_back(run, kept, d_fast, grads, first, count, ctx.eps)
        d_qkv, d_inner_lr = (x if run.ways == 1 else torch.add(*x.chunk(2)) for x in grads[1:3])
        sums = grads.sums.sum((0, 1))
        d_norm, d_scale = sums.split((4 * run.width, run.size), -1)
        d_gain, d_offset = d_norm.unflatten(-1, (2, 2, 1, run.width)).sum(1).unbind(1)
        return None, d_qkv, d_inner_lr, d_scale.sum(0), d_fast, d_gain, d_offset


def _go_back(run: Launcher, kept: Tensor, d_fast: Tensor, grads: tuple, first: int, count: int, eps: float) -> None:
    """Go back through a segment; `d_fast` is the gradient at the fast weights behind it, and becomes that in front."""
    kernels, shape = run.kernels, (count, run.rows, run.size, run.width)
    states, d_states = run.states(count), run.states(count)
    parts = -(-count // EVERY)
    again = kernels.Scanned(kept[first // EVERY :], states)
    run.launch("scan", (run.rows, parts), first, count, again, eps, span=EVERY)
    between = kernels.Between(
        *(run.new(*shape, dtype=run.inputs.qkv.dtype) for _ in range(3)),
        *(run.new(*shape) for _ in range(3)),
        *(run.new(*shape[:3]) for _ in range(2)),
    )
    run.launch("reads_backward", (run.rows, count), first, count, states, between, grads, eps)
    run.launch("scan_backward", (run.rows,), first, count, between, kernels.Scanned(d_fast, d_states))
    run.launch("projections_backward", (run.rows, count), first, count, (states, d_states), between, grads)
