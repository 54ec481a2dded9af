"""The DeepSpeed engine of a run: process group, optimizer and settings."""

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import comm
from torch import nn


def start_ranks(threads_per_rank: int) -> tuple[int, int]:
    """
    Join the processes of a launch; a plain `python` call is a launch of one.

    Parameters
    ----------
    threads_per_rank
        CPU threads that this process may use.

    Returns
    -------
    Rank of this process and number of ranks.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ.update(alone)
    torch.set_num_threads(threads_per_rank)
    # DeepSpeed would compile an operator for ranks that share a CPU. That takes a minute, a launch that is killed
    # meanwhile leaves a lock on which every later one hangs, and gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return comm.get_rank(), comm.get_world_size()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters: matrices of linear layers decay, embeddings, norms, biases and fast weights do not."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def read_deepspeed_settings(path: str | Path) -> dict[str, Any]:
    """
    Read a DeepSpeed JSON file.

    Raises
    ------
    ValueError
        If it is missing, is no JSON, or sets what the training configuration decides.
    """
    path = Path(path)
    try:
        settings = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"`deepspeed` must be a readable JSON file, got {str(path)!r}: {error}.") from error
    ours = {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
    } & settings.keys()
    if ours:
        raise ValueError(
            f"`deepspeed` must leave {sorted(ours)} to the `optim` settings of the run, got them in {str(path)!r}."
        )
    return settings


def build_engine(
    model: nn.Module,
    settings: dict[str, Any],
    micro_batch_size: int,
    accumulation_steps: int,
    optim: Any,
) -> deepspeed.DeepSpeedEngine:
    """
    Wrap a model for training on all ranks.

    Parameters
    ----------
    model
        The model, the same on every rank.
    settings
        DeepSpeed settings without batch sizes, optimizer and schedule.
    micro_batch_size
        Cells per rank and forward pass.
    accumulation_steps
        Forward passes per optimizer step.
    optim
        Has `lr`, `weight_decay` and `max_grad_norm`.
    """
    settings = copy.deepcopy(settings) | {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": optim.max_grad_norm,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(decay_groups(model, optim.weight_decay), lr=optim.lr, betas=(0.9, 0.95))
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
