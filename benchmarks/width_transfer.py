"""
Find out whether the best learning rate of a narrow model is the best of a wider one, with and without muP.

    scfusion prepare --config configs/data/demo.yaml
    python benchmarks/width_transfer.py --atlas runs/demo/atlas.zarr --json rows.json

`standard` is how `pretrain/run.py` trains: with one learning rate and one standard deviation of initial weights at
every width. `muP` is Table 3 of Yang et al. 2022 (arXiv 2203.03466) for Adam, relative to the narrow width, where the
two are the same model and the same updates. With m = width / narrow width:

- matrices of linear layers, which read and write widths that grow: learning rate / m, standard deviation / sqrt(m);
- the heads of the decoders, which read such a width and write genes: learning rate / m, standard deviation / m;
- all else (embeddings, positions, norms, biases, and fast weights, since the width of a TTT head stays): as it is.

The weight decay is multiplied by m where the learning rate is divided by it, so that their product stays. A run is
AdamW with warm-up, cosine and clipping on the cells, order and masks of the package; runs of a seed see the same ones,
whatever the width and learning rate. The model has 2 + 1 + 1 layers. Its training loss is the mean over the last 20
steps. The optimum is the vertex of the parabola in log2 of the learning rate through the lowest loss and its two
neighbours. All takes a quarter of an hour on one core; `--quick` takes seconds and says nothing.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config.pretrain import LoaderConfig, MaskingConfig, OptimConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.stream.collate import MaskingCollator
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder
from scfusion_fm.training.optimizer import BETAS, Schedule, parameter_groups, set_learning_rate

HEAD_WIDTH = 32
LAST_STEPS = 20
RUNS = ("narrow", "standard", "muP")
MASKING = MaskingConfig(0.3, 0.3, 0.1, 0.3)  # of configs/pretrain/demo.yaml
OPTIM = OptimConfig()

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """Widths, the narrow one first; learning rates as powers of 2; seeds; size of a run; genes per token."""

    widths: tuple[int, int]
    powers: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    batch: int
    patch: int


FULL = Plan((32, 128), tuple(range(-11, -4)), (0, 1), 120, 16, 64)
QUICK = Plan((32, 64), (-9, -8, -7), (0,), 2, 4, 64)


@dataclass(frozen=True)
class Cells:
    """What the runs of a seed see: the batches of training in their order, and those of the held-out cells."""

    config: ScFusionTTTConfig
    train: list[Batch]
    held_out: list[Batch]


def draw_cells(atlas: Atlas, plan: Plan, seed: int) -> Cells:
    """Read and mask the cells of a run as `pretrain/run.py` does."""
    extractor = ScFusionTTTFeatureExtractor(**atlas.vocabulary.to_dict(), patch_size=plan.patch)
    collate = MaskingCollator(extractor, MASKING, seed)
    order = CellOrder(atlas.rows_by_dataset("train"), seed, LoaderConfig())
    with AtlasLoader(atlas, order, plan.batch, plan.batch, threads=1) as loader:
        train = [collate(*cells) for _ in range(plan.steps) for cells in loader.next_batch()]
    rows = atlas.rows_of("val")
    held_out = [collate(atlas.read(rows[i : i + 64]), -1) for i in range(0, len(rows), 64)]
    config = ScFusionTTTConfig(
        num_rna_tokens=extractor.num_rna_tokens,
        rna_patch_size=plan.patch,
        num_proteins=extractor.num_proteins,
        num_hidden_layers=2,
        num_fusion_layers=1,
        num_decoder_layers=1,
        ttt_direction="alternating",
    )
    return Cells(config, train, held_out)


def build_model(config: ScFusionTTTConfig, width: int, seed: int) -> ScFusionTTTForPreTraining:
    """Make the model of a width; all have heads of one width, and a wide one has more of them."""
    sizes = {"hidden_size": width, "num_attention_heads": width // HEAD_WIDTH, "intermediate_size": 2 * width}
    torch.manual_seed(seed)
    return ScFusionTTTForPreTraining(ScFusionTTTConfig(**config.to_diff_dict() | sizes))


@torch.no_grad()
def mup_groups(model: nn.Module, times: float) -> list[dict[str, Any]]:
    """Scale the initial weights of a model `times` as wide as the narrow one, and group its parameters."""
    hidden, rest = parameter_groups(model, OPTIM.weight_decay)
    heads = [p for name, p in model.named_parameters() if name.endswith("head_weight")]
    for matrix in hidden["params"]:
        matrix.mul_(times**-0.5)
    for head in heads:
        head.mul_(1 / times)
    known = {id(p) for p in heads}
    rest["params"] = [p for p in rest["params"] if id(p) not in known]
    hidden |= {"lr_ratio": 1 / times, "weight_decay": hidden["weight_decay"] * times}
    return [hidden, rest | {"lr_ratio": 1.0}, {"params": heads, "weight_decay": 0.0, "lr_ratio": 1 / times}]


def train(model: nn.Module, groups: list[dict[str, Any]], cells: Cells, lr: float) -> dict[str, float]:
    """Train on all batches; give the training loss at the end and that of the held-out cells."""
    steps = len(cells.train)
    optimizer = torch.optim.AdamW(groups, betas=BETAS)
    schedule = Schedule(steps, math.ceil(OPTIM.warmup_ratio * steps), lr, OPTIM.min_lr_ratio)
    losses = []
    for step, batch in enumerate(cells.train):
        set_learning_rate(optimizer, schedule.at(step))
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIM.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        scores = [(model(**batch).loss.item(), len(batch["adt_values"])) for batch in cells.held_out]
    held_out = sum(loss * number for loss, number in scores) / sum(number for _, number in scores)
    return {"train": float(np.mean(losses[-LAST_STEPS:])), "held_out": held_out}


def optimum(powers: NDArray, losses: NDArray) -> float:
    """Give the power of 2 at which a parabola through the lowest loss and its neighbours is lowest; NaN at an end."""
    best = int(np.nanargmin(losses))
    if not 0 < best < len(losses) - 1:
        return math.nan
    a, b, _ = np.polyfit(powers[best - 1 : best + 2], losses[best - 1 : best + 2], 2)
    return float(-b / (2 * a))


def measure(atlas: Atlas, plan: Plan) -> list[dict[str, Any]]:
    """Train everything; the narrow model once, since both parametrisations are the same there."""
    narrow, wide = plan.widths
    rows = []
    for seed in plan.seeds:
        cells = draw_cells(atlas, plan, seed)
        for (width, name), power in itertools.product(zip((narrow, wide, wide), RUNS, strict=True), plan.powers):
            model = build_model(cells.config, width, seed)
            groups = mup_groups(model, width / narrow if name == "muP" else 1.0)
            found = train(model, groups, cells, 2.0**power)
            print(f"seed {seed}, {name} {width}, lr 2^{power}: {found['train']:.4f}", file=sys.stderr, flush=True)
            rows.append({"seed": seed, "width": width, "run": name, "power": power} | found)
    return rows


def curves(rows: list[dict[str, Any]], loss: str) -> dict[str, NDArray]:
    """Arrange a loss of all rows as (seeds, learning rates) of each kind of run."""
    seeds = len({row["seed"] for row in rows})
    return {run: np.array([row[loss] for row in rows if row["run"] == run]).reshape(seeds, -1) for run in RUNS}


def summarise(powers: tuple[int, ...], found: dict[str, NDArray]) -> dict[str, Any]:
    """Give optima, and losses at the best learning rate of the narrow model; of the mean first, then seed by seed."""
    at = np.array(powers)
    losses = {run: np.vstack((found[run].mean(0), found[run])) for run in RUNS}
    transferred = int(np.nanargmin(losses["narrow"][0]))
    return {
        "transferred_power": powers[transferred],
        "optima": {run: [optimum(at, x) for x in losses[run]] for run in RUNS},
        "transferred": {run: losses[run][:, transferred] for run in RUNS},
        "lowest": {run: losses[run].min(1) for run in RUNS},
    }


def print_tables(plan: Plan, found: dict[str, NDArray], summary: dict[str, Any]) -> None:
    """Print the loss of every learning rate, mean over seeds, and what the curves say of the mean and of each seed."""
    narrow, wide = plan.widths
    head = f"| {narrow} | {wide}, standard | {wide}, muP |\n|---:|---:|---:|---:|"
    print(f"| learning rate {head}")
    for i, power in enumerate(plan.powers):
        print(f"| 2^{power} | {' | '.join(f'{found[run][:, i].mean():.3f}' for run in RUNS)} |")
    print(f"\n| of the mean, of each seed {head}")
    optima = summary["optima"]
    shifts = {run: np.subtract(optima[run], optima["narrow"]) for run in RUNS}
    for name, figures, form in (
        ("log2 of the optimum", optima, ".1f"),
        (f"octaves from {narrow}", shifts, "+.1f"),
        (f"loss at 2^{summary['transferred_power']}", summary["transferred"], ".3f"),
        ("lowest loss", summary["lowest"], ".3f"),
    ):
        print(f"| {name} | {' | '.join(', '.join(f'{x:{form}}' for x in figures[run]) for run in RUNS)} |")
    print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atlas", required=True, help="directory that `scfusion prepare` wrote")
    parser.add_argument("--json", type=Path, help="write all losses to this file")
    parser.add_argument("--quick", action="store_true", help="two steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan = QUICK if args.quick else FULL
    rows = measure(Atlas(args.atlas), plan)
    for loss, name in (("train", "Training loss"), ("held_out", "Loss of held-out cells")):
        found = curves(rows, loss)
        print(f"{name}, mean over {len(plan.seeds)} seeds:\n")
        print_tables(plan, found, summarise(plan.powers, found))
    if args.json:
        args.json.write_text(json.dumps({"plan": dataclasses.asdict(plan), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
