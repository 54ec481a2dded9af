"""TTT-Linear over a sequence: the dual form with a closed-form backward, a few mini-batches at a time.

Letters: B cells, L tokens, H heads, K head width, M mini-batch.

Of a long sequence only the inner gradients, what they belong to, and the fast weights at the start of every group of
mini-batches are kept for the backward pass; everything else is computed again there, while it is in the cache.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .ttt_linear_backward import BackwardGroup, Gradients
from .ttt_linear_groups import Kept, Options, Settings, make_groups
from .ttt_linear_lanes import runs_on_lanes, scan_lanes
from .ttt_linear_triton import TritonTTTLinear, runs_on_triton

# How far kernels may be from the PyTorch path, of the largest value of a tensor.
CHECK_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
CHECKED: dict[tuple, str | None] = {}  # by device, dtype, head width and mini-batch: why kernels may not be used there


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


def reads_on_device(qkv: Tensor, token_scale: Tensor) -> bool:
    """Tell whether kernels read: these take projections in their dtype and in every direction."""
    if not runs_on_triton(qkv, token_scale):
        return False
    return _is_checked(qkv.device, qkv.dtype, qkv.shape[-1], token_scale.shape[0])


@torch.compiler.disable
def _is_checked(*shape) -> bool:
    """Tell whether kernels agree with the PyTorch path, which is found out once for what they have not met."""
    if shape not in CHECKED:
        if torch.cuda.is_current_stream_capturing():  # nothing can be compared there
            return False
        CHECKED[shape] = check_kernels(*shape)
        if CHECKED[shape] is not None:
            warnings.warn(f"TTT layers take the slower PyTorch path on {shape[0]}: {CHECKED[shape]}.", stacklevel=2)
    return CHECKED[shape] is None


def check_kernels(device: torch.device, dtype: torch.dtype, width: int, size: int) -> str | None:
    """
    Run the kernels and the PyTorch path on a small input, forward and backward.

    Parameters
    ----------
    device, dtype
        Of the projections.
    width, size
        Head width and mini-batch.

    Returns
    -------
    Why the kernels may not be used; None if they may.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            got = _run_small(device, dtype, width, size, kernels=True)
        except Exception as error:  # whatever a compiler or driver may say
            return f"its kernels do not run in {dtype} ({type(error).__name__}: {error})".split("\n")[0]
        expected = _run_small(device, dtype, width, size, kernels=False)
        errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, expected, strict=True)]
    if all(error <= CHECK_TOLERANCE[dtype] for error in errors):  # not so for NaN
        return None
    return f"its kernels are wrong there in {dtype}, for heads of {width} and mini-batches of {size}"


def _run_small(device: torch.device, dtype: torch.dtype, width: int, size: int, kernels: bool) -> list[Tensor]:
    """Read a few mini-batches both ways; outputs and gradients in float32."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 9 * size, 3, 2, width)
    shapes = (shape, shape[:2] + shape[3:4], (size,), (2, 2, width + 1, width), (2, 1, width), (2, 1, width))
    drawn = [torch.randn(x, generator=generator).to(device) for x in shapes]
    qkv, inner_lr, token_scale, fast, gain, offset = drawn
    leaves = [qkv.to(dtype), inner_lr.sigmoid() / width, token_scale.sigmoid(), 0.1 * fast, 1.0 + 0.1 * gain, offset]
    qkv, inner_lr, *others = (x.requires_grad_() for x in leaves)
    if kernels:
        out, fast = TritonTTTLinear.apply(Options(None, 1e-6, None, "both"), qkv, inner_lr, *others)
    else:
        both = (torch.cat((x, x.flip(1))) for x in (qkv.float(), inner_lr))
        out, fast = _TTTLinear.apply(Options(None, 1e-6, None), *both, *others)
        out = torch.cat((out[:1], out[1:].flip(1)))
    probe = torch.randn(out.shape, generator=generator).to(out)
    gradients = torch.autograd.grad((out * probe).sum() + fast.square().sum(), leaves)
    return [x.detach().float() for x in (out, fast, *gradients)]


@torch.compiler.disable  # its buffers are written in place, which inductor cannot follow; what is around it compiles
def ttt_linear_packed(
    qkv: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    state: TTTState,
    norm: TTTNorm,
    rotation: Tensor | None = None,
    inner_loss: Tensor | None = None,
    direction: str = "forward",
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
    direction
        `forward`; `reverse`, from the last token to the first, where `reads_on_device` or `runs_on_lanes`; or `both`,
        where the former: outputs, states and inner losses of the way back stand behind the B cells of the way forward.

    Returns
    -------
    (B, L, H, K) outputs, and the fast weights after the token that is read last.
    """
    assert qkv.shape[1] % token_scale.shape[0] == 0, "the last mini-batch is not whole"
    if qkv.numel() == 0:
        return qkv[:, :, 0], state
    fast = torch.cat((state.weight, state.bias), dim=2)  # (B, H, K + 1, K)
    arguments = (
        Options(rotation, norm.eps, inner_loss, direction),
        qkv,
        inner_lr,
        token_scale,
        fast,
        norm.weight,
        norm.bias,
    )
    if runs_on_lanes(qkv, token_scale):
        out, fast = scan_lanes(*arguments)
    elif reads_on_device(qkv, token_scale):
        out, fast = TritonTTTLinear.apply(*arguments)
    else:
        out, fast = _TTTLinear.apply(*arguments)
    return out, TTTState(fast[:, :, :-1], fast[:, :, -1:])


