"""
Time forward and backward of one TTT layer against what it competes with, and print a table.

`ours` is `scfusion_fm.model.ttt_layers.TTTLinear`, `both ways` the same reading in both directions. Their rivals,
all with the same projections and in float32:

- `plain`: the arithmetic of the public layer done its way: dual form, a Python loop that indexes the stacked
  mini-batches, autograd throughout;
- `attention`: causal softmax attention through `scaled_dot_product_attention`;
- `projections`: the projections alone, which is the floor.

Times are medians of CPU seconds of one process, or with `--device cuda` of seconds until the device is done, the
rivals taking turns; memory is the peak of what was allocated between the start of the forward and the end of the
backward pass.
`SCFUSION_TRITON=0` lets `ours` take the PyTorch path on a GPU. Example: `python benchmarks/ttt_layer.py --quick`.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfusion_fm.model.configuration_scfusion_ttt import ScFusionTTTConfig
from scfusion_fm.model.ttt_layers import TTTLinear, TTTProjections
from scfusion_fm.model.ttt_linear import TTTNorm, TTTState

RIVALS = ("ours", "both ways", "plain", "attention", "projections")
MOST_TOKENS = {"plain": 10_000, "attention": 10_000}  # beyond, they take minutes


class PlainTTTLinear(TTTLinear):
    """TTT-Linear as the public layer computes it (Sun et al. 2024), as the baseline."""

    def scan(
        self, projections: TTTProjections, state: TTTState, norm: TTTNorm, inner_loss: Tensor | None
    ) -> tuple[Tensor, TTTState]:
        """Run the dual form with stored eta matrices, indexing mini-batch after mini-batch."""
        size = projections.token_scale.shape[0]
        cos, sin = self.rotation(projections.qkv)
        inputs = [x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4) for x in projections.qkv.unbind(2)]
        q, k, v = inputs  # (N, B, H, M, K)
        q, k = (_rotate_halves(x, cos, sin) for x in (q, k))
        lr = projections.inner_lr.unflatten(1, (-1, size)).permute(1, 0, 3, 2)  # (N, B, H, M)
        eta = projections.token_scale[:, None] * lr.unsqueeze(-2)  # (N, B, H, M, M)
        out = torch.empty_like(q)
        weight, bias = state.weight, state.bias
        for n in range(q.shape[0]):
            q_n, k_n, v_n, eta_n = q[n], k[n], v[n], eta[n]
            gradient = _inner_gradient(k_n @ weight + bias, v_n - k_n, norm)
            attention = torch.tril(q_n @ k_n.mT)
            z = q_n @ weight - (eta_n * attention) @ gradient + (bias - torch.tril(eta_n) @ gradient)
            last = eta_n[..., -1, :, None]
            weight = weight - (last * k_n).mT @ gradient
            bias = bias - (last * gradient).sum(-2, keepdim=True)
            out[n] = q_n + _layer_norm(z, norm)
        return out.permute(1, 0, 3, 2, 4).flatten(1, 2), TTTState(weight, bias)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * torch.cat((cos, cos), -1) + torch.cat((-second, first), -1) * torch.cat((sin, sin), -1)


def _layer_norm(z: Tensor, norm: TTTNorm) -> Tensor:
    std = torch.sqrt(z.var(-1, keepdim=True, unbiased=False) + norm.eps)
    return norm.weight * ((z - z.mean(-1, keepdim=True)) / std) + norm.bias


def _inner_gradient(z: Tensor, target: Tensor, norm: TTTNorm) -> Tensor:
    width = z.shape[-1]
    std = torch.sqrt(z.var(-1, keepdim=True, unbiased=False) + norm.eps)
    z_hat = (z - z.mean(-1, keepdim=True)) / std
    slope = (norm.weight * z_hat + norm.bias - target) * norm.weight
    total = width * slope - slope.sum(-1, keepdim=True) - z_hat * (slope * z_hat).sum(-1, keepdim=True)
    return total / (width * std)


class SoftmaxAttention(nn.Module):
    """Causal attention with fused query, key and value projections."""

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, L, D)."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Projections(SoftmaxAttention):
    """The products of the projections without what is between them."""

    def forward(self, x: Tensor) -> Tensor:
        """Project tokens (B, L, D) and back; each projection gets a gradient."""
        q, k, v = self.qkv_proj(x).chunk(3, -1)
        return self.o_proj(q + k + v)


def build_passes(length: int, batch: int, config: ScFusionTTTConfig, device: str) -> dict[str, Callable[[], object]]:
    """Give for each rival a function that runs forward and backward once."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, config.hidden_size, device=device, requires_grad=True)
    d_out, mask = torch.randn_like(x), torch.ones(batch, length, dtype=torch.bool, device=device)
    ours, both, plain = TTTLinear(config), TTTLinear(config, "both"), PlainTTTLinear(config)
    nn.init.normal_(ours.weight, std=config.initializer_range)
    both.load_state_dict(ours.state_dict(), strict=False)
    plain.load_state_dict(ours.state_dict())
    others = (SoftmaxAttention(config), Projections(config))
    modules = {name: x.to(device) for name, x in zip(RIVALS, (ours, both, plain, *others), strict=True)}

    def run(module: nn.Module) -> tuple[Tensor, ...]:
        out = module(x, mask).tokens if isinstance(module, TTTLinear) else module(x)
        return torch.autograd.grad(out, [x, *module.parameters()], d_out, allow_unused=True)

    return {
        name: (lambda module=module: run(module))
        for name, module in modules.items()
        if length <= MOST_TOKENS.get(name, length)
    }


