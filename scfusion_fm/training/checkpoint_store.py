"""The checkpoints of a training, which all ranks write and read together."""

import sys
from pathlib import Path
from typing import Any

from scfusion_fm.training import checkpoint
from scfusion_fm.training.checkpoint import Checkpoint
from scfusion_fm.training.collectives import count_ranks, from_rank_0, gather, own_rank, together
from scfusion_fm.training.fragments import Engine, live_fragments, own_fragments, set_updates


class CheckpointStore:
    """
    Write and find checkpoints.

    Parameters
    ----------
    directory
        Where they are, the same for all ranks; made when the first is written.
    """

    def __init__(self, directory: Path):
        self.directory = directory

    def newest(self) -> tuple[Checkpoint | None, int]:
        """
        Open the newest checkpoint whose files are as they were written; None if there is none.

        Every rank checks a share of the files. A damaged checkpoint is told of, and left where it is; how many there
        are is given, too.
        """
        names = from_rank_0(lambda: [d.name for d in checkpoint.complete_checkpoints(self.directory)])
        for number, name in enumerate(reversed(names)):
            found = Checkpoint(self.directory / name)
            damage = found.damage(slice(own_rank(), None, count_ranks()))
            damages = [d for d in gather(damage) if d is not None]
            if not damages:
                return found, number
            if own_rank() == 0:
                print(f"warning: checkpoint {name} is damaged and not used: {damages[0]}", file=sys.stderr)
        return None, len(names)

    def open(self, step: int) -> Checkpoint:
        """Open the checkpoint of a step."""
        return Checkpoint(self.directory / checkpoint.name_checkpoint(step))

    def save(self, engine: Engine, step: int, state: dict[str, Any]) -> None:
        """
        Write a checkpoint from all ranks.

        Parameters
        ----------
        engine
            Whose weights and moments are written.
        step, state
            Position of the run, and what else it needs to go on from there, as JSON holds it.

        Raises
        ------
        OSError
            On all ranks, if one of them could not write; older checkpoints are as they were.
        """
        scratch = self.directory / from_rank_0(lambda: self._start(step))
        try:
            files = together(lambda: checkpoint.write_rank(scratch, own_rank(), own_fragments(engine)))
            manifest = {
                "step": step,
                "state": state,
                "ranks": count_ranks(),
                "zero_stage": engine.zero_optimization_stage(),
                "files": files,
            }
            from_rank_0(lambda: checkpoint.publish(scratch, manifest).name)
        except OSError as error:
            if own_rank() == 0:
                checkpoint.remove_leftovers(self.directory)
            raise OSError(
                error.errno,
                f"the checkpoint of step {step} could not be written: {error.strerror}. The older ones are intact; "
                "make room and run the same command again",
            ) from error

    def keep(self, *steps: int) -> None:
        """Remove the checkpoints of all other steps."""
        from_rank_0(lambda: checkpoint.keep_steps(self.directory, steps))

    def _start(self, step: int) -> str:
        """Make room and a directory for a checkpoint; give the name of that."""
        checkpoint.remove_leftovers(self.directory)
        return checkpoint.start_checkpoint(self.directory, step).name


def restore(engine: Engine, found: Checkpoint, updates: int) -> None:
    """Set the weights, the moments and the count of updates of an engine."""
    found.restore(live_fragments(engine))
    set_updates(engine, updates)
    gather(None)  # nobody starts, and removes files, while others read
