"""
Long sequences: 1 or 10 genes per token, and what mixes the tokens, in whatever order they stand.

`data` cuts the 2,000 genes that two public sets share or that vary most in the first one, and holds out cells of
TEA-seq and two donors of Kang et al.; `run` pretrains every variant with every seed for the same steps and the same
cells, in plain PyTorch, and writes a file of each, which is not run again; `table` shows them. Nothing is fine-tuned.
Of the held-out cells of each set:

- `error`: squared error of hidden genes, half of the tokens hidden; `in tens`: half of the runs of ten neighbours in
  the genome hidden instead, the same ones for all variants but those with ten genes per token in random order;
- `F1`: macro-F1 of logistic regression on what a classifier reads of the frozen model, over all cells of 5 folds;
- `protein`: Pearson per protein of proteins that are hidden entirely.

Example, an hour on one core:
`python benchmarks/long_sequences.py data SHARED_DATA runs/long && python benchmarks/long_sequences.py run runs/long`
"""

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata
import mudata
import numpy as np
import torch
from ablation_variants import Variant
from ablations import FEWEST_CELLS, read_features, score_features, score_proteins, train
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config.loading import load_config
from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.config.pretrain import PretrainConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.hashing import uniform
from scfusion_fm.data.prepare.job import prepare_atlas
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.data.split import order_by_hash
from scfusion_fm.data.stream.collate import smallest_share
from scfusion_fm.inference.inputs import read_aligned

GENES, TRAIN_CELLS, HELD_OUT_CELLS = 2000, 800, 300
DONORS = ("107", "1039")  # of Kang et al., held out
RUN = 10  # neighbouring genes that are hidden together in `in tens`
PART = 32  # cells at a time
RECIPE = """
output_dir: unused
start_cells: 1600
model:
  hidden_size: 32
  num_attention_heads: 2
  intermediate_size: 64
  num_hidden_layers: 2
  num_fusion_layers: 1
  num_decoder_layers: 1
  ttt_direction: alternating
masking: {rna_ratio: 0.7, adt_ratio: 0.7, hide_rna_probability: 0.15, hide_adt_probability: 0.35}
optim: {epochs: 1, global_batch_size: 4, micro_batch_size: 4, lr: 5.0e-3}
loader: {threads: 1}
"""
MIXERS = {"TTT": "TTT", "attention": "attention", "no mixing": "none"}
VARIANTS = {
    f"{patch} per token, {name}, {order}": Variant((f"patch_size={patch}",), order=order, mixer=mixer, start_means=True)
    for patch in (10, 1)
    for name, mixer in MIXERS.items()
    for order in ("genome", "random")
} | {
    f"1 per token, TTT, {mixer}, genome": Variant(("patch_size=1",), mixer=mixer, start_means=True)
    for mixer in ("not causal", "one update")
}
TITLES = ("error", "error, in tens", "F1 RNA", "F1 both", "protein")


def cut_data(shared: Path, output: Path) -> None:
    """Write training and held-out files of both sets over the same genes, and the atlas of the former."""
    tea = mudata.read_h5mu(shared / "teaseq_pbmc.h5mu")
    kang = anndata.read_h5ad(shared / "kang_pbmc_ctrl.h5ad")
    rna = tea["rna"]
    scaled = np.log1p(rna.X.multiply(1e4 / rna.X.sum(1)).toarray())
    both = rna.var_names.isin(kang.var_names)
    chosen = rna.var_names[np.lexsort((-scaled.var(0), ~both))[:GENES]]
    chosen = rna.var_names[rna.var_names.isin(chosen)]
    tea = mudata.MuData({"rna": rna[:, chosen].copy(), "adt": tea["adt"].copy()})
    kang = kang[:, kang.var_names.isin(chosen)].copy()
    output.mkdir(parents=True, exist_ok=True)
    order = order_by_hash(list(tea.obs_names), 0)
    parts = {"train": order[:TRAIN_CELLS], "test": order[TRAIN_CELLS : TRAIN_CELLS + HELD_OUT_CELLS]}
    for part, rows in parts.items():
        tea[rows].copy().write_h5mu(output / f"tea_{part}.h5mu")
    held_out = kang.obs["donor"].astype(str).isin(DONORS).to_numpy()
    order = order_by_hash(list(kang.obs_names), 0)
    for part, rows in (("train", order[~held_out[order]][:TRAIN_CELLS]), ("test", order[held_out[order]])):
        kang[rows[: TRAIN_CELLS if part == "train" else HELD_OUT_CELLS]].copy().write_h5ad(output / f"kang_{part}.h5ad")
    sources = [SourceConfig(str(output / name)) for name in ("tea_train.h5mu", "kang_train.h5ad")]
    (output / "recipe.yaml").write_text(RECIPE)
    prepare_atlas(
        PrepareConfig(
            output=str(output / "atlas.zarr"),
            sources=sources,
            genes="sources",
            proteins="sources",
            split=SplitConfig(val_fraction=0.0, test_fraction=0.0),
        )
    )


