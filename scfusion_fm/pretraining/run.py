"""Pretrain scFusionTTT on an atlas, from the data to the last checkpoint: `scfusion pretrain` and `pretrain/run.py`."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config.loading import save_config
from scfusion_fm.config.pretrain import PretrainConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, remember_atlas
from scfusion_fm.data.stream.collate import MaskingCollator
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder
from scfusion_fm.model.files_scfusion_ttt import update_checksums
from scfusion_fm.planning.recipe import build_model_config
from scfusion_fm.planning.sizing import train_flops
from scfusion_fm.planning.tokens import TokenCounts
from scfusion_fm.training.checkpoint_store import restore
from scfusion_fm.training.collectives import check_same
from scfusion_fm.training.components import start_from_components
from scfusion_fm.training.engine import build_engine
from scfusion_fm.training.guard import StepGuard
from scfusion_fm.training.log import RunLog
from scfusion_fm.training.loop import PretrainingLoop
from scfusion_fm.training.optimizer import build_schedule
from scfusion_fm.training.parted import building, count_elements, load_weights
from scfusion_fm.training.peers import PeerWatch
from scfusion_fm.training.ranks import Ranks, check_shared, leaving_ranks, start_ranks
from scfusion_fm.training.run_directory import RunDirectory
from scfusion_fm.training.run_files import ATLAS_MANIFEST, CONFIG, MODEL
from scfusion_fm.training.settings import precision, read_deepspeed_settings
from scfusion_fm.training.stop import STOPPED, StopRequest


def run_pretraining(config: PretrainConfig) -> None:
    """Join the ranks and run the pretraining, or go on with it. From here on, a signal asks to stop."""
    stop = StopRequest()
    ranks = start_ranks(config.run.threads_per_rank, config.run.timeout_s)
    with leaving_ranks(), PeerWatch(ranks, config.run.heartbeat_s):
        finished = pretrain(config, ranks, stop)
    stop.ignore()
    if not finished:
        sys.exit(STOPPED)


def pretrain(config: PretrainConfig, ranks: Ranks, stop: StopRequest) -> bool:
    """Run the pretraining from the data to the last checkpoint; give whether it is complete."""
    # What is learned from, and how: the same on all ranks.
    deepspeed = read_deepspeed_settings(config.deepspeed)
    atlas = Atlas(config.atlas)
    identity, given = identify(config, deepspeed, atlas), dataclasses.asdict(config)
    check_same(identity | {part: given[part] for part in ("optim", "run", "guard")} | {"deepspeed": deepspeed})

    # Cells in an order that does not depend on the ranks; features and masks that do not either.
    optim, rank, world_size = config.optim, ranks.rank, ranks.world_size
    order = CellOrder(atlas.rows_by_dataset("train"), config.seed, config.loader)
    sizes = (optim.global_batch_size, optim.micro_batch_size)
    extractor = ScFusionTTTFeatureExtractor(**atlas.vocabulary.to_dict(), patch_size=config.patch_size)
    collate = MaskingCollator(extractor, config.masking, config.seed)
    loader = AtlasLoader(atlas, order, *sizes, rank, world_size, config.loader.threads, collate)
    schedule = build_schedule(optim, len(order))

    # The run: new, or going on from its newest checkpoint, whatever ranks and ZeRO stage wrote that.
    with building(deepspeed):
        model = build_model(config, extractor)
    check_shared(Path(config.output_dir), ranks)
    directory = RunDirectory(Path(config.output_dir), identity, config.run)
    checkpoint = directory.newest()
    if checkpoint:
        load_weights(model, checkpoint)
    elif config.start_cells:
        cells = spread(atlas.rows_of("train"), config.start_cells)
        start_from_components(
            model.model, lambda rows: extractor.prepare(**atlas.read(rows).as_counts()), cells, config.seed
        )
    if rank == 0:
        save_config(config, directory.path / CONFIG)
        if not checkpoint:
            describe_run(directory.path, model.config, extractor, atlas)

    # The engine, and the loop with its log.
    engine = build_engine(model, deepspeed, optim, loader.accumulation_steps)
    log = RunLog(directory.path, config.run, identity, checkpoint.step if checkpoint else 0, enabled=rank == 0)
    loop = PretrainingLoop(
        engine=engine,
        loader=loader,
        validation_rows=spread(atlas.rows_of("val"), config.run.eval_cells),
        schedule=schedule,
        guard=StepGuard(config.guard),
        stop=stop,
        directory=directory,
        log=log,
        settings=config.run,
        flops=lambda tokens: train_flops(model.config, TokenCounts(*tokens)),
    )
    if checkpoint:
        loop.load_state_dict(checkpoint.manifest["state"])
        restore(engine, checkpoint, loop.updates)
    log.say(
        f"{'resumed' if checkpoint else 'new'} run in {directory.path}: step {loop.step} of {schedule.total_steps}, "
        f"{count_elements(model):,} parameters, {len(order)} training and {len(loop.validation_rows)} validation "
        f"cells, {world_size} ranks"
    )
    log.say("loader: " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in loader.describe().items()))
    with loader:
        finished = loop.run()
    log.say(f"checkpoints are in {directory.checkpoints}" if finished else "interrupted")
    log.close()
    return finished


def identify(config: PretrainConfig, deepspeed: dict, atlas: Atlas) -> dict:
    """
    Collect what may not change when a run is resumed, since it decides what is learned.

    Ranks, ZeRO stage, micro-batches and the cadence of reports may change. So may the guard, which is set anew when it
    has ended a run.
    """
    fixed = dataclasses.asdict(config)
    for key in ("output_dir", "atlas", "run", "guard", "deepspeed"):
        del fixed[key]
    del fixed["loader"]["threads"]
    del fixed["optim"]["micro_batch_size"]
    return fixed | {"precision": precision(deepspeed), "atlas": atlas.fingerprint}


def build_model(config: PretrainConfig, extractor: ScFusionTTTFeatureExtractor) -> ScFusionTTTForPreTraining:
    """Make the model that fits the vocabulary, with weights that depend on the seed alone."""
    torch.manual_seed(config.seed)
    model = ScFusionTTTForPreTraining(build_model_config(config, extractor))
    if config.run.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def describe_run(path: Path, model: ScFusionTTTConfig, extractor: ScFusionTTTFeatureExtractor, atlas: Atlas) -> None:
    """Write what an export needs beside a checkpoint: model, vocabulary, and which cells were learned from."""
    model.save_pretrained(path / MODEL)
    extractor.save_pretrained(path / MODEL)
    update_checksums(path / MODEL, ["*.json"])
    (path / ATLAS_MANIFEST).write_text(json.dumps(atlas.manifest, indent=1))
    remember_atlas(atlas).save(path / SEEN_CELLS)


def spread(rows: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Take rows at equal distances, at most so many."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), number)).round().astype(int)]