def read_clock(device: str) -> float:
    """Read CPU seconds of this process, or the time when the GPU is done with what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_times(passes: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Give the median seconds of each, taking turns, after one turn that does not count."""
    times = {name: [] for name in passes}
    for turn in range(repeats + 1):
        for name, function in passes.items():
            start = read_clock(device)
            function()
            if turn:
                times[name].append(read_clock(device) - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_peak_bytes(function: Callable[[], object], device: str) -> int:
    """Give the largest sum of what was allocated and not yet freed while the function ran."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure_matmul_peak(device: str, repeats: int = 5, dtype: torch.dtype = torch.float32) -> float:
    """Give the floating point operations per second of a large product."""
    size = 1024 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    passes = {"product": lambda: a @ a}
    return 2 * size**3 / measure_times(passes, repeats, device)["product"]


def count_operations(name: str, length: int, batch: int, config: ScFusionTTTConfig) -> float:
    """Count the operations of the products of one forward and backward pass, nothing computed twice."""
    width, size = config.head_dim, config.ttt_mini_batch_size
    per_token = 4 * 2 * config.hidden_size**2
    per_head = {"attention": 2 * length * width, "projections": 0.0}  # half of the scores lie in the future
    ttt = 3 * 2 * width * (width + 1) + 2 * 2 * size * width
    per_head["both ways"] = 2 * ttt
    return 3.0 * batch * length * (per_token + config.num_attention_heads * per_head.get(name, ttt))


def measure_length(
    length: int, batch: int, repeats: int, config: ScFusionTTTConfig, peak: float, device: str
) -> list[dict]:
    """Measure every rival at one length."""
    passes = build_passes(length, batch, config, device)
    times = measure_times(passes, repeats, device)
    return [
        {
            "tokens": length,
            "batch": batch,
            "layer": name,
            "seconds": times[name],
            "microseconds_per_token": 1e6 * times[name] / (batch * length),
            "times_ours": times[name] / times["ours"],
            "peak_mib": measure_peak_bytes(function, device) / 2**20,
            "fraction_of_matmul_peak": count_operations(name, length, batch, config) / times[name] / peak,
        }
        for name, function in passes.items()
    ]


def format_table(rows: list[dict]) -> str:
    """Lay the rows out as a Markdown table."""
    lines = [
        "| tokens | layer | ms | us per token | time / ours | peak MiB | of matmul peak |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['batch']} x {row['tokens']:,} | {row['layer']} | {1e3 * row['seconds']:,.3g} "
        f"| {row['microseconds_per_token']:.1f} | {row['times_ours']:.2f} | {row['peak_mib']:,.0f} "
        f"| {row['fraction_of_matmul_peak']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot_rows(rows: list[dict], path: Path) -> None:
    """Draw time per token against length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in RIVALS:
        own = [row for row in rows if row["layer"] == name]
        axes.plot([r["tokens"] for r in own], [r["microseconds_per_token"] for r in own], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="microseconds per token, forward and backward")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="short sequences only, under a minute")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw time per token against length")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; several sequence lengths may be given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, help="turns; fewer for long sequences when not given")
    return parser.parse_args()


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    lengths = arguments.lengths or ([400, 2_000] if arguments.quick else [400, 2_000, 4_000, 10_000, 20_000])
    config = ScFusionTTTConfig(
        hidden_size=arguments.hidden_size, num_attention_heads=arguments.heads, ttt_use_gate=False
    )
    device = arguments.device
    peak = measure_matmul_peak(device)
    rows = []
    for length in lengths:
        repeats = arguments.repeats or min(max(math.ceil(12_000 / length), 3), 9 if arguments.quick else 15)
        rows += measure_length(length, arguments.batch, repeats, config, peak, device)
    machine = (platform.processor() or platform.machine()) if device == "cpu" else torch.cuda.get_device_name()
    facts = {"machine": machine, "torch": torch.__version__, "threads": 1}
    facts |= {"matmul_gflops": peak / 1e9, "hidden_size": arguments.hidden_size, "heads": arguments.heads}
    print(format_table(rows))
    print(
        ", ".join(
            f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
        )
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")
    if arguments.plot:
        plot_rows(rows, arguments.plot)


if __name__ == "__main__":
    main()