def draw_masks(inputs: dict[str, Tensor], extractor: ScFusionTTTFeatureExtractor, rows: NDArray, run: int) -> Tensor:
    """Hide half of the tokens (B, N), such that neighbours in the genome are hidden together in runs where they can."""
    settings = extractor.to_dict() | {"patch_size": run}
    runs = ScFusionTTTFeatureExtractor(**settings).patch_genes()
    run_of = np.empty(runs.max() + 1, dtype=np.int64)
    run_of[runs] = np.arange(len(runs))[:, None]
    first = extractor.patch_genes()[:, 0]  # a gene of each token
    draw = uniform(0, rows[:, None], run_of[first][None, :]) + 1e-9 * np.arange(len(first))
    return torch.from_numpy(smallest_share(draw, inputs["rna_observed"].any(-1).numpy(), 0.5))


@torch.inference_mode()
def measure_error(
    model: ScFusionTTTForPreTraining, extractor: ScFusionTTTFeatureExtractor, cells: AlignedCells, run: int
) -> float:
    """Give the mean over cells of the squared error of hidden genes; proteins are shown."""
    errors = []
    for start in range(0, len(cells.obs), PART):
        rows = np.arange(start, min(start + PART, len(cells.obs)))
        inputs = dict(extractor(**cells.as_counts(rows)))
        masked = draw_masks(inputs, extractor, rows, run)
        if "adt_values" not in inputs:
            empty = torch.zeros(len(rows), extractor.num_proteins)
            inputs |= {"adt_values": empty, "adt_observed": empty.bool()}
        hidden = {"rna_bool_masked_pos": masked, "adt_bool_masked_pos": torch.zeros_like(inputs["adt_observed"])}
        found = model(**inputs, **hidden).rna_reconstruction
        target = inputs["rna_observed"] & masked.unsqueeze(-1)
        error = (found - inputs["rna_values"]).masked_fill(~target, 0.0).square()
        errors.append(error.flatten(1).sum(1) / target.flatten(1).sum(1))
    return torch.cat(errors).mean().item()


def score(model: ScFusionTTTForPreTraining, extractor: ScFusionTTTFeatureExtractor, path: Path) -> dict[str, float]:
    """Score a model on held-out cells."""
    cells = read_aligned(path, extractor, min_coverage=0.0)[1]
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    names, counts = np.unique(labels, return_counts=True)
    scored = np.isin(labels, names[counts >= FEWEST_CELLS])
    found = {
        "error": measure_error(model, extractor, cells, 1),
        "error, in tens": measure_error(model, extractor, cells, RUN),
        "F1 RNA": score_features(read_features(model, extractor, cells, ("rna",))[scored], labels[scored]),
    }
    if cells.adt_observed.any():
        features = read_features(model, extractor, cells, ("rna", "adt"))[scored]
        places = getattr(extractor, "protein_places", slice(None))
        known = cells.adt_observed[places]
        found["F1 both"] = score_features(features, labels[scored])
        found["protein"] = score_proteins(model, extractor, cells, known, "cpu")
    return found


