"""
Pretrain variants of a recipe and compare what they learned on data sets that they have not seen.

Every variant of `ablation_variants.py` is trained with each seed, in plain PyTorch in float32, with the cells, masks,
optimizer and schedule of `pretrain/run.py`. Then, for each data set and without any fine-tuning:

- `F1 RNA`, `F1 protein`, `F1 both`: macro-F1 of logistic regression on what a classifier reads of the frozen model,
  over all cells of 5 folds; its penalty is chosen on validation cells;
- `RNA to protein`: Pearson per protein of proteins that are hidden entirely, over those that the atlas measured;

and, on validation cells of the atlas, `RNA error`: squared error of hidden genes. One file per variant and seed is
written to `--output`, and those that are there are not run again; the table is made of all of them.

Example, on a GPU with 16 cores:
`python benchmarks/ablations.py --data data/public/teaseq_pbmc.h5mu --output runs/ablations --jobs 12 optim.epochs=10`
"""

import argparse
import dataclasses
import itertools
import json
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_variants import (
    VARIANTS,
    Variant,
    build_extractor,
    change_model,
    measure_loss,
    rna_errors,
    start_from_means,
)
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from threadpoolctl import threadpool_limits
from torch import Tensor

from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config.loading import load_config
from scfusion_fm.config.pretrain import MaskingConfig, PretrainConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.data.stream.collate import MaskingCollator
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.protocol.splits import k_folds
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.planning.recipe import build_model_config
from scfusion_fm.training.components import start_from_components
from scfusion_fm.training.optimizer import build_optimizer, build_schedule, set_learning_rate

SHOWN_INPUTS = {"RNA": ("rna",), "protein": ("adt",), "both": ("rna", "adt")}
PENALTIES = (0.01, 0.1, 1.0)
SPREAD = 10.0  # of the features of the regression, so that the penalties mean the same for every model
FEWEST_CELLS = 10  # of a type that is scored
PART = 256
READ_ROWS = 20  # of a data set, to see its panel


