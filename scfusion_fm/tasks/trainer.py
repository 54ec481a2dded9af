"""Fine-tuning of a model with its head: the epoch that is best on the validation cells is kept.

It may be stopped or killed and goes on from its newest checkpoint, and several ranks share the cells of each step. Both
change nothing but the last digits, for all chance is drawn from (seed, epoch, cell); see `scfusion_fm.tasks.dropout`.
"""

import copy
import math
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import Collate, choose_device
from scfusion_fm.notices import warn
from scfusion_fm.tasks.adapters import add_adapters, count_trained, merge_adapters
from scfusion_fm.tasks.dropout import draw_features
from scfusion_fm.tasks.epochs import EpochLoop, Objective, read_standing
from scfusion_fm.tasks.ranks import TIMEOUT_S
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.training.checkpoint import Checkpoint
from scfusion_fm.training.checkpoint_store import CheckpointStore
from scfusion_fm.training.collectives import count_ranks, from_rank_0, gather, own_rank
from scfusion_fm.training.fragments import Engine, trained_parameters
from scfusion_fm.training.optimizer import make_adamw, parameter_groups
from scfusion_fm.training.plain_engine import PlainEngine
from scfusion_fm.training.settings import offload_device, read_deepspeed_settings, zero_stage
from scfusion_fm.training.stop import StopRequest

MAX_GRAD_NORM = 1.0


class Trained(NamedTuple):
    """
    What a training says of itself.

    Attributes
    ----------
    parameters
        How many parameters were trained.
    epochs
        After how many passes over the training cells the model was as it is kept; 0 where that is the start.
    """

    parameters: int
    epochs: float


def train_best(
    model: PreTrainedModel,
    partition: Partition,
    collate: Collate,
    objective: Objective,
    settings: FitSettings,
    epochs: float | None = None,
) -> Trained:
    """
    Fine-tune and keep what has the best validation score, the start or an epoch.

    Parameters
    ----------
    model
        The model with its head, as it starts, on the CPU.
    partition
        Which cells train, and which choose; without these, the end of the training is kept.
    collate
        How to prepare cells, whole and without random choices.
    objective
        What is learned, and what is best.
    settings
        Optimisation, seed, and the directory for checkpoints.
    epochs
        Passes over the training cells after which to end; see `EpochLoop`. None trains as long as `settings` say.

    Raises
    ------
    Stopped
        If somebody asked to stop; the same call goes on where `settings` name a directory.
    """
    settings.use_threads()
    if settings.optim.lora_rank:
        add_adapters(model, settings.optim.lora_rank, settings.seed)
    trained = copy.deepcopy(model)  # ZeRO takes it apart; and the other one is the start, for the case that it is best
    with settings.open_directory() as directory, StopRequest(listens=settings.directory is not None) as stop:
        store = CheckpointStore(directory)
        newest = _find_newest(store)
        if newest is not None:
            _load_trained(trained, newest)
        draw_features(trained, settings.seed)
        engine = _build_engine(trained, settings.optim)
        loop = EpochLoop(engine, partition, collate, objective, settings, store, stop, epochs)
        best = loop.run(newest)
        if best is not None:
            _load_trained(model, best)
        kept = 0.0 if best is None else read_standing(best).step / loop.steps_per_epoch
        gather(None)  # nobody removes what others read
    model.to(loop.device)
    num_trained = count_trained(model)
    if settings.optim.lora_rank:
        merge_adapters(model)
    return Trained(num_trained, kept)


def fine_tuning_groups(model: nn.Module, optim: FinetuneOptimConfig) -> list[dict[str, Any]]:
    """Split the trained parameters by learning rate: embeddings of values are slow, a new classifier is fast."""
    head = {id(p) for p in model.classifier.parameters()} if hasattr(model, "classifier") else set()
    groups = []
    for group in parameter_groups(model, optim.weight_decay, optim.embedding_lr_ratio):
        for ratio, fast in ((optim.head_lr_ratio, True), (group.get("lr_ratio", 1.0), False)):
            parameters = [p for p in group["params"] if (id(p) in head) == fast]
            if parameters:
                groups.append({"params": parameters, "weight_decay": group["weight_decay"], "lr_ratio": ratio})
    return groups


def _find_newest(store: CheckpointStore) -> Checkpoint | None:
    """Open the newest checkpoint, if that of the best epoch, which it needs, is as it was written, too."""
    newest, _ = store.newest()
    if newest is None:
        return None
    best_step = read_standing(newest).best_step
    best = store.open(best_step)
    damage = from_rank_0(lambda: best.damage() if best_step else None)
    if damage is None:
        return newest
    if own_rank() == 0:
        warn(f"checkpoint {best.directory.name} is damaged, so the training starts anew: {damage}")
    return None


def _load_trained(model: nn.Module, found: Checkpoint) -> None:
    """Set the weights that are trained."""
    model.load_state_dict(found.weights({name: p.shape for name, p in trained_parameters(model)}), strict=False)


def _build_engine(model: nn.Module, optim: FinetuneOptimConfig) -> Engine:
    """Prepare a model for training: DeepSpeed does where a file for it is given."""
    groups = fine_tuning_groups(model, optim)
    if optim.deepspeed is None:
        model.to(choose_device())
        return PlainEngine(model, make_adamw(groups, 0, False, MAX_GRAD_NORM, lr=optim.lr))
    from scfusion_fm.training.engine import start_engine  # with DeepSpeed, whose import takes seconds
    from scfusion_fm.training.ranks import start_ranks

    start_ranks(optim.threads, TIMEOUT_S)
    settings = read_deepspeed_settings(optim.deepspeed)
    on_cpu = offload_device(settings, "offload_optimizer") == "cpu"
    optimizer = make_adamw(groups, zero_stage(settings), on_cpu, MAX_GRAD_NORM, lr=optim.lr)
    batch = {
        "train_micro_batch_size_per_gpu": math.ceil(optim.batch_size / count_ranks()),
        "gradient_accumulation_steps": 1,
    }
    return start_engine(model, optimizer, settings, batch, MAX_GRAD_NORM)
