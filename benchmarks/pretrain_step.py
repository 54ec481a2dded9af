"""
Measure what a step of pretraining costs beyond forward, backward and optimizer, and print tables.

Each row adds something to the row above it, on the same model, cells and threads:

- `bare`: forward, backward and AdamW in plain PyTorch on tensors that are ready, without clipping;
- `engine`: the same through the DeepSpeed engine that `pretrain/run.py` builds;
- `loader`: and cells are read from an atlas meanwhile;
- `collate`: and are turned into features and masks by the threads of the loader; the model then gets those;
- `whole`: `PretrainingLoop` with its log and TensorBoard, without checkpoints and evaluation;
- `attention`: the bare step of the same architecture with softmax attention instead of the TTT layers.

They take turns, in another order each round; before a turn's time counts, one step is taken, and after it the threads
of the loader come to rest. Medians over the rounds are printed; a ratio is the median of the ratios in each round.
`CPU` counts all threads of the process, and is what to look at when others use the machine. The model is the paper's:
width 128, 6 encoder, 1 fusion and 4 decoder layers, 4,000 genes in patches of 10 and 140 proteins, cells by
`scfusion synthesize`. A line gives the CPU time of loader and collator alone, which a GPU does not shorten, and a
second table how CPU time and memory of the bare step grow with the genes, each size in a process of its own.

Example: `GOMP_SPINCOUNT=1000 python benchmarks/pretrain_step.py --json step.json`, so that threads that wait for one
another give the core away; `--quick` takes a small model, one thread and under a minute.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pretrain_model import LAYERS, SMALL, build_model, build_step
from torch import Tensor

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor
from scfusion_fm.config.pretrain import GuardConfig, LoaderConfig, MaskingConfig, OptimConfig, RunConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.prepare.synthesize import synthesize_atlas
from scfusion_fm.data.prepare.synthetic import SyntheticSettings
from scfusion_fm.data.stream.collate import MaskingCollator
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder
from scfusion_fm.planning.sizing import train_flops
from scfusion_fm.planning.tokens import TokenCounts
from scfusion_fm.training.engine import build_engine
from scfusion_fm.training.guard import StepGuard
from scfusion_fm.training.log import RunLog
from scfusion_fm.training.loop import PretrainingLoop
from scfusion_fm.training.optimizer import Schedule
from scfusion_fm.training.ranks import start_ranks
from scfusion_fm.training.settings import read_deepspeed_settings
from scfusion_fm.training.stop import StopRequest

ROOT = Path(__file__).parent.parent
CHAIN = ("bare", "engine", "loader", "collate", "whole")
TARGET = 1.15
READY_BATCHES = 8


@dataclass(frozen=True)
class Plan:
    """What to measure: cells of the atlas and of a step, genes, rounds, steps of a turn, and sizes to grow through."""

    cells: int
    batch: int
    genes: int
    rounds: int
    steps: int
    growth: tuple[tuple[int, int], ...]  # genes, genes per token
    model: dict[str, int]


FULL = Plan(2_048, 16, 4_000, 5, 3, ((1_000, 10), (4_000, 10), (10_000, 10), (20_000, 10), (4_000, 1)), {})
QUICK = Plan(256, 8, 400, 2, 2, ((400, 10),), SMALL)


class NoCheckpoints:
    """A run directory that keeps nothing."""

    def save(self, *arguments: object) -> None:
        """Do nothing."""


class Steps:
    """
    What the contenders are made of.

    Parameters
    ----------
    plan
        Sizes.
    directory
        Where the atlas is, and the log goes to.
    """

    def __init__(self, plan: Plan, directory: Path):
        self.atlas = Atlas(directory / "atlas.zarr")
        order = CellOrder(self.atlas.rows_by_dataset("train"), 0, LoaderConfig())
        self.extractor = ScFusionTTTFeatureExtractor(**self.atlas.vocabulary.to_dict(), patch_size=10)
        self.loader = AtlasLoader(self.atlas, order, plan.batch, plan.batch)
        collate = MaskingCollator(self.extractor, MaskingConfig())
        self.collating = AtlasLoader(self.atlas, order, plan.batch, plan.batch, collate=collate)
        self.config = ScFusionTTTConfig(
            num_rna_tokens=self.extractor.num_rna_tokens,
            rna_patch_size=self.extractor.patch_size,
            num_proteins=self.extractor.num_proteins,
            **plan.model,
        )
        ready = (cells for _ in range(READY_BATCHES) for cells, _ in self.collating.next_batch())
        self.batches = [cells.inputs for cells in ready]
        self._ready = itertools.cycle(self.batches)
        self._bare, self._attention = (build_step(build_model(self.config, x), self._next_ready) for x in LAYERS)
        settings = read_deepspeed_settings(ROOT / "configs" / "deepspeed" / "zero2.json")
        optim = OptimConfig(global_batch_size=plan.batch, micro_batch_size=plan.batch)
        self._engine = build_engine(build_model(self.config, "TTT"), settings, optim, accumulation_steps=1)
        run = RunConfig()
        self.log = RunLog(directory, run, {})
        self.loop = PretrainingLoop(
            engine=self._engine,
            loader=self.collating,
            validation_rows=self.atlas.rows_of("val"),
            schedule=Schedule(1, 0, optim.lr, 1.0),
            guard=StepGuard(GuardConfig(loss_factor=10.0)),
            stop=StopRequest(),
            directory=NoCheckpoints(),
            log=self.log,
            settings=run,
            flops=lambda tokens: train_flops(self.config, TokenCounts(*tokens)),
        )

    def _next_ready(self) -> dict[str, Tensor]:
        return next(self._ready)

    def _train(self, batch: dict[str, Tensor]) -> None:
        self._engine.backward(self._engine(**batch).loss)
        self._engine.step()

    def bare(self, number: int) -> None:
        """Step on ready tensors in plain PyTorch."""
        for _ in range(number):
            self._bare()

    def attention(self, number: int) -> None:
        """Step the model with attention in plain PyTorch."""
        for _ in range(number):
            self._attention()

    def engine(self, number: int) -> None:
        """Step on ready tensors through DeepSpeed."""
        for _ in range(number):
            self._train(self._next_ready())

    def load(self, number: int) -> None:
        """Step on ready tensors while cells are read."""
        for _ in range(number):
            for _cells in self.loader.next_batch():
                self._train(self._next_ready())

    def collate(self, number: int) -> None:
        """Step on the cells that are read."""
        for _ in range(number):
            for cells, _ in self.collating.next_batch():
                self._train(cells.inputs)

    def whole(self, number: int) -> None:
        """Step as a run does; the progress lines are swallowed."""
        self.loop.schedule = Schedule(self.loop.step + number, 0, 1e-3, 1.0)
        with contextlib.redirect_stdout(io.StringIO()):
            self.loop.run()

    def contenders(self) -> dict[str, Callable[[int], None]]:
        """Give functions that take a number of steps."""
        chain = (self.bare, self.engine, self.load, self.collate, self.whole)
        return dict(zip(CHAIN, chain, strict=True)) | {"attention": self.attention}

    def close(self) -> None:
        """Stop threads."""
        self.loader.close()
        self.collating.close()
        self.log.close()


def wait_for_rest() -> None:
    """Wait until no thread of this process works any more."""
    while True:
        start = time.process_time()
        time.sleep(0.05)
        if time.process_time() - start < 0.005:
            return


def take_turns(contenders: dict[str, Callable[[int], None]], plan: Plan) -> dict[str, list[tuple[float, float]]]:
    """Give wall and CPU milliseconds per step of each contender in each round; the first round does not count."""
    times = {name: [] for name in contenders}
    for turn in range(plan.rounds + 1):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            contenders[name](1)
            wall, cpu = time.monotonic(), time.process_time()
            contenders[name](plan.steps)
            spent = (time.monotonic() - wall, time.process_time() - cpu)
            wait_for_rest()
            if turn:
                times[name].append(tuple(1e3 * seconds / plan.steps for seconds in spent))
    return times


def summarise(times: dict[str, list[tuple[float, float]]], plan: Plan, tokens: float) -> list[dict]:
    """Make a row of each contender: milliseconds, what it adds to the one before, ratio to `bare`, throughput."""
    rows: list[dict] = []
    for name, turns in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*turns, strict=True))
        ratios = [a / b for (a, _), (b, _) in zip(turns, times["bare"], strict=True)]
        row = {"step": name, "ms": wall, "cpu_ms": cpu, "ratio": statistics.median(ratios)}
        row["cpu_ratio"] = statistics.median(a / b for (_, a), (_, b) in zip(turns, times["bare"], strict=True))
        row["added_ms"] = wall - rows[-1]["ms"] if rows and name in CHAIN else None
        row |= {"cells_per_s": 1e3 * plan.batch / wall, "tokens_per_s": 1e3 * plan.batch * tokens / wall}
        rows.append(row)
    whole = next(row["ms"] for row in rows if row["step"] == "whole")
    return [row | {"share": (row["added_ms"] or row["ms"]) / whole} for row in rows]


def measure_alone(steps: Steps, plan: Plan) -> dict[str, float]:
    """Give CPU microseconds per cell, all threads together, of reading and of collating without a model."""

    def drain(loader: AtlasLoader) -> Iterator[float]:
        for _ in range(3):
            wait_for_rest()
            start = time.process_time()
            for _ in range(READY_BATCHES):
                list(loader.next_batch())
            yield 1e6 * (time.process_time() - start) / (READY_BATCHES * plan.batch)

    read = statistics.median(drain(steps.loader))
    return {"loader": read, "collate": statistics.median(drain(steps.collating)) - read}


def measure_growth(plan: Plan, threads: int) -> list[dict]:
    """Measure the bare step at each size, in processes of their own."""
    rows = []
    for (genes, patch), layer in itertools.product(plan.growth, LAYERS):
        command = [sys.executable, str(Path(__file__).with_name("pretrain_model.py")), "--layer", layer]
        command += ["--genes", str(genes), "--patch", str(patch), "--threads", str(threads)]
        command += ["--small", "--repeats", "1"] if plan.model else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
    return rows


def format_steps(rows: list[dict]) -> str:
    """Lay the break-down out as a Markdown table."""
    lines = ["| step | ms | added ms | share | time / bare | CPU ms | CPU / bare | cells/s | tokens/s |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        added = "" if row["added_ms"] is None else f"{row['added_ms']:+,.1f}"
        lines.append(
            f"| {row['step']} | {row['ms']:,.1f} | {added} | {100 * row['share']:.1f} % | {row['ratio']:.3f} | "
            f"{row['cpu_ms']:,.1f} | {row['cpu_ratio']:.3f} | {row['cells_per_s']:,.1f} | {row['tokens_per_s']:,.0f} |"
        )
    return "\n".join(lines)


def format_growth(rows: list[dict]) -> str:
    """Lay the growth out as a Markdown table: a line per size, CPU time of a step, and the ratio of the two."""
    lines = ["| genes | per token | tokens | TTT CPU ms | attention CPU ms | ratio | TTT MiB | attention MiB |"]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for ttt, attention in zip(rows[::2], rows[1::2], strict=True):
        ratio = ttt["cpu_ms"] / attention["cpu_ms"]
        lines.append(
            f"| {ttt['genes']:,} | {ttt['patch']} | {ttt['tokens']:,} | {ttt['cpu_ms']:,.0f} | "
            f"{attention['cpu_ms']:,.0f} | {ratio:.2f} | {ttt['added_mib']:,.0f} | {attention['added_mib']:,.0f} |"
        )
    return "\n".join(lines)


def measure(plan: Plan, threads: int, directory: Path) -> dict:
    """Measure everything."""
    start_ranks(threads, 600.0)
    settings = SyntheticSettings(plan.cells, n_genes=plan.genes, n_datasets=4, n_cell_types=8)
    synthesize_atlas(settings, directory / "atlas.zarr", report=lambda line: None)
    steps = Steps(plan, directory)
    seen = [b["rna_observed"].any(-1).sum() + b["adt_observed"].sum() for b in steps.batches]
    tokens = float(sum(seen)) / (len(seen) * plan.batch)
    rows = summarise(take_turns(steps.contenders(), plan), plan, tokens)
    alone = measure_alone(steps, plan)
    steps.close()
    facts = {"machine": platform.processor() or platform.machine(), "threads": threads, "torch": torch.__version__}
    facts |= {"cells_per_step": plan.batch, "tokens_per_cell": round(tokens, 1)}
    facts["parameters"] = sum(p.numel() for p in steps.loop.engine.module.parameters())
    whole = next(row for row in rows if row["step"] == "whole")
    ratios = {"whole_to_bare": whole["ratio"], "whole_to_bare_cpu": whole["cpu_ratio"]}
    return {"facts": facts, "rows": rows, "cpu_us_per_cell": alone} | ratios


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model and few cells, under a minute")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here")
    parser.add_argument("--threads", type=int, help="of PyTorch; as many as there are cores, one with --quick")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    threads = arguments.threads or (1 if arguments.quick else len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as directory:
        found = measure(plan, threads, Path(directory))
    found["growth"] = measure_growth(plan, threads)
    print(", ".join(f"{key} {value}" for key, value in found["facts"].items()))
    print(format_steps(found["rows"]))
    wall, cpu = found["whole_to_bare"], found["whole_to_bare_cpu"]
    print(f"\nwhole / bare {wall:.3f}, of CPU time {cpu:.3f}; the target is at most {TARGET}")
    print("CPU us per cell: " + ", ".join(f"{k} {v:,.0f}" for k, v in found["cpu_us_per_cell"].items()) + "\n")
    print(format_growth(found["growth"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