def _sum_tokens(x: Tensor) -> Tensor:
    """Sum (B, L, H, K) over cells and tokens; (H, 1, K)."""
    flat = x.flatten(0, 1).flatten(1)
    return (flat.new_ones(1, flat.shape[0]) @ flat).view(x.shape[2], 1, x.shape[3])


class _TTTLinear(torch.autograd.Function):
    """TTT-Linear on packed projections, with fast weights (B, H, K + 1, K); writes the inner loss of the options."""

    @staticmethod
    def forward(ctx, options, qkv, inner_lr, token_scale, fast, gain, offset):
        with torch.autocast(qkv.device.type, enabled=False):
            settings = Settings(options, qkv.shape, token_scale, gain, offset)
            kept = Kept.empty(settings, fast)
            work = make_groups(settings, own=settings.is_short)
            current = fast.flatten(0, 1)
            out = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
            for (start, count), group, entering in zip(settings.groups(), work, kept.starts, strict=True):
                here = kept.group(start, count)
                group.fast[0].copy_(entering.copy_(current))
                group.read(qkv, inner_lr, start)
                group.scan(here)
                group.answer(here.gradient)
                group.write(out, start)
                if settings.inner_loss is not None:
                    group.write_loss(here, start)
                current = group.fast[count]
        ctx.options, ctx.work = options._replace(inner_loss=None), work if settings.is_short else None
        ctx.save_for_backward(qkv, inner_lr, token_scale, gain, offset, *kept)
        return out, current.clone().view_as(fast)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_fast):
        qkv, inner_lr, token_scale, gain, offset, *kept = ctx.saved_tensors
        kept = Kept(*kept)
        with torch.autocast(qkv.device.type, enabled=False):
            settings = Settings(ctx.options, qkv.shape, token_scale, gain, offset)
            work = ctx.work or make_groups(settings, own=False)
            backward = {count: BackwardGroup.empty(settings, count) for _, count in settings.groups()}
            grads = Gradients.start(settings, qkv, inner_lr, d_fast)
            for (start, count), group, entering in reversed(
                list(zip(settings.groups(), work, kept.starts, strict=True))
            ):
                here = kept.group(start, count)
                z_hat = backward[count].restore_z_hat(here)
                if ctx.work is None:
                    group.fast[0].copy_(entering)
                    group.read(qkv, inner_lr, start)
                    group.restore(here, z_hat)
                    group.answer(here.gradient)
                backward[count].backward(group, here, d_out, start, grads)
            d_offset = _sum_tokens(d_out) - _sum_tokens(grads.qkv[:, :, 2])
            d_gain = sum(group.d_gain.sum((0, 2)) for group in backward.values())
            d_gain = d_gain.view(settings.batch, settings.heads, 1, settings.width).sum(0)
        return None, grads.qkv, grads.inner_lr, grads.token_scale, grads.fast.view_as(d_fast), d_gain, d_offset
