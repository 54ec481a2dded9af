"""
TTT-Linear on a CUDA device by Triton kernels, where these can run.

Letters: B cells, L tokens, H heads, K head width, M mini-batch, n mini-batches of a group.
"""

import functools
import math
import os
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Number of warps for each shape (K, M) that fits: compiled for compute capability 7.5, 8.0, 9.0 and 12.0, these need
# less than 64 KiB of shared memory; larger shapes spill the fast weights out of the registers.
WARPS = {(16, 16): 4, (16, 32): 4, (16, 64): 8, (32, 16): 8, (32, 32): 8, (32, 64): 8, (64, 16): 8}
OLDEST_DEVICE = (7, 5)


@functools.cache
def load_kernels() -> SimpleNamespace | None:
    """Import the kernels when they are first needed; None without triton, which only CUDA builds of torch bring."""
    try:
        from .ttt_linear_kernels import Gradients, Inputs, Outputs, backward_kernel, scan_kernel
    except ImportError:
        return None
    return SimpleNamespace(
        Inputs=Inputs, Outputs=Outputs, Gradients=Gradients, scan=scan_kernel, backward=backward_kernel
    )


def runs_on_triton(qkv: Tensor, token_scale: Tensor) -> bool:
    """
    Tell whether projections (B, L, 3, H, K) go to the Triton kernels.

    They do in float32 on an NVIDIA device of compute capability 7.5 or later, with triton installed, at the head widths
    and mini-batches of `WARPS`, unless the environment variable SCFUSION_TRITON is 0.
    """
    if os.environ.get("SCFUSION_TRITON") == "0" or not qkv.is_cuda or torch.version.hip:
        return False
    fits = qkv.dtype == torch.float32 and (qkv.shape[-1], token_scale.shape[0]) in WARPS
    return fits and torch.cuda.get_device_capability(qkv.device) >= OLDEST_DEVICE and load_kernels() is not None


class TritonTTTLinear(torch.autograd.Function):
    """
    TTT-Linear on packed projections; arguments and results as of `ttt_linear._TTTLinear`.

    Notes
    -----
    Kept for the backward pass are the projections and the fast weights at the start of each group of about sqrt(L / M)
    mini-batches. The backward pass computes those inside one group at a time again, which makes both small. It does
    so in a launch of its own: within one, nothing orders a load after the store of another thread.
    """

    @staticmethod
    def forward(ctx, options, qkv, inner_lr, token_scale, fast, gain, offset):
        """Run the scan, and keep what the backward pass starts from."""
        rotation, eps, inner_loss = options
        kernels, (batch, length, _, heads, width) = load_kernels(), qkv.shape
        tensors = [x.contiguous() for x in (fast, qkv, inner_lr, token_scale, gain, offset)]
        inputs = kernels.Inputs(*tensors, None if rotation is None else rotation.contiguous())
        number = length // token_scale.shape[0]
        group = math.isqrt(number - 1) + 1  # the root, rounded up
        outputs = kernels.Outputs(
            last=torch.empty_like(inputs.fast),
            entering=qkv.new_empty(-(-number // group), *fast.shape),
            tokens=qkv.new_empty(batch, length, heads, width),
            loss=None if inner_loss is None else qkv.new_empty(batch, length, heads),
        )
        _launch(kernels.scan, inputs, outputs, length, number, group, eps)
        if inner_loss is not None:
            inner_loss.copy_(outputs.loss)
        ctx.eps, ctx.group = eps, group
        ctx.save_for_backward(outputs.entering, *inputs[1:])
        return outputs.tokens, outputs.last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_fast):
        """Go back group by group."""
        kernels, (starts, qkv, inner_lr, token_scale, gain, offset, rotation) = load_kernels(), ctx.saved_tensors
        (batch, length, _, heads, width), size = qkv.shape, token_scale.shape[0]
        d_out, d_fast = d_out.contiguous(), d_fast.clone(memory_format=torch.contiguous_format)
        d_qkv, d_inner_lr = torch.empty_like(qkv), torch.empty_like(inner_lr)
        # Of every group, cell and head by itself, to be summed in an order that never changes.
        d_scale, d_gain, d_offset = (qkv.new_empty(len(starts), batch, heads, n) for n in (size, width, width))
        entering = qkv.new_empty(ctx.group, *d_fast.shape)
        for index in reversed(range(len(starts))):
            first = index * ctx.group
            count = min(ctx.group, length // size - first)
            here = slice(first * size, None)
            inputs = kernels.Inputs(starts[index], qkv[:, here], inner_lr[:, here], token_scale, gain, offset, rotation)
            again = kernels.Outputs(last=entering[count - 1], entering=entering)
            _launch(kernels.scan, inputs, again, length, count - 1, 1, ctx.eps)
            partial = (d_scale[index], d_gain[index], d_offset[index])
            grads = kernels.Gradients(d_out[:, here], d_fast, d_qkv[:, here], d_inner_lr[:, here], *partial)
            _launch(kernels.backward, inputs._replace(fast=entering), grads, length, count, ctx.eps)
        d_gain, d_offset = (x.sum((0, 1)).view_as(gain) for x in (d_gain, d_offset))
        return None, d_qkv, d_inner_lr, d_scale.sum((0, 1, 2)), d_fast, d_gain, d_offset


def _launch(kernel, inputs: tuple, *arguments) -> None:
    """Run one program per head and cell on the device of the tensors, which need not be the current one."""
    cells, _, _, heads, width = inputs.qkv.shape
    size = inputs.token_scale.shape[0]
    with torch.cuda.device_of(inputs.qkv):
        kernel[(cells, heads)](inputs, *arguments, M=size, K=width, num_warps=WARPS[width, size], num_stages=1)
