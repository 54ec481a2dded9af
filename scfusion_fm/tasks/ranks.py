"""Fine-tuning by the ranks of a launch: what they do together, and what rank 0 does alone."""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from torch import distributed

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.data.scratch import leave_scratch
from scfusion_fm.notices import ScFusionWarning, settings
from scfusion_fm.training.collectives import own_rank
from scfusion_fm.training.launch import is_launched

TIMEOUT_S = 86_400.0  # a rank that died is noticed by its silence; one that is slower than the others is waited for
HEARTBEAT_S = 5.0

P, T = ParamSpec("P"), TypeVar("T")


class _Settings(Protocol):
    optim: FinetuneOptimConfig
    output_dir: str


Config = TypeVar("Config", bound=_Settings)


class _Released(Exception):
    """What remains is for rank 0."""


@contextlib.contextmanager
def joined_ranks(optim: FinetuneOptimConfig) -> Iterator[None]:
    """
    Join the ranks of the launch, if there is one, until the block is left; all but rank 0 are silent.

    A rank that fails or dies ends the others with one message. The block of a rank that is released is left early.

    Parameters
    ----------
    optim
        Threads of a rank, and whether DeepSpeed trains, which makes a single process a rank.

    Raises
    ------
    ValueError
        If the ranks cannot be joined.
    PeerLost
        If another rank dies.
    """
    if distributed.is_initialized() or not (is_launched() or optim.deepspeed):
        yield
        return
    from scfusion_fm.training.peers import PeerWatch  # with DeepSpeed
    from scfusion_fm.training.ranks import start_ranks

    ranks = start_ranks(optim.threads, TIMEOUT_S)
    try:
        with PeerWatch(ranks, HEARTBEAT_S), contextlib.suppress(_Released), _silence(ranks.rank > 0):
            yield
    finally:
        # The others may have ended long before, or be gone; groups of NCCL would wait for them.
        if distributed.get_backend() == "gloo":
            distributed.destroy_process_group()


def by_all_ranks(run: Callable[Concatenate[Config, P], T]) -> Callable[Concatenate[Config, P], T | None]:
    """
    Let a fine-tuning be run by the ranks of the launch; None is given on ranks that are released.

    Parameters
    ----------
    run
        Called with a configuration that has `optim` and `output_dir`. Another call goes on from what it keeps when it
        is interrupted, in the same process, too.
    """

    @functools.wraps(run)
    def run_with_others(config: Config, /, *rest: P.args, **named: P.kwargs) -> T | None:
        try:
            with joined_ranks(config.optim):
                return run(config, *rest, **named)
        except KeyboardInterrupt as interruption:
            if interruption.args:
                raise
            raise KeyboardInterrupt("interrupted; the same command goes on from the newest checkpoint") from None
        finally:
            leave_scratch(config.output_dir)
        return None

    return run_with_others


def leave_rest_to_rank_0() -> None:
    """End the block of `joined_ranks` on all ranks but the first: what follows is for one."""
    if own_rank() > 0:
        raise _Released


@contextlib.contextmanager
def _silence(silent: bool) -> Iterator[None]:
    """Drop what is printed and warned of; another rank tells the same."""
    if not silent:
        yield
        return
    before, settings.verbosity = settings.verbosity, 0
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore", ScFusionWarning)
            yield
    finally:
        settings.verbosity = before
