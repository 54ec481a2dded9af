"""Memory of fine-tunings on atlases of several sizes, whose counts are read from disk when they are used.

    python benchmarks/finetuning_memory.py WORK [--cells 100000 200000] [--genes 1000] [--proteins 20] [--hidden 16]
        [--task annotation cross-modal] [--epochs 0.02]

For each number of cells, an atlas of made-up cells is written to the directory WORK (and used again if it is there),
and a model with random weights for its vocabulary. Each script runs to its end, with baselines, calibration and report,
in a process of its own, whose resident memory is noted twice a second. Memory is printed as MiB at the most, and how
much of it each further cell takes.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from serving_memory import watch

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.prepare.synthesize import synthesize_atlas
from scfusion_fm.data.prepare.synthetic import SyntheticSettings
from scfusion_fm.inference.export import export_model

ROOT = Path(__file__).parent.parent
TASKS = {
    "annotation": ["cell_type_annotation.py", "labels_key=cell_type"],
    "cross-modal": ["cross_modal_prediction.py", "optim.num_landmarks=100"],
}


def make_model(atlas: Path, output: Path, hidden: int) -> None:
    """Write a model with random weights over the vocabulary of an atlas."""
    extractor = ScFusionTTTFeatureExtractor(**Atlas(atlas).vocabulary.to_dict(), patch_size=64)
    config = ScFusionTTTConfig(
        num_rna_tokens=extractor.num_rna_tokens,
        rna_patch_size=64,
        num_proteins=extractor.num_proteins,
        hidden_size=hidden,
        num_attention_heads=2,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_decoder_layers=1,
    )
    torch.manual_seed(0)
    export_model(ScFusionTTTForPreTraining(config), extractor, output, {"data": "made up"})


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--proteins", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--epochs", type=float, default=0.02)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    peaks: dict[str, list[float]] = {task: [] for task in args.task}
    for cells in args.cells:
        atlas = args.work / f"atlas_{cells}_{args.genes}_{args.proteins}.zarr"
        if not atlas.exists():
            made = SyntheticSettings(cells, args.genes, n_proteins=args.proteins, n_datasets=2, n_cell_types=6)
            synthesize_atlas(made, atlas)
        model = args.work / "model"
        shutil.rmtree(model, ignore_errors=True)
        make_model(atlas, model, args.hidden)
        for task in args.task:
            script, *settings = TASKS[task]
            output = args.work / f"{task}_{cells}"
            shutil.rmtree(output, ignore_errors=True)
            settings += [f"model={model}", f"data={atlas}", f"output_dir={output}", "memory_gib=0"]
            settings += [f"optim.epochs={args.epochs}", "split.group_key=null"]
            seen = watch([sys.executable, str(ROOT / "finetune" / script), *settings])
            peaks[task].append(max(memory for _, memory in seen) * 1024)
            print(f"{task}, {cells:,} cells: {peaks[task][-1]:,.0f} MiB, {seen[-1][0]:,.0f} s", flush=True)
    for task, found in peaks.items():
        for one, other, fewer, more in zip(found, found[1:], args.cells, args.cells[1:], strict=False):
            print(f"{task}: {(other - one) * 2**20 / (more - fewer):,.0f} bytes a further cell")


if __name__ == "__main__":
    main()
