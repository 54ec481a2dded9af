"""
Measure all that is said of a GPU, in one call of at most ten minutes.

Stages, each of which writes its part into the JSON file as soon as it is done, and is left out when the time is up:

- `tests`: the tests marked `gpu`;
- `layer`: forward and backward of TTT-Linear against causal flash attention, with and without their projections;
- `steps`: steps of the recipes against attention, launched one by one and as a CUDA graph, with the share of the
  floating point operations per second that a large product reaches;
- `profile`: the kernels that take most of a step;
- `warps`: every kernel of TTT-Linear with 1, 2, 4 and 8 warps in the shapes of the recipes: whether forward and
  backward agree with the PyTorch path, give the same bits twice, and how long they take.

`--dry` runs the same on a processor with tiny sizes, which shows that the script works and nothing else. Example:
`python benchmarks/gpu.py gpu.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from pretrain_model import LAYERS, MASK_RATIO, build_model, build_step, make_batch, read_recipe
from torch import Tensor
from torch.nn import functional as F
from ttt_layer import Projections, SoftmaxAttention, measure_matmul_peak, measure_peak_bytes, measure_times

from scfusion_fm import ScFusionTTTConfig
from scfusion_fm.model import ttt_linear, ttt_linear_triton
from scfusion_fm.model.tokens_scfusion_ttt import find_max_lengths
from scfusion_fm.model.ttt_layers import TTTLinear, rotary_embedding
from scfusion_fm.model.ttt_linear import TTTNorm, TTTState, ttt_linear_packed
from scfusion_fm.planning.sizing import train_flops
from scfusion_fm.planning.tokens import TokenCounts

ROOT = Path(__file__).parents[1]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KERNELS = ("scan", "read", "reads_backward", "scan_backward", "projections_backward")


@dataclass
class Sizes:
    """What is measured."""

    layers: list[tuple[int, int, int, int]]  # cells, tokens, heads, head width
    recipes: dict[str, int]  # cells of a step
    shapes: list[tuple[int, int]]  # head width, mini-batch
    warps: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 5


FULL = Sizes(
    layers=[(16, n, 8, 64) for n in (400, 1_024, 1_632, 4_096, 16_384)] + [(8, 1_024, 8, 64)],
    recipes={"human": 64, "base": 32, "large": 8},
    shapes=[(64, 16), (32, 16)],
)
DRY = Sizes([(1, 32, 2, 16)], {"tiny": 2}, [(16, 16)], (4,), 1)


@dataclass
class Report:
    """What was found so far, in a file; `end` is when the time is up."""

    path: Path
    device: str
    end: float
    found: dict = field(default_factory=dict)

    def left(self) -> float:
        """Say how many seconds are left."""
        return self.end - time.monotonic()

    def add(self, stage: str, row: object) -> None:
        """Add a row to a stage, and write all."""
        self.found.setdefault(stage, []).append(row)
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")
        print(stage, json.dumps(row), flush=True)


def describe_device(device: str) -> dict:
    """Say on what everything was measured."""
    facts = {"torch": torch.__version__, "device": device, "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    if device == "cuda":
        import triton

        facts |= {"device": torch.cuda.get_device_name(), "triton": triton.__version__, "cuda": torch.version.cuda}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return facts | {"commit": commit.stdout.strip()}


def run_tests(report: Report, sizes: Sizes) -> Iterator[dict]:
    """Run the tests that need a device."""
    files = ["tests/model/test_ttt_triton.py", "tests/model/test_modeling.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", *files]
    if report.device == "cpu":
        command.append("--collect-only")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=max(report.left() / 3, 1), check=False
    )
    yield {"code": done.returncode, "end": done.stdout[-3_000:]}


@contextmanager
def chosen_warps(kernel: str, warps: int) -> Iterator[None]:
    """Let one kernel have another number of warps."""
    old = ttt_linear_triton.choose_warps
    ttt_linear_triton.choose_warps = lambda name, *shape: warps if name == kernel else old(name, *shape)
    try:
        yield
    finally:
        ttt_linear_triton.choose_warps = old


def compile_warps(capability: int, dtype: str, shape: tuple[int, int], kernel: str, warps: int) -> None:
    """Compile kernels in a process that has no device, so that they lie on disk when they are needed."""
    from gpu_compile import compile_shape

    with chosen_warps(kernel, warps):
        compile_shape(capability, DTYPES[dtype], *shape)


def precompile(sizes: Sizes, seconds: float) -> None:
    """Compile what `sweep_warps` will run, many kernels at a time."""
    capability = int("{}{}".format(*torch.cuda.get_device_capability()))
    jobs = [(capability, d, s, k, w) for d in DTYPES for s in sizes.shapes for k in KERNELS for w in sizes.warps]
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
    waiting = [pool.submit(compile_warps, *job) for job in jobs]
    end = time.monotonic() + seconds
    for job in waiting:
        try:
            job.exception(max(end - time.monotonic(), 0.0))
        except TimeoutError:
            break
    pool.shutdown(wait=False, cancel_futures=True)


def sweep_warps(report: Report, sizes: Sizes) -> Iterator[dict]:
    """Run every kernel with every number of warps."""
    if report.device == "cuda":
        precompile(sizes, report.left() / 3)
    for dtype in DTYPES:
        for width, size in sizes.shapes:
            for kernel in KERNELS:
                for warps in sizes.warps:
                    with chosen_warps(kernel, warps):
                        facts = {"dtype": dtype, "width": width, "size": size, "kernel": kernel, "warps": warps}
                        yield facts | check_and_time(report.device, dtype, width, size, sizes.repeats)


def check_and_time(device: str, dtype: str, width: int, size: int, repeats: int) -> dict:
    """Compare kernels with the PyTorch path and with themselves, and time them."""
    if device == "cpu":
        return {"fault": "there is no device"}
    fault = ttt_linear.check_kernels(torch.device(device), DTYPES[dtype], width, size)
    if fault:
        return {"fault": fault}
    run = partial(build_core((16, 1_024, 8, width), DTYPES[dtype], device, size))
    same = all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    return {"same_bits": same, "ms": 1e3 * measure_times({"core": run}, repeats, device)["core"]}


def build_core(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str, size: int) -> Callable:
    """Give a function that runs TTT-Linear forward and backward on projections that are there."""
    cells, length, heads, width = shape
    qkv = torch.randn(cells, length, 3, heads, width, device=device, dtype=dtype, requires_grad=True)
    rates = torch.rand(cells, length, heads, device=device) / width
    scale = (1.0 / torch.arange(1, size + 1, device=device)).requires_grad_()
    state = TTTState(
        torch.zeros(cells, heads, width, width, device=device), torch.zeros(cells, heads, 1, width).to(device)
    )
    norm = TTTNorm(torch.ones(heads, 1, width, device=device), torch.zeros(heads, 1, width, device=device), 1e-6)
    rates.requires_grad_()
    rotation = rotary_embedding(size, width, 10_000.0, scale.detach())

    def run() -> tuple[Tensor, ...]:
        taken = qkv if dtype == torch.bfloat16 and ttt_linear.reads_on_device(qkv, scale) else qkv.float()
        out, _ = ttt_linear_packed(taken, rates, scale, state, norm, rotation)
        return torch.autograd.grad(out, (qkv, rates, scale), torch.ones_like(out))

    return run


def build_attention(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> Callable:
    """Give a function that runs causal attention forward and backward on projections that are there."""
    cells, length, heads, width = shape
    qkv = torch.randn(3, cells, heads, length, width, device=device, dtype=dtype, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        out = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        return torch.autograd.grad(out, qkv, torch.ones_like(out))

    return run


def build_layers(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> dict[str, Callable]:
    """Give for each rival a function that runs a layer forward and backward, with its projections."""
    cells, length, heads, width = shape
    config = ScFusionTTTConfig(hidden_size=heads * width, num_attention_heads=heads, ttt_use_gate=False)
    x = torch.randn(cells, length, heads * width, device=device, dtype=dtype, requires_grad=True)
    mask, modules = torch.ones(cells, length, dtype=torch.bool, device=device), {"TTT layer": TTTLinear(config)}
    modules |= {"both ways": TTTLinear(config, "both"), "attention layer": SoftmaxAttention(config)}
    modules["projections"] = Projections(config)

    def run(module: torch.nn.Module) -> tuple[Tensor, ...]:
        out = module(x, mask).tokens if isinstance(module, TTTLinear) else module(x)
        return torch.autograd.grad(out, [x, *module.parameters()], torch.ones_like(out), allow_unused=True)

    return {name: partial(run, module.to(device, dtype)) for name, module in modules.items()}


def measure_layers(report: Report, sizes: Sizes) -> Iterator[dict]:
    """Measure TTT-Linear against attention; milliseconds and MiB of one pass forward and backward."""
    for dtype, kind in DTYPES.items():
        for shape in sizes.layers:
            passes = {"TTT": build_core(shape, kind, report.device, 16)}
            passes |= {"attention": build_attention(shape, kind, report.device)}
            passes |= build_layers(shape, kind, report.device)
            times = measure_times(passes, sizes.repeats, report.device)
            memory = {name: measure_peak_bytes(x, report.device) / 2**20 for name, x in passes.items()}
            yield {"dtype": dtype, "shape": shape, "ms": {n: 1e3 * s for n, s in times.items()}, "mib": memory}


def read_size(recipe: str) -> ScFusionTTTConfig:
    """Give the model of a recipe; `tiny` is none."""
    if recipe != "tiny":
        return read_recipe(ROOT / f"configs/pretrain/{recipe}.yaml")
    layers = dict.fromkeys(("num_hidden_layers", "num_fusion_layers", "num_decoder_layers"), 1)
    return ScFusionTTTConfig(num_rna_tokens=19, rna_patch_size=2, num_proteins=5, hidden_size=16, **layers)


def make_step(config: ScFusionTTTConfig, layer: str, cells: int, report: Report) -> Callable[[], None]:
    """Give a step in bf16 on the device, in float32 on a processor; no step waits for the device."""
    batch = make_batch(config, cells)
    batch = {name: x.to(report.device) for name, x in batch.items()} | {"max_lengths": find_max_lengths(batch)}
    model = build_model(config, layer).to(report.device)
    return build_step(model, lambda: batch, bf16=report.device == "cuda", capturable=report.device == "cuda")


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Turn a step into a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure_graph(step: Callable[[], None], repeats: int) -> dict:
    """Time a step as a CUDA graph, and say how much memory it took, also without."""
    row = {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    try:
        graph = capture(step)
    except RuntimeError as error:
        return row | {"graph": str(error)[:500]}
    row["graph_ms"] = 1e3 * measure_times({"step": graph}, repeats + 2, "cuda")["step"]
    torch.cuda.reset_peak_memory_stats()
    return row


def measure_steps(report: Report, sizes: Sizes) -> Iterator[dict]:
    """Measure steps of the recipes, and the share of the operations per second of a large product."""
    dtype = torch.bfloat16 if report.device == "cuda" else torch.float32
    peak = measure_matmul_peak(report.device, sizes.repeats, dtype)
    yield {"matmul_tflops": peak / 1e12}
    for recipe, cells in sizes.recipes.items():
        config = read_size(recipe)
        shares = [r * n for n in (config.num_rna_tokens, config.num_proteins) for r in (1 - MASK_RATIO, MASK_RATIO)]
        for layer in LAYERS:
            step = make_step(config, layer, cells, report)
            row = {"recipe": recipe, "layer": layer, "cells": cells}
            row["ms"] = 1e3 * measure_times({"step": step}, sizes.repeats + 2, report.device)["step"]
            if report.device == "cuda":
                row |= measure_graph(step, sizes.repeats)
            if layer == "TTT":
                operations = train_flops(config, TokenCounts(*shares)) * cells
                row["share_of_matmul"] = 1e3 * operations / min(row["ms"], row.get("graph_ms", row["ms"])) / peak
            yield row


def profile_steps(report: Report, sizes: Sizes) -> Iterator[dict]:
    """Say which kernels take most of a step."""
    kind = "CUDA" if report.device == "cuda" else "CPU"
    for recipe, cells in sizes.recipes.items():
        step = make_step(read_size(recipe), "TTT", cells, report)
        step()
        with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, kind)]) as profile:
            step()
        took = {
            x.key: getattr(x, f"self_{'device' if kind == 'CUDA' else 'cpu'}_time_total")
            for x in profile.key_averages()
        }
        counts = {x.key: x.count for x in profile.key_averages()}
        top = sorted(took, key=took.get, reverse=True)[:25]
        yield {
            "recipe": recipe,
            "ms": sum(took.values()) / 1e3,
            "launches": sum(counts.values()),
            "top": [[name[:90], round(took[name] / 1e3, 3), counts[name]] for name in top],
        }


STAGES = {
    "tests": run_tests,
    "layer": measure_layers,
    "steps": measure_steps,
    "profile": profile_steps,
    "warps": sweep_warps,
}


def run_stage(report: Report, name: str, sizes: Sizes) -> None:
    """Run a stage until it is done or the time is up; a failure ends this stage only."""
    try:
        for row in STAGES[name](report, sizes):
            report.add(name, row)
            if report.left() < 0:
                report.add(name, "the time is up")
                return
    except Exception as error:  # the machine is lent: what can still be measured is
        report.add(name, f"{type(error).__name__}: {error}"[:2_000])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=Path, help="write what is found here")
    parser.add_argument("--dry", action="store_true", help="on a processor with tiny sizes")
    parser.add_argument("--seconds", type=float, default=540.0, help="start nothing new after so long")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES])
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --dry runs without")
    torch.set_num_threads(1)
    report = Report(arguments.json, device, time.monotonic() + arguments.seconds)
    report.add("facts", describe_device(device))
    for name in arguments.stages:
        run_stage(report, name, DRY if arguments.dry else FULL)


if __name__ == "__main__":
    main()
