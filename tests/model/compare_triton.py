"""
Measure how far the Triton kernels are from the references, and compile them for devices that are not here.

Started as a script, in a process of its own: TRITON_INTERPRET has to be set before the kernels are imported, and what
was imported under it stays interpreted.
"""

import copy
import json
import sys
from unittest import mock

import torch
from test_ttt_layers import Shape, make_inputs, outputs_and_gradients, run

from scfusion_fm import ScFusionTTTConfig
from scfusion_fm.model import ttt_linear
from scfusion_fm.model.ttt_layers import TTTLinear
from scfusion_fm.model.ttt_linear_triton import load_kernels
from scfusion_fm.model.ttt_reference import ttt_linear_reference

CASES = {
    "one mini-batch": (Shape(2, 1, 16, 16, 16), 1.0),
    "two": (Shape(1, 3, 32, 16, 16), 1.0),
    "three, the last not whole": (Shape(2, 2, 37, 32, 16), 1.0),
    "five in two groups": (Shape(1, 1, 80, 16, 16), 1.0),
    "small inputs": (Shape(1, 1, 40, 16, 16), 0.1),
    "mini-batches of 32": (Shape(1, 1, 70, 16, 32), 1.0),
    "mini-batches of 64": (Shape(1, 1, 70, 16, 64), 1.0),
    "wide heads": (Shape(1, 1, 40, 64, 16), 1.0),
}
NAMES = ("out", "weight", "bias", *(f"d_{x}" for x in ("q", "k", "v", "inner_lr", "token_scale", "gain", "offset")))
NAMES = (*NAMES, "d_weight", "d_bias")


def triton_chosen(chosen=True):
    """Decide for or against the kernels, whatever the device."""
    return mock.patch.object(ttt_linear, "runs_on_triton", return_value=chosen)


def relative_errors(got, expected, names):
    """Give the largest difference over the largest value of each tensor."""
    pairs = [(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(got, expected, strict=True)]
    errors = [((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for a, b in pairs]
    return dict(zip(names, errors, strict=True))


def function_errors(case, device):
    """Compare `ttt_linear` on the kernels with the reference in float64; every third token is masked."""
    shape, scale = CASES[case]
    leaves = make_inputs("linear", shape, torch.float32, scale)
    with torch.no_grad():
        leaves[3].mul_(1.0 / shape.width)[:, :, ::3] = 0.0  # as the layer scales its learning rates
    here, exact = ([x.detach().to(to).requires_grad_() for x in leaves] for to in (device, torch.float64))
    with triton_chosen():
        got = outputs_and_gradients("linear", ttt_linear.ttt_linear, here)
    return relative_errors(got, outputs_and_gradients("linear", ttt_linear_reference, exact), NAMES)


def make_layer(device):
    """Make a layer with random parameters, tokens and a mask."""
    torch.manual_seed(0)
    layer = TTTLinear(ScFusionTTTConfig(hidden_size=64, num_attention_heads=2, ttt_mini_batch_size=16))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    mask = torch.rand(2, 75) < 0.8
    return layer.to(device), torch.randn(2, 75, 64, device=device), mask.to(device)


def layer_errors(device):
    """Compare a layer, which rotates queries and keys, on the kernels with the same on the PyTorch path."""
    results = []
    for chosen in (True, False):
        layer, x, mask = make_layer(device)
        with triton_chosen(chosen):
            out = layer(x, mask, return_inner_loss=True)
            tokens = out.tokens[mask]
            (tokens.sin().sum() + out.state.weight.square().sum() + out.state.bias.sum()).backward()
        results.append([tokens, out.inner_loss, *out.state[:-1], *(p.grad for p in layer.parameters())])
    names = [f"d_{name}" for name, _ in layer.named_parameters()]
    return relative_errors(*results, ("tokens", "inner_loss", "weight", "bias", *names))


def padding_error():
    """Compare the state after 16 tokens with that after as many masked ones more."""
    leaves = make_inputs("linear", Shape(2, 2, 32, 16, 16), torch.float32)
    with torch.no_grad():
        leaves[3][:, :, 16:] = 0.0
    with triton_chosen():
        _, short = run("linear", ttt_linear.ttt_linear, [*(x[:, :, :16] for x in leaves[:4]), *leaves[4:]])
        _, long = run("linear", ttt_linear.ttt_linear, leaves)
    return relative_errors(long[:-1], short[:-1], ("weight", "bias"))


def compile_for(capability, width, size):
    """Give the bytes of shared memory that the kernels need on a device, by a driver that only names the device."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        mock.Mock(**{"get_current_target.return_value": target, "get_current_device.return_value": 0}),
    )
    kernels, needed = load_kernels(), []

    class WarmUp:
        """Takes a launch and compiles the kernel for it."""

        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                compiled = self.kernel.warmup(*arguments, grid=grid, **options)
                assert "cubin" in compiled.asm
                needed.append(compiled.metadata.shared)

            return launch

    compiled = copy.copy(kernels)
    compiled.scan, compiled.backward = WarmUp(kernels.scan), WarmUp(kernels.backward)
    shape = Shape(2, 2, 2 * size, width, size)
    with mock.patch("scfusion_fm.model.ttt_linear_triton.load_kernels", return_value=compiled), triton_chosen():
        out, _ = run("linear", ttt_linear.ttt_linear, make_inputs("linear", shape, torch.float32))
        out.sum().backward()
    return needed


def main():
    """Write what was asked for as JSON."""
    torch.set_num_threads(1)
    if sys.argv[1] == "errors":
        result = {case: function_errors(case, "cpu") for case in CASES}
        result |= {"layer": layer_errors("cpu"), "padding": padding_error()}
    else:
        result = compile_for(*(int(x) for x in sys.argv[2:]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
