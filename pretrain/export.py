"""Turn a checkpoint of a run into a Hugging Face directory.

python pretrain/export.py runs/demo/pretrain runs/demo/model
"""

import argparse
import json
from pathlib import Path

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config.command import run_command
from scfusion_fm.data.fingerprints.seen import load_seen
from scfusion_fm.data.locations import check_new_path
from scfusion_fm.inference.export import export_model
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
    model = ScFusionTTTForPreTraining(ScFusionTTTConfig.from_pretrained(args.run / MODEL))
    checkpoint.load_into(model)
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(args.run / MODEL)
    export_model(model, extractor, args.output, describe_run(args.run, checkpoint), load_seen(args.run))
    print(f"wrote {args.output}")


def describe_run(run: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Collect what the model card says about the training."""
    manifest = json.loads((run / ATLAS_MANIFEST).read_text())
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
