"""Pretrain scFusionTTT on an atlas.

    deepspeed --num_accelerators 2 pretrain/run.py --config configs/pretrain/demo.yaml optim.lr=3e-4

The same command goes on from the newest checkpoint of `output_dir`.
"""

import dataclasses
import json
import math
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config import PretrainConfig, config_differences, save_config
from scfusion_fm.console import parse_config, run_command
from scfusion_fm.data.atlas import Atlas
from scfusion_fm.data.collate import MaskingCollator
from scfusion_fm.data.loader import AtlasLoader
from scfusion_fm.data.order import CellOrder
from scfusion_fm.data.seen import SEEN_CELLS, remember_atlas
from scfusion_fm.training.checkpoint import ATLAS_MANIFEST, RunDirectory
from scfusion_fm.training.engine import build_engine, read_deepspeed_settings
from scfusion_fm.training.log import RunLog
from scfusion_fm.training.loop import PretrainingLoop, Schedule
from scfusion_fm.training.peers import PeerWatch
from scfusion_fm.training.ranks import Ranks, check_shared, start_ranks


def main() -> None:
    """Join the ranks and run the pretraining."""
    # Settings, and who we are among the ranks.
    config = parse_config(PretrainConfig, __doc__)
    ranks = start_ranks(config.run.threads_per_rank, config.run.timeout_s)
    with PeerWatch(ranks, config.run.heartbeat_s):
        pretrain(config, ranks)


def pretrain(config: PretrainConfig, ranks: Ranks) -> None:
    """Run the pretraining from the data to the last checkpoint."""
    rank, world_size = ranks.rank, ranks.world_size
    settings = read_deepspeed_settings(config.deepspeed)
    atlas = Atlas(config.atlas)

    # Cells in an order that does not depend on the ranks; features and masks that do not either.
    optim = config.optim
    reading = dataclasses.asdict(config.loader)
    threads = reading.pop("threads")
    order = CellOrder(atlas.rows_by_dataset("train"), config.seed, **reading)
    loader = AtlasLoader(atlas, order, optim.global_batch_size, optim.micro_batch_size, rank, world_size, threads)
    extractor = ScFusionTTTFeatureExtractor(**atlas.vocabulary.to_dict(), patch_size=config.patch_size)
    collate = MaskingCollator(extractor, **dataclasses.asdict(config.masking), seed=config.seed)

    # The model, the same on all ranks, and its engine.
    model = build_model(config, extractor)
    engine = build_engine(model, settings, optim.micro_batch_size, loader.accumulation_steps, optim)

    # The run: new, or going on.
    identity = identify(config, settings, atlas, world_size)
    check_shared(Path(config.output_dir), ranks)
    directory = RunDirectory(Path(config.output_dir), identity, config_differences)
    if rank == 0:
        save_config(config, directory.path / "config.yaml")
        model.config.save_pretrained(directory.path / "model")
        extractor.save_pretrained(directory.path / "model")
        (directory.path / ATLAS_MANIFEST).write_text(json.dumps(atlas.manifest, indent=1))
        remember_atlas(atlas).save(directory.path / SEEN_CELLS)
    state = directory.resume(engine)
    steps = math.ceil(optim.epochs * len(order) / optim.global_batch_size)
    log = RunLog(
        directory.path,
        rank == 0,
        first_step=state["step"] if state else 0,
        tensorboard=config.run.tensorboard,
        wandb_project=config.run.wandb_project,
    )
    loop = PretrainingLoop(
        engine=engine,
        loader=loader,
        collate=collate,
        read=atlas.read,
        validation_rows=atlas.rows_of("val"),
        schedule=Schedule(steps, math.ceil(steps * optim.warmup_ratio), optim.lr, optim.min_lr_ratio),
        directory=directory,
        log=log,
        cadence=config.run,
    )
    loop.resume(state)
    size = sum(p.numel() for p in model.parameters())
    log.say(
        f"{'resumed' if state else 'new'} run in {directory.path}: step {loop.step} of {steps}, {size:,} parameters, "
        f"{len(order)} training and {len(loop.validation_rows)} validation cells, {world_size} ranks"
    )
    log.say("loader: " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in loader.describe().items()))
    finished = loop.run()
    loader.close()
    log.say(f"checkpoints are in {directory.checkpoints}" if finished else "interrupted")
    log.close()


def build_model(config: PretrainConfig, extractor: ScFusionTTTFeatureExtractor) -> ScFusionTTTForPreTraining:
    """Make the model that fits the vocabulary, with weights that depend on the seed alone."""
    torch.manual_seed(config.seed)
    tokens = {
        "num_rna_tokens": extractor.num_rna_tokens,
        "rna_patch_size": extractor.patch_size,
        "num_proteins": extractor.num_proteins,
    }
    fixed = tokens.keys() & config.model.keys()
    if fixed:
        raise ValueError(f"`model` must not set {sorted(fixed)}: the atlas and `patch_size` decide them.")
    unknown = config.model.keys() - ScFusionTTTConfig.__annotations__.keys()
    if unknown:
        raise ValueError(
            f"`model` must hold fields of ScFusionTTTConfig, got {sorted(unknown)}; "
            f"known: {sorted(ScFusionTTTConfig.__annotations__)}."
        )
    try:
        return ScFusionTTTForPreTraining(ScFusionTTTConfig(**tokens, **config.model))
    except StrictDataclassError as error:
        raise ValueError(f"`model` does not describe a model: {error}") from error


def identify(config: PretrainConfig, settings: dict, atlas: Atlas, world_size: int) -> dict:
    """Collect what may not change when a run is resumed; the cadence of reports and checkpoints may."""
    fixed = dataclasses.asdict(config)
    for key in ("output_dir", "atlas", "run", "deepspeed"):
        del fixed[key]
    del fixed["loader"]["threads"]
    return fixed | {"deepspeed": settings, "atlas": atlas.fingerprint, "world_size": world_size}


if __name__ == "__main__":
    run_command(main)