def train(
    config: PretrainConfig, variant: Variant, atlas: Atlas, device: str
) -> tuple[ScFusionTTTForPreTraining, ScFusionTTTFeatureExtractor, dict]:
    """Pretrain a variant; give the model, its feature extractor, and what the training took."""
    extractor = build_extractor(variant, atlas.vocabulary, config.patch_size, config.seed)
    torch.manual_seed(config.seed)
    model = ScFusionTTTForPreTraining(build_model_config(config, extractor))
    change_model(model, variant)
    if config.start_cells:
        rows = atlas.rows_of("train")
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), config.start_cells)).astype(int)]
        if variant.start_means:
            start_from_means(model, extractor.prepare(**atlas.read(rows).as_counts()))
        start_from_components(model.model, lambda r: extractor.prepare(**atlas.read(r).as_counts()), rows, config.seed)
    model.to(device).train()
    optim = config.optim
    order = CellOrder(atlas.rows_by_dataset("train"), config.seed, config.loader)
    loader = AtlasLoader(atlas, order, optim.global_batch_size, optim.global_batch_size, threads=config.loader.threads)
    collate = MaskingCollator(extractor, config.masking, config.seed)
    schedule = build_schedule(optim, len(order))
    optimizer = build_optimizer(model, optim, stage=0, on_cpu=False)
    start, waited = time.monotonic(), 0.0
    for step in range(schedule.total_steps):
        set_learning_rate(optimizer, schedule.at(step))
        asked = time.monotonic()
        batches = [collate(*cells) for cells in loader.next_batch()]
        waited += time.monotonic() - asked
        for batch in batches:
            batch = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            measure_loss(variant, model.config, model(**batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    loader.close()
    facts = {"steps": schedule.total_steps, "seconds": time.monotonic() - start, "seconds_of_data": waited}
    return model.eval(), extractor, facts | {"parameters": model.num_parameters()}


@torch.inference_mode()
def measure_reconstruction(
    model: ScFusionTTTForPreTraining,
    extractor: ScFusionTTTFeatureExtractor,
    variant: Variant,
    atlas: Atlas,
    device: str,
) -> float:
    """Give the mean squared error of hidden genes of the validation cells, half of the tokens hidden."""
    collate = MaskingCollator(extractor, MaskingConfig(0.5, 0.5, 0.0, 0.0))
    errors, rows = [], atlas.rows_of("val")
    for start in range(0, len(rows), PART):
        batch = collate(atlas.read(rows[start : start + PART]), 0)
        batch = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
        errors.append(rna_errors(variant, model(**batch), batch))
    return torch.cat(errors).mean().item()


def read_features(
    model: ScFusionTTTForPreTraining,
    extractor: ScFusionTTTFeatureExtractor,
    cells: AlignedCells,
    modalities: tuple[str, ...],
) -> NDArray[np.float64]:
    """Give what a classifier reads of each cell, of which some modalities are shown, (n, 4 D)."""
    rows, collator = np.arange(len(cells.obs)), CellCollator(cells, extractor)
    found = predict_rows(model.model, collator, rows, "modality_pooler_output", modalities, PART)
    return found.reshape(len(rows), -1).astype(np.float64)


def score_features(x: NDArray[np.float64], labels: NDArray[np.str_]) -> float:
    """Give the macro-F1 of logistic regression over the test cells of all folds."""
    predicted = np.empty_like(labels)
    for fold in k_folds(5, labels):
        train, val, test = fold.partition.train, fold.partition.val, fold.partition.test
        scale = SPREAD / np.sqrt(x[train].var(0).sum())
        parts = [(x[rows] - x[train].mean(0)) * scale for rows in (train, val, test)]
        fitted = [LogisticRegression(C=c, max_iter=1000).fit(parts[0], labels[train]) for c in PENALTIES]
        losses = [log_loss(labels[val], f.predict_proba(parts[1]), labels=f.classes_) for f in fitted]
        predicted[test] = fitted[int(np.argmin(losses))].predict(parts[2])
    return f1_score(labels, predicted, average="macro")


@torch.inference_mode()
def score_proteins(
    model: ScFusionTTTForPreTraining,
    extractor: ScFusionTTTFeatureExtractor,
    cells: AlignedCells,
    known: NDArray[np.bool_],
    device: str,
) -> float:
    """Give the mean Pearson correlation over the known proteins, all of which are hidden from the model."""
    found, measured, observed = [], [], []
    collator = CellCollator(cells, extractor)
    for start in range(0, len(cells.obs), PART):
        inputs = collator(np.arange(start, min(start + PART, len(cells.obs))))
        hidden = {"adt_bool_masked_pos": torch.ones_like(inputs["adt_observed"])}
        hidden["rna_bool_masked_pos"] = torch.zeros(inputs["rna_values"].shape[:2], dtype=torch.bool)
        shown = inputs | {"adt_values": torch.zeros_like(inputs["adt_values"])} | hidden
        found.append(model(**{name: x.to(device) for name, x in shown.items()}).adt_reconstruction.float().cpu())
        measured.append(inputs["adt_values"])
        observed.append(inputs["adt_observed"] & torch.from_numpy(known))
    arrays = (torch.cat(x).numpy() for x in (measured, found, observed))
    return protein_scores(*arrays)[1]["pearson_per_protein"]


def score(
    model: ScFusionTTTForPreTraining, extractor: ScFusionTTTFeatureExtractor, path: Path, atlas: Atlas, device: str
) -> dict[str, float]:
    """Score a model on a data set that it has not seen."""
    cells = read_aligned(path, extractor)[1]
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    names, counts = np.unique(labels, return_counts=True)
    scored = np.isin(labels, names[counts >= FEWEST_CELLS])
    found = {}
    for name, modalities in SHOWN_INPUTS.items():
        features = read_features(model, extractor, cells, modalities)
        found[f"F1 {name}"] = score_features(features[scored], labels[scored])
    some = np.concatenate([rows[:READ_ROWS] for rows in atlas.rows_by_dataset("train").values()])
    measured = atlas.read(some).adt_observed.any(0)
    places = getattr(extractor, "protein_places", slice(None))
    found["RNA to protein"] = score_proteins(model, extractor, cells, measured[places], device)
    return found


def run_unit(title: str, seed: int, arguments: argparse.Namespace) -> str:
    """Train and score one variant with one seed, and write what was found; give a line for people."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        return measure_unit(title, seed, arguments)


def measure_unit(title: str, seed: int, arguments: argparse.Namespace) -> str:
    """Do what `run_unit` says, in a process that has one core."""
    variant = VARIANTS[title]
    config = load_config(PretrainConfig, arguments.config, [*arguments.overrides, *variant.overrides, f"seed={seed}"])
    atlas = Atlas(config.atlas)
    model, extractor, found = train(config, variant, atlas, arguments.device)
    found["RNA error"] = measure_reconstruction(model, extractor, variant, atlas, arguments.device)
    found["data"] = {path.stem: score(model, extractor, path, atlas, arguments.device) for path in arguments.data}
    path = arguments.output / f"{title.replace(' ', '_').replace(',', '').replace('%', 'percent')}-{seed}.json"
    unit = {"variant": title, "seed": seed, "settings": describe_settings(arguments), **found}
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(unit, indent=1))
    scratch.rename(path)
    took = f"{found['steps']} steps in {found['seconds']:.0f} s, {found['seconds_of_data']:.0f} s of it for data"
    return f"{title}, seed {seed}: {took}"


def describe_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what has to be the same for all rows of a table."""
    config = dataclasses.asdict(load_config(PretrainConfig, arguments.config, arguments.overrides))
    del config["seed"]
    return {"recipe": config, "data": [path.stem for path in arguments.data]}


def read_units(directory: Path, settings: dict) -> list[dict]:
    """
    Read what was found before.

    Raises
    ------
    ValueError
        If it was found with other settings, which would make rows that cannot be compared.
    """
    units = []
    for path in sorted(directory.glob("*.json")):
        units.append(json.loads(path.read_text()))
        if units[-1]["settings"] != settings:
            raise ValueError(
                f"`--output` must hold results of the same recipe and data, got others in {path}; name another."
            )
    return units


def format_table(units: list[dict]) -> str:
    """Lay out the mean and standard deviation over the seeds of each variant as a Markdown table."""
    columns = [(data, name) for data in units[0]["data"] for name in units[0]["data"][data]]
    lines = ["| variant | seeds | " + " | ".join(f"{data}: {name}" for data, name in columns) + " | RNA error | s |"]
    lines.append("|---|---:|" + "---:|" * (len(columns) + 2))
    for title in VARIANTS:
        own = [unit for unit in units if unit["variant"] == title]
        if own:
            values = [[unit["data"][data][name] for unit in own] for data, name in columns]
            values.append([unit["RNA error"] for unit in own])
            cells = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else f"{v[0]:.3f}" for v in values]
            cells.append(f"{np.median([unit['seconds'] for unit in own]):.0f}")
            lines.append(f"| {title} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain/human.yaml"), help="the recipe")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files with cell types in obs['cell_type']")
    parser.add_argument("--output", type=Path, required=True, help="directory for a file per variant and seed")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", help="settings that replace those of the recipe: key=value")
    return parser.parse_intermixed_args()


def main() -> None:
    """Run what is missing, and print the table."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = describe_settings(arguments)
    done = {(unit["variant"], unit["seed"]) for unit in read_units(arguments.output, settings)}
    todo = [unit[::-1] for unit in itertools.product(arguments.seeds, arguments.variants) if unit[::-1] not in done]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        start = time.monotonic()
        for number, line in enumerate(
            pool.map(run_unit, [t for t, _ in todo], [s for _, s in todo], itertools.repeat(arguments)), 1
        ):
            left = (time.monotonic() - start) / number * (len(todo) - number)
            print(f"{number}/{len(todo)} {line} | about {left:.0f} s left", flush=True)
    print(format_table(read_units(arguments.output, settings)))


if __name__ == "__main__":
    main()
