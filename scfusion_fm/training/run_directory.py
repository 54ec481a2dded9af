"""The directory of a run: its settings and its checkpoints, which all ranks write and read together."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import comm

from . import checkpoint
from .checkpoint import CHECKPOINTS, Checkpoint
from .fragments import live_fragments, own_fragments, set_updates

IDENTITY = "run.json"


class RunDirectory:
    """
    Keep what belongs to one run together, and refuse to mix it with another.

    Parameters
    ----------
    path
        Directory of the run; made when missing.
    identity
        What must not change between a run and its continuation: settings and atlas.
    differences
        Lists how two identities differ, as lines for people.

    Raises
    ------
    ValueError
        If the directory holds something else, or a run with another identity.
    """

    def __init__(self, path: Path, identity: dict[str, Any], differences: Callable[[Any, Any], list[str]]):
        self.path = path
        # Rank 0 alone looks and writes; all ranks hear its verdict, so that they stop together.
        verdict = from_rank_0(lambda: self._claim(identity, differences))
        if verdict is not None:
            raise ValueError(verdict)

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / CHECKPOINTS

    def _claim(self, identity: dict[str, Any], differences: Callable[[Any, Any], list[str]]) -> str | None:
        """Write the identity of a new run, or compare it; give what is wrong, or None."""
        known = self.path / IDENTITY
        occupied = self.path.exists() and any(self.path.iterdir())
        if occupied and not known.exists():
            return f"`output_dir` must be new, empty or a run to resume, got {str(self.path)!r} with other files."
        if checkpoint.complete_checkpoints(self.checkpoints):
            changed = differences(json.loads(known.read_text()), identity)
            if changed:
                return (
                    f"`output_dir` {str(self.path)!r} holds a run with other settings: {'; '.join(changed)}. "
                    "Choose another directory, or go on with the old settings."
                )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(self.checkpoints)
        checkpoint.write_atomically(known, json.dumps(identity, indent=1))
        return None

    def newest(self) -> Checkpoint | None:
        """
        Open the newest checkpoint whose files are as they were written; None if the run has none yet.

        Every rank checks a share of the files. A damaged checkpoint is told of, and left where it is.

        Raises
        ------
        ValueError
            If there are checkpoints, and all of them are damaged.
        """
        names = from_rank_0(lambda: [d.name for d in checkpoint.complete_checkpoints(self.checkpoints)])
        damages = []
        for name in reversed(names):
            found = Checkpoint(self.checkpoints / name)
            damage = found.damage(slice(comm.get_rank(), None, comm.get_world_size()))
            damages = [d for d in gather(damage) if d is not None]
            if not damages:
                return found
            if comm.get_rank() == 0:
                print(f"warning: checkpoint {name} is damaged and not used: {damages[0]}", file=sys.stderr)
        if damages:
            raise ValueError(
                f"`output_dir` must hold at least one intact checkpoint, got {len(names)} damaged ones in "
                f"{str(self.checkpoints)!r}. Copy them again, or move them away to start anew."
            )
        return None

    def save(
        self, engine: deepspeed.DeepSpeedEngine, step: int, state: dict[str, Any], keep: int, keep_every: int = 0
    ) -> None:
        """
        Write a checkpoint from all ranks, then remove old ones.

        Parameters
        ----------
        engine
            Whose weights and moments are written.
        step, state
            Position of the run, and what else it needs to go on from there, as JSON holds it.
        keep, keep_every
            The newest `keep` checkpoints stay, and those of every `keep_every`-th step (0: none).

        Raises
        ------
        OSError
            On all ranks, if one of them could not write; older checkpoints are as they were.
        """
        scratch = self.checkpoints / from_rank_0(lambda: checkpoint.start_checkpoint(self.checkpoints, step).name)
        try:
            files = together(lambda: checkpoint.write_rank(scratch, comm.get_rank(), own_fragments(engine)))
            manifest = {
                "format_version": checkpoint.FORMAT_VERSION,
                "step": step,
                "state": state,
                "ranks": comm.get_world_size(),
                "zero_stage": engine.zero_optimization_stage(),
                "files": files,
            }
            from_rank_0(lambda: checkpoint.publish(scratch, manifest).name)
        except OSError as error:
            if comm.get_rank() == 0:
                checkpoint.clean(self.checkpoints)
            raise OSError(
                error.errno,
                f"the checkpoint of step {step} could not be written: {error.strerror}. The older ones are intact; "
                "make room and run the same command again",
            ) from error
        from_rank_0(lambda: checkpoint.prune(self.checkpoints, keep, keep_every))


def restore(engine: deepspeed.DeepSpeedEngine, found: Checkpoint, updates: int) -> None:
    """Set the weights, the moments and the count of updates of an engine."""
    found.restore(live_fragments(engine))
    set_updates(engine, updates)
    comm.barrier()  # nobody starts, and removes files, while others read


def gather(value: Any) -> list[Any]:
    """Give the values of all ranks to all of them."""
    values = [None] * comm.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def together(action: Callable[[], Any]) -> list[Any]:
    """
    Do something on every rank; give all results to all, or raise on all what went wrong on one.

    Raises
    ------
    OSError
        The first error, with the rank on which it happened.
    """
    try:
        mine = (action(), None)
    except OSError as error:
        mine = (None, (error.errno, error.strerror or str(error)))
    results = gather(mine)
    for rank, (_, error) in enumerate(results):
        if error is not None:
            raise OSError(error[0], f"{error[1]} (rank {rank})")
    return [result for result, _ in results]


def from_rank_0(action: Callable[[], Any]) -> Any:
    """Do something on rank 0; give its result to all ranks, or raise its OSError on all of them."""
    return together(action if comm.get_rank() == 0 else lambda: None)[0]
