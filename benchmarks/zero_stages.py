"""Compare every ZeRO stage with a plain PyTorch loop, and count what each rank holds.

    python benchmarks/zero_stages.py                 # all tables; about 10 minutes and 16 GB on two cores
    python benchmarks/zero_stages.py --quick         # fewer steps, a small model
    python benchmarks/zero_stages.py --only losses --json OUT

Losses: the same global batches on one process without DeepSpeed, in float32, and on two ranks. Memory: what a rank of
two holds of a model of 200 million parameters, against what ZeRO promises, and the peak of its resident set. Start: how
much building this model adds to the resident set of a rank at most, whole and in parts, before there is an engine; the
first weights are compared bit by bit.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTForPreTraining
from scfusion_fm.config.pretrain import OptimConfig
from scfusion_fm.training.optimizer import BETAS, parameter_groups

RANKS = 2
CELLS = 12  # of a global batch
BOUNDS = {"float32": 1e-5, "bf16": 5e-3, "autocast": 5e-3}  # of the relative difference of losses
SMALL = {"num_rna_tokens": 40, "rna_patch_size": 5, "num_proteins": 20, "hidden_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_decoder_layers": 1, "num_attention_heads": 2, "intermediate_size": 128, "ttt_direction": "alternating"}
LARGE = {"num_rna_tokens": 40, "rna_patch_size": 10, "num_proteins": 20, "hidden_size": 1024, "num_hidden_layers": 5}
LARGE |= {"num_decoder_layers": 4, "num_attention_heads": 16, "intermediate_size": 2048, "ttt_direction": "alternating"}
BUCKET = 5_000_000
# Gradients are clipped to a tenth of what they are, so that clipping matters.
OPTIM = OptimConfig(lr=2e-3, weight_decay=0.05, max_grad_norm=0.5)
PRECISIONS = {
    "float32": {},
    "bf16": {"bf16": {"enabled": True}},
    "autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}


@dataclass(frozen=True)
class Case:
    """One way of training."""

    stage: int
    precision: str = "float32"
    accumulation: int = 1
    checkpointing: bool = False
    offload: bool = False
    buckets: int = BUCKET

    @property
    def name(self) -> str:
        """Short description."""
        extra = [f"accumulation {self.accumulation}"] if self.accumulation > 1 else []
        extra += ["activation checkpointing"] if self.checkpointing else []
        extra += ["CPU offload"] if self.offload else []
        extra += [f"buckets {self.buckets:,}"] if self.buckets != BUCKET else []
        return ", ".join([f"stage {self.stage}", self.precision, *extra])

    @property
    def settings(self) -> dict[str, Any]:
        """DeepSpeed settings."""
        zero = {"stage": self.stage, "reduce_bucket_size": self.buckets, "allgather_bucket_size": self.buckets}
        if self.stage == 3:
            zero |= {"stage3_prefetch_bucket_size": self.buckets, "stage3_param_persistence_threshold": 0}
            zero |= {"stage3_max_live_parameters": 10 * self.buckets, "stage3_max_reuse_distance": 10 * self.buckets}
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {"zero_optimization": zero} | PRECISIONS[self.precision]


def loss_cases(quick: bool) -> Iterator[Case]:
    """List what is compared."""
    for stage in range(4):
        plain = Case(stage)
        yield plain
        yield replace(plain, accumulation=3, checkpointing=True) if quick else replace(plain, accumulation=3)
        if not quick:
            yield replace(plain, checkpointing=True)
            yield replace(plain, precision="autocast")
        if stage and not quick:
            yield replace(plain, offload=True)
        if stage:
            yield replace(plain, precision="bf16")


def memory_cases() -> Iterator[Case]:
    """List what is weighed."""
    for stage in range(4):
        yield Case(stage)
    for stage in (1, 2, 3):
        yield Case(stage, "bf16")
    yield Case(2, buckets=500_000_000)
    yield Case(3, buckets=500_000_000)


def batch(config: ScFusionTTTConfig, step: int, cells: int) -> dict[str, torch.Tensor]:
    """Make up a global batch."""
    chance = torch.Generator().manual_seed(step)
    shapes = {"rna": (cells, config.num_rna_tokens, config.rna_patch_size), "adt": (cells, config.num_proteins)}
    made = {}
    for name, shape in shapes.items():
        made[f"{name}_values"] = torch.rand(shape, generator=chance) * 3
        made[f"{name}_observed"] = torch.rand(shape, generator=chance) < 0.9
        made[f"{name}_bool_masked_pos"] = torch.rand(shape[:2], generator=chance) < 0.3
    return made


def build_model(shape: dict[str, Any]) -> ScFusionTTTForPreTraining:
    """Make the model, the same everywhere."""
    torch.manual_seed(0)
    return ScFusionTTTForPreTraining(ScFusionTTTConfig(**shape))


def train_plainly(shape: dict[str, Any], steps: int) -> dict[str, list[float]]:
    """Train in one process with nothing but PyTorch."""
    model = build_model(shape)
    optimizer = torch.optim.AdamW(parameter_groups(model, OPTIM.weight_decay), lr=OPTIM.lr, betas=BETAS)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(**batch(model.config, step, CELLS)).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.max_grad_norm)))
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "norms": norms}


def train_on_rank(case: Case, shape: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train this rank's share through DeepSpeed; count what it holds before the last update."""
    from scfusion_fm.training.engine import build_engine
    from scfusion_fm.training.parted import building, count_elements

    rank, micro = int(os.environ["RANK"]), CELLS // RANKS // case.accumulation
    with building(case.settings):
        model = build_model(shape)
    numbers = count_elements(model)
    if case.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    engine = build_engine(model, case.settings, replace(OPTIM, micro_batch_size=micro), case.accumulation)
    losses, norms, held = [], [], {}
    for step in range(steps):
        cells, total = batch(model.config, step, CELLS), 0.0
        for turn in range(case.accumulation):
            first = (turn * RANKS + rank) * micro
            output = engine(**{k: v[first : first + micro] for k, v in cells.items()})
            engine.backward(output.loss)
            total += output.loss.item() / case.accumulation
            held = count_bytes(engine)
            engine.step()
        mean = torch.tensor(total, dtype=torch.float64)
        torch.distributed.all_reduce(mean)
        losses.append(mean.item() / RANKS)
        norms.append(float(engine.get_global_grad_norm()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"losses": losses, "norms": norms, "parameters": numbers, "bytes": held, "peak_rss": peak}


def build_on_rank(case: Case, shape: dict[str, Any], in_parts: bool) -> dict[str, Any]:
    """Build the model on this rank; count what that adds to its resident set, and hash the first weights of each."""
    from scfusion_fm.training.parted import building, held_whole

    before, start = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(), time.monotonic()
    with building(case.settings) if in_parts else nullcontext():
        model = build_model(shape)
    seconds = time.monotonic() - start
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    checksum = 0
    for module in model.modules():
        with held_whole(module.parameters(recurse=False)):
            for parameter in module.parameters(recurse=False):
                checksum = zlib.crc32(parameter.detach().numpy().tobytes(), checksum)
    return {"added": added, "seconds": seconds, "checksum": checksum}


def count_bytes(engine: Any) -> dict[str, int]:
    """Weigh the tensors of this rank that ZeRO may partition, after a backward pass."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    parameters = [p.ds_tensor if stage == 3 else p for p in engine.module.parameters()]
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    if stage in (1, 2):
        gradients += [g for group in optimizer.averaged_gradients.values() for g in group or []]
    if stage == 3:
        gradients += [g for group in optimizer.averaged_gradients.values() for g in group or []]
    # a partition that stands for both the weights and their float32 copy is one tensor
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    groups = [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    if stage == 3:
        groups = optimizer.fp32_partitioned_groups_flat
    copies = [p for p in groups if p.untyped_storage().data_ptr() not in weights]
    states = [
        x for s in engine.basic_optimizer.state.values() for x in s.values() if torch.is_tensor(x) and x.numel() > 1
    ]
    parts = {"parameters": parameters, "gradients": gradients, "float32 copy": copies, "moments": states}
    return {name: weigh(tensors) for name, tensors in parts.items()}


def weigh(tensors: list[torch.Tensor]) -> int:
    """Sum the bytes of tensors, each once."""
    once = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in tensors}
    return sum(once.values())


def run_worker(order: Path) -> None:
    """Do one order on a rank; rank 0 writes the results."""
    from scfusion_fm.training.ranks import leaving_ranks, start_ranks

    given = json.loads(order.read_text())
    start_ranks(1, 600.0)
    with leaving_ranks():
        for number, case in enumerate(given["cases"]):
            if "in_parts" in given:
                result = build_on_rank(Case(**case), given["shape"], given["in_parts"])
            else:
                result = train_on_rank(Case(**case), given["shape"], given["steps"])
            if os.environ["RANK"] == "0":
                order.with_suffix(f".{number}.out").write_text(json.dumps(result))


def launch(
    cases: list[Case], shape: dict[str, Any], steps: int, scratch: Path, ranks: int = RANKS, **more: bool
) -> list[dict[str, Any]]:
    """Run cases on some ranks, one after the other in the same processes."""
    order = scratch / f"order_{len(list(scratch.iterdir()))}"
    order.write_text(json.dumps({"cases": [asdict(c) for c in cases], "shape": shape, "steps": steps} | more))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    # What was freed goes back to the system, and is not kept between parts that stay.
    place["MALLOC_MMAP_THRESHOLD_"] = "262144"
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", str(order)],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    codes = [w.wait() for w in workers]
    if any(codes):
        raise SystemExit(f"error: ranks ended with {codes} in {[c.name for c in cases]}")
    return [json.loads(order.with_suffix(f".{n}.out").read_text()) for n in range(len(cases))]


def compare_losses(quick: bool, scratch: Path) -> list[dict[str, Any]]:
    """Train every case, and give the largest relative differences of losses and gradient norms."""
    steps = 8 if quick else 50
    plain = train_plainly(SMALL, steps)
    rows = []
    for stage in range(4):  # stage 3 patches functions of torch: processes of its own
        cases = [c for c in loss_cases(quick) if c.stage == stage]
        for case, result in zip(cases, launch(cases, SMALL, steps, scratch), strict=True):
            row = {"case": case.name, "steps": steps, "bound": BOUNDS[case.precision]}
            for what in ("losses", "norms"):
                pairs = zip(result[what], plain[what], strict=True)
                row[what] = max(abs(a / b - 1) for a, b in pairs)
            row["within"] = row["losses"] < row["bound"]
            rows.append(row)
            print(f"| {row['case']} | {row['losses']:.1e} | {row['norms']:.1e} | {row['bound']:.0e} |", flush=True)
    return rows


def promised(case: Case, parameters: int) -> dict[str, float]:
    """Give the bytes per rank that ZeRO promises, without padding."""
    width = 2 if case.precision == "bf16" else 4
    share = dict.fromkeys((1, 2, 3), 1 / RANKS) | {0: 1.0}
    return {
        "parameters": parameters * width * (1 / RANKS if case.stage == 3 else 1),
        "gradients": parameters * width * (1 / RANKS if case.stage >= 2 else 1),
        "moments": parameters * 8 * share[case.stage],
    }


def weigh_stages(quick: bool, scratch: Path) -> list[dict[str, Any]]:
    """Weigh every case; an AssertionError tells where a rank holds more than 2 % over what is promised."""
    shape, rows = SMALL if quick else LARGE, []
    for case in memory_cases():
        if quick and (case.buckets != BUCKET or case.precision == "bf16"):
            continue
        (result,) = launch([case], shape, 2, scratch)
        row = {"case": case.name, "parameters": result["parameters"], "peak_rss": result["peak_rss"]} | {
            "bytes": result["bytes"],
            "promised": promised(case, result["parameters"]),
        }
        rows.append(row)
        cells = [f"{row['bytes'][k] / 2**20:,.1f}" for k in ("parameters", "gradients", "float32 copy", "moments")]
        print(f"| {case.name} | {' | '.join(cells)} | {row['peak_rss'] / 2**20:,.0f} |", flush=True)
        for what, amount in row["promised"].items():
            assert row["bytes"][what] <= 1.02 * amount + 4096, (case.name, what, row["bytes"][what], amount)
    return rows


def weigh_start(quick: bool, scratch: Path) -> list[dict[str, Any]]:
    """Weigh what building takes, whole and in parts; an AssertionError tells where the first weights differ."""
    rows = []
    for ranks in (2,) if quick else (2, 4):
        made = {}
        for in_parts in (False, True):
            how = {"ranks": ranks, "in_parts": in_parts}
            (made[in_parts],) = launch([Case(3)], SMALL if quick else LARGE, 0, scratch, **how)
            rows.append(how | made[in_parts])
            way, mebibytes = "in parts" if in_parts else "whole", rows[-1]["added"] / 2**20
            print(f"| {ranks} | {way} | {mebibytes:,.0f} | {rows[-1]['seconds']:.1f} |", flush=True)
        assert made[False]["checksum"] == made[True]["checksum"]
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and cases, a small model")
    parser.add_argument("--only", choices=("losses", "memory", "start"))
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for the figures")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return run_worker(args.worker)
    results: dict[str, Any] = {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as scratch:
        if args.only in (None, "losses"):
            print("| against plain PyTorch in float32 | losses | gradient norms | bound |\n|---|---|---|---|")
            results["losses"] = compare_losses(args.quick, Path(scratch))
        if args.only in (None, "memory"):
            print("\n| rank 0 of 2, MiB | parameters | gradients | float32 copy | moments | peak RSS |")
            print("|---|---|---|---|---|---|")
            results["memory"] = weigh_stages(args.quick, Path(scratch))
        if args.only == "start" or (args.only is None and not args.quick):
            print("\n| ranks | built | added to the resident set, MiB | seconds |\n|---|---|---|---|")
            results["start"] = weigh_start(args.quick, Path(scratch))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    if not all(row["within"] for row in results.get("losses", [])):
        raise SystemExit("error: a loss curve differs by more than its bound")
    return None


if __name__ == "__main__":
    main()
