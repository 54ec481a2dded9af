"""TTT-Linear by Triton kernels: exactness under the interpreter and on a GPU, and when they are chosen."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compare_triton import CASES, function_errors, layer_errors, make_layer
from launch import ROOT
from launch import run as launch
from test_ttt_layers import Shape, make_inputs, run
from transformers.dynamic_module_utils import get_imports

from scfusion_fm.model import ttt_linear, ttt_linear_triton
from scfusion_fm.model.ttt_linear_triton import load_kernels, runs_on_triton

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'scfusion-fm[triton]'"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
TOLERANCE = 1e-5  # of the largest value of each tensor


def measure(*arguments, **environment):
    path = os.pathsep.join(str(x) for x in (ROOT, ROOT / "tests", Path(__file__).parent))
    script = Path(__file__).parent / "compare_triton.py"
    return json.loads(
        launch(sys.executable, script, *arguments, cold=True, env={"PYTHONPATH": path} | environment).stdout
    )


@pytest.fixture(scope="module")
def interpreted():
    return measure("errors", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("case", [*CASES, "layer"])
def test_interpreted_kernels_equal_the_reference_in_outputs_and_gradients(interpreted, case):
    assert {name: error for name, error in interpreted[case].items() if not error < TOLERANCE} == {}


@needs_triton
def test_padding_leaves_the_state_untouched_to_the_bit(interpreted):
    assert set(interpreted["padding"].values()) == {0.0}


@needs_triton
def test_kernels_compile_for_a_gpu_and_fit_into_its_shared_memory(tmp_path):
    """The interpreter checks neither types nor layouts nor how much a device holds."""
    needed = measure("compile", "80", "64", "16", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert len(needed) == 3  # forward, and states again and gradients backward
    assert max(needed) <= 64 * 1024


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_kernels_on_a_gpu_equal_the_reference_in_outputs_and_gradients(case):
    errors = function_errors(case, "cuda")
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


@pytest.mark.gpu
@needs_gpu
@needs_triton
def test_layer_on_a_gpu_equals_the_pytorch_path():
    errors = layer_errors("cuda")
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


@pytest.mark.gpu
@needs_gpu
@needs_triton
def test_kernels_on_a_gpu_give_the_same_bits_twice():
    results = []
    for _ in range(2):
        layer, x, mask = make_layer("cuda")
        layer(x, mask).tokens.sum().backward()
        results.append([p.grad for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_state_on_a_gpu_stays_in_float32_under_bfloat16(how):
    layer, x, mask = make_layer("cuda")
    expected = layer(x, mask).tokens[mask]
    if how == "bfloat16":
        layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast("cuda", torch.bfloat16, enabled=how == "autocast"):
        out, state, _ = layer(x, mask)
        out.float().square().sum().backward()
    assert all(weight.dtype == torch.float32 for weight in state[:-1])
    assert (out[mask].float() - expected).norm() < 0.06 * expected.norm()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.fixture
def a_gpu(monkeypatch):
    """Make the dispatch believe in a GPU; give projections and a scale by which it can only be asked."""
    monkeypatch.delenv("SCFUSION_TRITON", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(ttt_linear_triton, "load_kernels", lambda: "kernels")

    def ask(dtype=torch.float32, width=32, size=16, is_cuda=True):
        qkv = SimpleNamespace(is_cuda=is_cuda, device="cuda", dtype=dtype, shape=(2, 64, 3, 4, width))
        return runs_on_triton(qkv, torch.ones(size))

    return ask


def test_kernels_are_chosen_for_what_they_can_do(a_gpu, monkeypatch):
    assert a_gpu()
    assert all(a_gpu(width=width, size=size) for width, size in ttt_linear_triton.WARPS)
    assert not a_gpu(is_cuda=False)
    assert not a_gpu(dtype=torch.float64)
    assert not a_gpu(width=128)
    assert not a_gpu(size=8)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        assert not a_gpu()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not a_gpu()


def test_environment_variable_turns_the_kernels_off(a_gpu, monkeypatch):
    monkeypatch.setenv("SCFUSION_TRITON", "0")
    assert not a_gpu()
    monkeypatch.setenv("SCFUSION_TRITON", "1")
    assert a_gpu()


def test_without_triton_the_kernels_are_not_chosen(a_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "scfusion_fm.model.ttt_linear_kernels", raising=False)
    monkeypatch.setattr(ttt_linear_triton, "load_kernels", load_kernels.__wrapped__)
    assert not a_gpu()


def test_cpu_tensors_take_the_pytorch_path(monkeypatch):
    monkeypatch.setattr(ttt_linear, "TritonTTTLinear", None)
    out, _ = run("linear", ttt_linear.ttt_linear, make_inputs("linear", Shape(1, 1, 16, 16, 16), torch.float32))
    assert out.isfinite().all()


def test_transformers_does_not_take_triton_for_a_requirement():
    for path in (ROOT / "scfusion_fm/model").glob("ttt_*.py"):
        assert "triton" not in get_imports(path), path
