"""Compare the memory that `scfusion_fm.planning.sizing` estimates with what training steps on this machine take.

    python benchmarks/memory.py --json rows.json
    python benchmarks/memory.py --deepspeed configs/deepspeed/zero3_bf16.json
    torchrun --nproc_per_node 2 benchmarks/memory.py --deepspeed configs/deepspeed/zero3_bf16.json

Every case of the first runs in processes of its own: one counts the bytes of all tensors that are alive, the other asks
the kernel for the largest resident memory, less what was there before the model. The others count the tensors of a
DeepSpeed engine on each of its ranks.
"""

import argparse
import json
import subprocess
import sys
import weakref
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTForPreTraining
from scfusion_fm.config.pretrain import OptimConfig
from scfusion_fm.planning.memory import memory_per_gpu
from scfusion_fm.planning.settings import DeepSpeedSettings
from scfusion_fm.planning.sizing import activation_bytes, count_parameters
from scfusion_fm.planning.tokens import TokenCounts

PAPER = {"num_rna_tokens": 400, "num_proteins": 64, "rna_patch_size": 10}
BASE_LIKE = {
    "num_rna_tokens": 1289,
    "rna_patch_size": 16,
    "num_proteins": 343,
    "hidden_size": 320,
    "num_attention_heads": 5,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_decoder_layers": 1,
    "ttt_direction": "alternating",
}
WIDER = BASE_LIKE | {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1024}
CASES = [
    ("paper", PAPER, 4, False),
    ("paper", PAPER, 32, False),
    ("paper", PAPER, 32, True),
    ("base, 2 + 1 + 1 layers", BASE_LIKE, 1, False),
    ("base, 2 + 1 + 1 layers", BASE_LIKE, 4, False),
    ("base, 2 + 1 + 1 layers", BASE_LIKE, 4, True),
]


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors that are alive, and the most that ever were, while entered."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and count what it makes."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.live -= size


def all_visible(config: ScFusionTTTConfig) -> TokenCounts:
    """Give the tokens of cells of which nothing is masked."""
    return TokenCounts(config.num_rna_tokens, 0, config.num_proteins, 0)


def make_cells(config: ScFusionTTTConfig, cells: int) -> tuple[Tensor, ...]:
    """Make arguments of `ScFusionTTTForPreTraining.forward` in which everything is observed and visible."""
    rna = torch.rand(cells, config.num_rna_tokens, config.rna_patch_size)
    adt = torch.rand(cells, config.num_proteins)
    seen = (torch.ones_like(x, dtype=torch.bool) for x in (rna, adt))
    masked = (torch.zeros(cells, n, dtype=torch.bool) for n in (config.num_rna_tokens, config.num_proteins))
    return rna, next(seen), adt, next(seen), *masked


def train(config: ScFusionTTTConfig, cells: int, checkpointing: bool) -> None:
    """Take two steps with gradients that stay, as accumulation keeps them."""
    model = ScFusionTTTForPreTraining(config)
    if checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(*make_cells(config, cells)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def tensor_peak(config: ScFusionTTTConfig, cells: int, checkpointing: bool) -> int:
    """Give the most bytes of tensors that were alive at once in training steps."""
    with LiveBytes() as counter:
        train(config, cells, checkpointing)
    return counter.peak


def resident_peak(config: ScFusionTTTConfig, cells: int, checkpointing: bool) -> int:
    """Give the largest resident memory in training steps, less what was there before; Linux only."""
    tiny = ScFusionTTTConfig(num_rna_tokens=16, num_proteins=16, hidden_size=16)
    train(tiny, 1, checkpointing)  # loads what is loaded when it is first needed
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    train(config, cells, checkpointing)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def estimate(config: ScFusionTTTConfig, cells: int, checkpointing: bool) -> float:
    """Give the estimate for float32 without ranks: weights, gradients, AdamW and activations."""
    activations = activation_bytes(config, all_visible(config), cells, checkpointing, 4)
    settings = DeepSpeedSettings(stage=0, is_bf16=False)
    return memory_per_gpu(count_parameters(config), settings, 1, activations).total


def engine_peak(path: str, cells: int) -> tuple[int, int, float]:
    """
    Train two steps with a DeepSpeed file; give the ranks, the most bytes of tensors on this one, and the estimate.

    Buckets are a tenth of those of the file, which would hide the rest of so small a model; memory that is offloaded
    counts, as on CPU ranks it is the same.
    """
    from scfusion_fm.training.engine import build_engine
    from scfusion_fm.training.ranks import start_ranks
    from scfusion_fm.training.settings import read_deepspeed_settings

    ranks = start_ranks(1, 600.0).world_size
    content = read_deepspeed_settings(path)
    zero = content["zero_optimization"]
    for key in [key for key, value in zero.items() if key != "stage" and type(value) is int]:
        zero[key] //= 10
    if "offload_optimizer" in zero:
        zero["offload_optimizer"]["pin_memory"] = False
    config = ScFusionTTTConfig(**WIDER)
    settings = DeepSpeedSettings.from_json(content)
    with LiveBytes() as counter:
        optim = OptimConfig(lr=1e-4, weight_decay=0.0, micro_batch_size=cells)
        engine = build_engine(ScFusionTTTForPreTraining(config), content, optim, accumulation_steps=1)
        counter.peak = 0  # DeepSpeed needs the whole model at first
        for _ in range(2):
            engine.backward(engine(*make_cells(config, cells)).loss)
            engine.step()
    activations = activation_bytes(config, all_visible(config), cells, False, settings.element_bytes)
    found = memory_per_gpu(count_parameters(config), settings, ranks, activations)
    return ranks, counter.peak, found.total + found.host


MEASURES = {"tensors": tensor_peak, "resident": resident_peak}


def main() -> None:
    """Print the table, or one figure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help="run this case alone, counted from 0")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--deepspeed", metavar="FILE.json", help="measure an engine with these settings, 2 cells a rank"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.deepspeed:
        ranks, peak, expected = engine_peak(args.deepspeed, 2)
        row = (f"{expected / 2**20:,.0f}", f"{peak / 2**20:,.0f}", f"{expected / peak:.2f}")
        print(f"| {Path(args.deepspeed).stem} | {ranks} | {' | '.join(row)} |")
        return
    torch.set_num_threads(1)
    chosen = CASES if args.case is None else CASES[args.case : args.case + 1]
    if args.measure:
        ((_, fields, cells, checkpointing),) = chosen
        print(MEASURES[args.measure](ScFusionTTTConfig(**fields), cells, checkpointing))
        return
    print("| model | parameters | cells | checkpointing | estimate, MiB | tensors, MiB | resident, MiB | ratio |")
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    rows = []
    for i, (name, fields, cells, checkpointing) in enumerate(CASES):
        if args.case not in (None, i):
            continue
        config = ScFusionTTTConfig(**fields)
        row = {"model": name, "cells": cells, "checkpointing": checkpointing}
        row |= {"parameters": count_parameters(config).total, "estimate": estimate(config, cells, checkpointing)}
        for measure in MEASURES:
            command = [sys.executable, __file__, "--measure", measure, "--case", str(i)]
            row[measure] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows.append(row)
        sizes = " | ".join(f"{row[key] / 2**20:,.0f}" for key in ("estimate", *MEASURES))
        print(
            f"| {name} | {row['parameters'] / 1e6:.1f} M | {cells} | {'yes' if checkpointing else 'no'} | {sizes} | "
            f"{row['estimate'] / row['tensors']:.2f} |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
