"""TTT-Linear by Triton kernels: exactness under the interpreter and on a GPU, and when they are chosen."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compare_triton import CASES, LONG_CASES, function_errors, layer_errors, layer_results, make_layer
from launch import ROOT
from launch import run as launch
from test_ttt_layers import Shape, make_inputs, run
from transformers.dynamic_module_utils import get_imports

from scfusion_fm.model import ttt_linear, ttt_linear_triton
from scfusion_fm.model.ttt_layers import DIRECTIONS
from scfusion_fm.model.ttt_linear_triton import load_kernels, runs_on_triton

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'scfusion-fm[triton]'"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
# Of the largest value of each tensor. Three parts of 10 bits keep nearly all digits of float32, bfloat16 keeps 8 bits;
# the gradient at the scale of a position is the small difference of large numbers.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.04}


def too_large(errors, dtype=torch.float32):
    return {name: error for name, error in errors.items() if not error < TOLERANCES[dtype]}


def compare(what):
    path = os.pathsep.join(str(x) for x in (ROOT, ROOT / "tests", Path(__file__).parent))
    environment = {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    script = Path(__file__).parent / "compare_triton.py"
    return json.loads(launch(sys.executable, script, what, cold=True, env=environment).stdout)


@pytest.fixture(scope="module")
def interpreted():
    return compare("normal")


@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_equal_the_reference_in_outputs_and_gradients(interpreted, case):
    assert too_large(interpreted[case], CASES[case].dtype) == {}


@needs_triton
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_layer_on_interpreted_kernels_equals_the_pytorch_path(interpreted, direction):
    assert too_large(interpreted[direction]) == {}


@needs_triton
def test_padding_leaves_the_state_untouched_to_the_bit(interpreted):
    assert set(interpreted["padding"].values()) == {0.0}


@needs_triton
def test_kernels_give_the_same_bits_twice(interpreted):
    assert interpreted["twice"]


@pytest.mark.slow
@needs_triton
def test_interpreted_kernels_equal_the_reference_in_all_shapes_and_over_long_sequences():
    errors = compare("long")
    wrong = {case: too_large(errors[case], LONG_CASES[case].dtype) for case in LONG_CASES}
    assert {case: found for case, found in wrong.items() if found} == {}


@needs_triton
def test_kernels_compile_to_tensor_cores_within_registers_and_shared_memory(tmp_path):
    """The interpreter checks neither types nor layouts nor how much a device holds."""
    command = [sys.executable, ROOT / "benchmarks/gpu_compile.py", "--devices", "80", "--dtypes", "bfloat16"]
    command += ["--widths", "16", "--sizes", "16", "--json", tmp_path / "kernels.json"]
    launch(*command, cold=True, env={"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / "cache")})
    found = json.loads((tmp_path / "kernels.json").read_text())
    names = {"scan", "read", "reads_backward", "scan_backward", "projections_backward"}
    assert {x["name"] for x in found} == names
    assert all(x["tensor_cores"] > 0 == x["spills"] for x in found)


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("case", CASES | LONG_CASES)
def test_kernels_on_a_gpu_equal_the_reference_in_outputs_and_gradients(case):
    case = (CASES | LONG_CASES)[case]
    assert too_large(function_errors(case, "cuda"), case.dtype) == {}


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_layer_on_a_gpu_equals_the_pytorch_path(direction):
    assert too_large(layer_errors("cuda", direction)) == {}


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", ttt_linear_triton.WARPS, ids=str)
def test_no_kernel_is_turned_down_by_the_check(dtype, shape):
    assert ttt_linear.check_kernels(torch.device("cuda"), dtype, *shape) is None


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("length", [75, 2_000])
def test_kernels_on_a_gpu_give_the_same_bits_twice(length):
    results = [layer_results("cuda", "both", True, length)[0] for _ in range(2)]
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


class PretendedKernels:
    """Reads both ways as the kernels do, by the PyTorch path, and gives outputs that are wrong by a factor."""

    def __init__(self, factor=1.0, error=None):
        self.factor, self.error, self.calls = factor, error, 0

    def apply(self, options, qkv, inner_lr, *others):
        self.calls += 1
        if self.error is not None:
            raise self.error
        assert options.direction == "both"
        both = (torch.cat((x, x.flip(1))) for x in (qkv.float(), inner_lr))
        out, fast = ttt_linear._TTTLinear.apply(options._replace(direction="forward"), *both, *others)
        return torch.cat((out[:1], out[1:].flip(1))).to(qkv.dtype) * self.factor, fast


@pytest.fixture
def pretend(monkeypatch):
    """Let the dispatch take pretended kernels, and give a function that asks it."""
    monkeypatch.setattr(ttt_linear, "runs_on_triton", lambda *arguments: True)
    monkeypatch.setattr(ttt_linear, "CHECKED", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def start(*arguments):
        kernels = PretendedKernels(*arguments)
        monkeypatch.setattr(ttt_linear, "TritonTTTLinear", kernels)
        return kernels

    return start


def ask(dtype=torch.float32):
    return ttt_linear.reads_on_device(torch.zeros(2, 64, 3, 4, 16, dtype=dtype), torch.ones(16))


def test_right_kernels_are_checked_once_for_each_dtype_and_shape(pretend):
    kernels = pretend()
    assert all(ask(dtype) for dtype in TOLERANCES for _ in range(3))
    assert kernels.calls == len(TOLERANCES)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((1.01,), "are wrong there"), ((float("nan"),), "are wrong there"), ((1.0, OSError("no compiler")), "do not run")],
)
def test_wrong_kernels_are_passed_over_with_one_warning(pretend, arguments, reason):
    kernels = pretend(*arguments)
    with pytest.warns(UserWarning, match=f"slower PyTorch path on cpu: its kernels {reason}"):
        assert not ask()
    out, _ = run("linear", ttt_linear.ttt_linear, make_inputs("linear", Shape(1, 1, 32, 16, 16), torch.float32))
    assert out.isfinite().all()
    assert kernels.calls == 1


def test_nothing_is_checked_while_a_graph_is_captured(pretend, monkeypatch):
    kernels = pretend()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not ask()
    assert kernels.calls == 0
    assert ask()


@pytest.fixture
def a_gpu(monkeypatch):
    """Make the dispatch believe in a GPU; give projections and a scale by which it can only be asked."""
    monkeypatch.delenv("SCFUSION_TRITON", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(ttt_linear_triton, "load_kernels", lambda: "kernels")

    def ask(dtype=torch.float32, width=32, size=16, is_cuda=True):
        qkv = SimpleNamespace(is_cuda=is_cuda, device="cuda", dtype=dtype, shape=(2, 64, 3, 4, width))
        return runs_on_triton(qkv, torch.ones(size))

    return ask


def test_kernels_are_chosen_for_what_they_can_do(a_gpu, monkeypatch):
    assert a_gpu()
    assert all(a_gpu(width=width, size=size) for width, size in ttt_linear_triton.WARPS)
    assert a_gpu(dtype=torch.bfloat16)
    assert not a_gpu(is_cuda=False)
    assert not a_gpu(dtype=torch.float64)
    assert not a_gpu(width=128)
    assert not a_gpu(size=8)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
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
