"""Turn a checkpoint of a run into a Hugging Face directory.

python pretrain/export.py runs/demo/pretrain runs/demo/model
"""

import argparse
from pathlib import Path

import torch

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTForPreTraining
from scfusion_fm.config.command import run_command
from scfusion_fm.data.fingerprints.seen import load_seen
from scfusion_fm.data.locations import check_new_path
from scfusion_fm.inference.export import export_model
from scfusion_fm.inference.model_directory import load_config, load_extractor
from scfusion_fm.records import read_record
from scfusion_fm.training.checkpoint import Checkpoint, newest_checkpoint
from scfusion_fm.training.run_files import ATLAS_MANIFEST, CHECKPOINTS, MODEL


def main() -> None:
    """Gather the weights of all ranks and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a pretraining run")
    parser.add_argument("output", type=Path, help="new directory for the model")
    parser.add_argument("--step", type=int, help="step of the checkpoint; the newest one by default")
    args = parser.parse_args()

    check_new_path(args.output, "output")
    checkpoint = newest_checkpoint(args.run / CHECKPOINTS, args.step)
    config, extractor = load_config(args.run / MODEL), load_extractor(args.run / MODEL)
    check_size(config, checkpoint)
    model = ScFusionTTTForPreTraining(config)
    checkpoint.load_into(model)
    export_model(model, extractor, args.output, describe_run(args.run, checkpoint), load_seen(args.run))
    print(f"wrote {args.output}")


def check_size(config: ScFusionTTTConfig, checkpoint: Checkpoint) -> None:
    """
    Compare the size of a model with that of its checkpoint, before the model is allocated.

    Raises
    ------
    ValueError
        If the model is larger.
    """
    with torch.device("meta"):
        needed = 4 * ScFusionTTTForPreTraining(config).num_parameters()
    held = sum(file.stat().st_size for file in checkpoint.directory.rglob("*"))
    if needed > held:
        raise ValueError(
            f"`run` must hold a checkpoint of its model, got {held:,} bytes for one of {needed:,}. Copy the run again."
        )


def describe_run(run: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """
    Collect what the model card says about the training.

    Raises
    ------
    ValueError
        If the manifest of the atlas is damaged.
    """
    try:
        return _read_facts(read_record(run / ATLAS_MANIFEST, "copy it again"), checkpoint)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{str(run / ATLAS_MANIFEST)!r} must be the manifest of an atlas, got a damaged one ({error!r}). Copy the "
            "run again."
        ) from error


def _read_facts(manifest: dict, checkpoint: Checkpoint) -> dict[str, str]:
    facts = {"checkpoint": checkpoint.directory.name}
    for source in manifest["sources"]:
        facts[f"data set {source['name']}"] = (
            f"{source['cells']} cells, licence {source['licence']}, {source['reference']}"
        )
    facts["cells held out of pretraining"] = (
        f"{manifest['cells_per_split'].get('val', 0)} validation, {manifest['cells_per_split'].get('test', 0)} test"
    )
    facts["atlas"] = manifest["fingerprint"]
    return facts


if __name__ == "__main__":
    run_command(main)
