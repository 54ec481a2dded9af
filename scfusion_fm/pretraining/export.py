"""Turn a checkpoint of a run into a Hugging Face directory."""

from pathlib import Path

import torch

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTForPreTraining
from scfusion_fm.data.fingerprints.seen import load_seen
from scfusion_fm.data.locations import check_new_path
from scfusion_fm.inference.export import export_model
from scfusion_fm.inference.model_directory import load_config, load_extractor
from scfusion_fm.records import read_record
from scfusion_fm.training.checkpoint import Checkpoint, newest_checkpoint
from scfusion_fm.training.run_files import ATLAS_MANIFEST, CHECKPOINTS, MODEL


def export_checkpoint(run: Path, output: Path, step: int | None = None) -> None:
    """
    Gather the weights of all ranks and write the model.

    Parameters
    ----------
    run
        Directory of a pretraining run.
    output
        New directory for the model.
    step
        Step of the checkpoint; the newest one where it is None.

    Raises
    ------
    ValueError
        If the run has no such checkpoint, is damaged, or `output` exists.
    """
    check_new_path(output, "output")
    checkpoint = newest_checkpoint(run / CHECKPOINTS, step)
    config, extractor = load_config(run / MODEL), load_extractor(run / MODEL)
    check_size(config, checkpoint)
    model = ScFusionTTTForPreTraining(config)
    checkpoint.load_into(model)
    export_model(model, extractor, output, describe_run(run, checkpoint), load_seen(run))


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