def measure_mean(directory: Path) -> dict[str, float]:
    """Give the error of predicting the mean of each gene over the training cells of its set."""
    atlas = Atlas(directory / "atlas.zarr")
    extractor = ScFusionTTTFeatureExtractor(**atlas.vocabulary.to_dict(), patch_size=1)
    found = {}
    for name in ("tea", "kang"):
        values = []
        for part in ("train", "test"):
            cells = read_aligned(next(directory.glob(f"{name}_{part}.*")), extractor, min_coverage=0.0)[1]
            values.append(extractor(**cells.as_counts(np.arange(len(cells.obs))))["rna_values"][..., 0].numpy())
            values[-1] = values[-1][:, cells.rna_observed]
        found[name] = float(np.square(values[1] - values[0].mean(0)).mean())
    return found


def run(directory: Path, seeds: list[int], variants: list[str], overrides: list[str]) -> None:
    """Train and score what has not been: every variant with the first seed, then with the next."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for seed, title in itertools.product(seeds, variants):
        variant = VARIANTS[title]
        path = directory / f"{title.replace(', ', '-').replace(' ', '_')}-{seed}.json"
        if path.exists():
            continue
        given = [f"seed={seed}", f"atlas={directory / 'atlas.zarr'}", *overrides, *variant.overrides]
        recipe = load_config(PretrainConfig, directory / "recipe.yaml", given)
        with threadpool_limits(1):
            started = time.process_time()
            model, extractor, found = train(recipe, variant, Atlas(recipe.atlas), "cpu")
            found["cpu_seconds"] = time.process_time() - started
            found["data"] = {
                name: score(model, extractor, next(directory.glob(f"{name}_test.*"))) for name in ("tea", "kang")
            }
        unit = {"variant": title, "seed": seed, "overrides": overrides, **found}
        path.with_suffix(".part").write_text(json.dumps(unit, indent=1))
        path.with_suffix(".part").rename(path)
        print(f"{title}, seed {seed}: {found['steps']} steps in {found['cpu_seconds']:.0f} s of CPU time", flush=True)


def format_rows(units: list[dict]) -> Iterator[str]:
    """Lay out mean and standard deviation over the seeds of each variant as rows of a Markdown table."""
    columns = [(data, title) for title in TITLES for data in ("tea", "kang") if title in units[0]["data"][data]]
    yield "| variant | seeds | " + " | ".join(f"{data}: {title}" for data, title in columns) + " | CPU s per step |"
    yield "|---|---:|" + "---:|" * (len(columns) + 1)
    for name in VARIANTS:
        own = [unit for unit in units if unit["variant"] == name]
        if own:
            values = [[unit["data"][data][title] for unit in own] for data, title in columns]
            cells = [f"{np.mean(v):.4f} ± {np.std(v, ddof=min(1, len(v) - 1)):.4f}" for v in values]
            cells.append(f"{np.median([unit['cpu_seconds'] / unit['steps'] for unit in own]):.2f}")
            yield f"| {name} | {len(own)} | " + " | ".join(cells) + " |"


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write files and atlas")
    data.add_argument("shared", type=Path, help="directory with teaseq_pbmc.h5mu and kang_pbmc_ctrl.h5ad")
    data.add_argument("directory", type=Path)
    runs = commands.add_parser("run", help="train and score")
    runs.add_argument("directory", type=Path)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    runs.add_argument("overrides", nargs="*", help="settings that replace those of the recipe: key=value")
    table = commands.add_parser("table", help="show what was found")
    table.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "data":
        cut_data(arguments.shared, arguments.directory)
    elif arguments.command == "run":
        run(arguments.directory, arguments.seeds, arguments.variants, arguments.overrides)
    else:
        print(
            *format_rows([json.loads(path.read_text()) for path in sorted(arguments.directory.glob("*.json"))]),
            sep="\n",
        )
        print("error of the mean of each gene:", measure_mean(arguments.directory))


if __name__ == "__main__":
    main()
