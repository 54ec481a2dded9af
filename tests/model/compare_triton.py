"""
Measure how far the Triton kernels are from the references.

Started as a script, in a process of its own: TRITON_INTERPRET has to be set before the kernels are imported, and what
was imported under it stays interpreted.
"""

import json
import sys
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from test_ttt_layers import Shape, make_inputs, run

from scfusion_fm import ScFusionTTTConfig
from scfusion_fm.model import ttt_linear, ttt_linear_triton
from scfusion_fm.model.ttt_layers import DIRECTIONS, TTTLinear
from scfusion_fm.model.ttt_linear_triton import WARPS
from scfusion_fm.model.ttt_reference import ttt_linear_reference


class Case(NamedTuple):
    """What is compared; segments have no more than eight mini-batches."""

    shape: Shape
    scale: float = 1.0
    dtype: torch.dtype = torch.float32


CASES = {
    "one mini-batch": Case(Shape(2, 2, 16, 16, 16)),
    "ten in two segments, the last not whole": Case(Shape(1, 1, 150, 16, 16)),
    "small inputs": Case(Shape(1, 1, 40, 16, 16), 0.1),
    "wide heads": Case(Shape(1, 1, 40, 64, 16)),
    "bfloat16": Case(Shape(1, 2, 70, 32, 16), 1.0, torch.bfloat16),
    "bfloat16, small inputs": Case(Shape(1, 1, 70, 16, 16), 0.1, torch.bfloat16),
}
LONG_CASES = {
    f"{size} x {width}, scale {scale}, {dtype}": Case(Shape(1, 2, 4 * size + 5, width, size), scale, dtype)
    for width, size in WARPS
    for scale in (0.1, 1.0)
    for dtype in (torch.float32, torch.bfloat16)
} | {
    f"{length} tokens, scale {scale}, {dtype}": Case(Shape(1, 1, length, 16, 16), scale, dtype)
    for length in (400, 2_000, 20_000)
    for scale in (0.1, 1.0)
    for dtype in (torch.float32, torch.bfloat16)
}
NAMES = ("out", "weight", "bias", *(f"d_{x}" for x in ("q", "k", "v", "inner_lr", "token_scale", "gain", "offset")))
NAMES = (*NAMES, "d_weight", "d_bias")


def mend_interpreter():
    """
    Let the interpreter of Triton multiply and round bfloat16 as devices do, and not waste time.

    It multiplies the bits of bfloat16 as if they were integers, and cuts digits off instead of rounding.
    """
    from triton.runtime import interpreter

    builder, tl = interpreter.InterpreterBuilder, interpreter.tl
    old_cast, old_dot = builder.cast_impl, builder.create_dot

    def cast(self, x, to):
        if x.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return old_cast(self, x, to)
        rounded = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.int16).numpy()
        return interpreter.TensorHandle(rounded.view(np.uint16), to.scalar)

    def dot(self, a, b, total, *options):
        a, b = (old_cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return old_dot(self, a, b, total, *options)

    builder.cast_impl, builder.create_dot = cast, dot
    interpreter.InterpretedFunction.__call__ = lambda self, *arguments: self.rewrite()(*arguments)
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)


def triton_chosen(chosen=True):
    """Decide for or against the kernels, whatever the device."""
    return mock.patch.object(ttt_linear, "reads_on_device", return_value=chosen)


def relative_errors(got, expected, names):
    """Give the largest difference over the largest value of each tensor."""
    pairs = [(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(got, expected, strict=True)]
    errors = [((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for a, b in pairs]
    return dict(zip(names, errors, strict=True))


def outputs_and_gradients(function, leaves):
    """Run `ttt_linear` and go back from a loss of all that it gives."""
    out, state = run("linear", function, leaves)
    probe = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).bfloat16().view(out.shape).to(out)
    loss = (out * probe).sum() + sum((x * x).sum() + x.sum() for x in state[:-1])
    return [out, *state[:-1], *torch.autograd.grad(loss, leaves)]


def function_errors(case, device):
    """Compare `ttt_linear` on the kernels with the reference in float64; every third token is masked."""
    shape, scale, dtype = case
    leaves = make_inputs("linear", shape, torch.float32, scale)
    with torch.no_grad():
        leaves[3].mul_(1.0 / shape.width)[:, :, ::3] = 0.0  # as the layer scales its learning rates
    leaves[:3] = [x.to(dtype) for x in leaves[:3]]
    here = [x.detach().to(device).requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    with triton_chosen(), mock.patch.object(ttt_linear_triton, "SEGMENT_BYTES", 1):
        got = outputs_and_gradients(ttt_linear.ttt_linear, here)
    return relative_errors(got, outputs_and_gradients(ttt_linear_reference, exact), NAMES)


def make_layer(device, direction="forward", length=75):
    """Make a layer with random parameters, tokens and a mask."""
    torch.manual_seed(0)
    config = ScFusionTTTConfig(hidden_size=32, num_attention_heads=2, ttt_mini_batch_size=16)
    layer = TTTLinear(config, direction)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    mask = torch.rand(2, length) < 0.8
    return layer.to(device), torch.randn(2, length, 32, device=device), mask.to(device)


def layer_results(device, direction, chosen, length=75):
    """Run a layer, which rotates queries and keys, forward and backward."""
    layer, x, mask = make_layer(device, direction, length)
    with triton_chosen(chosen):
        out = layer(x, mask, return_inner_loss=True)
        tokens = out.tokens[mask]
        (tokens.sin().sum() + out.state.weight.square().sum() + out.state.bias.sum()).backward()
    results = [tokens, out.inner_loss, *out.state[:-1], *(p.grad for p in layer.parameters())]
    return results, ("tokens", "inner_loss", "weight", "bias", *(f"d_{name}" for name, _ in layer.named_parameters()))


def layer_errors(device, direction, length=75):
    """Compare a layer on the kernels with the same on the PyTorch path."""
    (got, names), (expected, _) = (layer_results(device, direction, chosen, length) for chosen in (True, False))
    return relative_errors(got, expected, names)


def padding_error():
    """Compare the state after 16 tokens with that after as many masked ones more."""
    leaves = make_inputs("linear", Shape(1, 1, 32, 16, 16), torch.float32)
    with torch.no_grad(), triton_chosen():
        leaves[3][:, :, 16:] = 0.0
        _, short = run("linear", ttt_linear.ttt_linear, [*(x[:, :, :16] for x in leaves[:4]), *leaves[4:]])
        _, long = run("linear", ttt_linear.ttt_linear, leaves)
    return relative_errors(long[:-1], short[:-1], ("weight", "bias"))


def main():
    """Write what was asked for as JSON."""
    torch.set_num_threads(1)
    mend_interpreter()
    cases = {"normal": CASES, "long": LONG_CASES}[sys.argv[1]]
    result = {name: function_errors(case, "cpu") for name, case in cases.items()}
    if sys.argv[1] == "normal":
        result |= {direction: layer_errors("cpu", direction, 20) for direction in DIRECTIONS}
        result["padding"] = padding_error()
        (first, _), (second, _) = (layer_results("cpu", "both", True, 20) for _ in range(2))
        result["twice"] = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
