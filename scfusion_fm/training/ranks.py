"""Who takes part in a run: the processes of a launch, their hosts, and the directory that they share."""

import os
import secrets
import socket
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from torch import distributed

from scfusion_fm.training.collectives import from_rank_0, gather
from scfusion_fm.training.launch import join_launch

_LOOK_AGAIN_S = 0.5


@dataclass(frozen=True)
class Ranks:
    """
    The processes of a launch, as one of them sees them.

    Parameters
    ----------
    rank
        Number of this process, from 0.
    world_size
        Number of processes.
    hosts
        Name of the host of each rank.
    """

    rank: int
    world_size: int
    hosts: tuple[str, ...]

    def name(self, ranks: Iterable[int]) -> str:
        """Write ranks with their hosts, as in `ranks 4-7 on host b; rank 8 on host c`."""
        by_host: dict[str, list[int]] = {}
        for rank in sorted(ranks):
            by_host.setdefault(self.hosts[rank], []).append(rank)
        return "; ".join(f"{_name_numbers(found)} on host {host}" for host, found in by_host.items())


def start_ranks(threads_per_rank: int, timeout_s: float) -> Ranks:
    """
    Join the processes of a launch: by deepspeed, torchrun or srun; a plain `python` call is a launch of one.

    Parameters
    ----------
    threads_per_rank
        CPU threads that this process may use.
    timeout_s
        Seconds that ranks wait for each other, when they join and in every collective.

    Raises
    ------
    ValueError
        If the launch was meant to be of several ranks and is not, or nobody has said where the first is.
    """
    join_launch()
    torch.set_num_threads(threads_per_rank)
    # DeepSpeed would compile an operator for ranks that share a CPU. That takes a minute, a launch that is killed
    # meanwhile leaves a lock on which every later one hangs, and gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # DeepSpeed binds no device to the group of a rank that is alone, and then waits for nobody on the one that is set.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
    # DeepSpeed sets the device of a rank only when it makes the engine, and ranks talk before that.
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=timeout_s)
    # DeepSpeed trains in groups that it makes itself, without a time-out; they would wait as long as torch's default.
    distributed.distributed_c10d.default_pg_timeout = timeout
    distributed.distributed_c10d.default_pg_nccl_timeout = timeout
    if not comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timeout)
    return Ranks(comm.get_rank(), comm.get_world_size(), tuple(gather(socket.gethostname())))


@contextmanager
def leaving_ranks() -> Iterator[None]:
    """
    Part from the other ranks in order when the block is left.

    A process of gloo that just ends may abort, as threads of its groups are still there. Groups of NCCL are left alone
    after an error: to take them down may wait for ranks that are gone.
    """
    try:
        yield
    except BaseException:
        if distributed.get_backend() == "gloo":
            comm.destroy_process_group()
        raise
    comm.barrier(device_ids=_own_device())
    comm.destroy_process_group()


def check_shared(directory: Path, ranks: Ranks, patience_s: float = 30.0) -> None:
    """
    Make the directory of a run, and check that all ranks see the same one and may write there.

    Parameters
    ----------
    directory
        Where the ranks will write.
    ranks
        The ranks.
    patience_s
        Seconds to look for what rank 0 wrote; network file systems may show it late.

    Raises
    ------
    ValueError
        If rank 0 cannot write there, or ranks see another directory or may not write to it.
    """
    file = directory / from_rank_0(lambda: _write_token(directory))
    deadline = time.monotonic() + patience_s
    while not (seen := file.is_file()) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)
    answers = gather(seen and os.access(directory, os.W_OK))
    if ranks.rank == 0:
        file.unlink()
    blind = [rank for rank, answer in enumerate(answers) if not answer]
    if blind:
        raise ValueError(
            f"`output_dir` must be a directory that all hosts share and may write to, got {str(directory)!r}, which is "
            f"not that of rank 0 on host {ranks.hosts[0]} for {ranks.name(blind)}. Choose one on a shared file system."
        )


def _own_device() -> list[int] | None:
    """Give the number of the GPU on which this rank meets others; None without GPUs."""
    accelerator = get_accelerator()
    return [accelerator.current_device()] if accelerator.device_name() == "cuda" else None


def _name_numbers(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks))


def _write_token(directory: Path) -> str:
    """
    Write a file for the other ranks to find; give its name.

    Raises
    ------
    ValueError
        If that cannot be done.
    """
    file = directory / f".seen_by_all_{secrets.token_hex(8)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise ValueError(
            f"`output_dir` must be a directory that may be written to, got {str(directory)!r}: {error}."
        ) from error
    return file.name
