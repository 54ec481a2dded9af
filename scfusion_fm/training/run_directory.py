"""The directory of a run: its settings and its checkpoints, which all ranks write and read together."""

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
from deepspeed import comm

from scfusion_fm.config.loading import config_differences
from scfusion_fm.training import checkpoint
from scfusion_fm.training.checkpoint import CHECKPOINTS, Checkpoint
from scfusion_fm.training.collectives import from_rank_0, gather, together
from scfusion_fm.training.fragments import live_fragments, own_fragments, set_updates

IDENTITY, LOCK = "run.json", ".lock"
LOCK_PATIENCE_S = 20.0


class RunDirectory:
    """
    Keep what belongs to one run together, and refuse to mix it with another.

    Parameters
    ----------
    path
        Directory of the run; made when missing.
    identity
        What must not change between a run and its continuation: settings and atlas.

    Raises
    ------
    ValueError
        If the directory holds something else, or a run with another identity.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        # Rank 0 alone looks and writes; all ranks hear its verdict, so that they stop together.
        verdict = from_rank_0(lambda: self._claim(identity))
        if verdict is not None:
            raise ValueError(verdict)

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / CHECKPOINTS

    def _claim(self, identity: dict[str, Any]) -> str | None:
        """Write the identity of a new run, or compare it; give what is wrong, or None."""
        known = self.path / IDENTITY
        occupied = self.path.exists() and any(found.name != LOCK for found in self.path.iterdir())
        is_run = known.exists() or checkpoint.complete_checkpoints(self.checkpoints)
        if occupied and not is_run:
            return f"`output_dir` must be new, empty or a run to resume, got {str(self.path)!r} with other files."
        self.path.mkdir(parents=True, exist_ok=True)
        problem = self._lock()
        if problem is not None:
            return problem
        if known.exists() and checkpoint.complete_checkpoints(self.checkpoints):
            changed = config_differences(self._read_identity(), identity)
            if changed:
                return (
                    f"`output_dir` {str(self.path)!r} holds a run with other settings: {'; '.join(changed)}. "
                    "Choose another directory, or go on with the old settings."
                )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(self.checkpoints)
        checkpoint.write_atomically(known, json.dumps(identity, indent=1))
        return None

    def _read_identity(self) -> dict[str, Any]:
        """
        Read the settings that the run was started with.

        Raises
        ------
        ValueError
            If they cannot be read.
        """
        try:
            return json.loads((self.path / IDENTITY).read_text())
        except ValueError as error:
            raise ValueError(
                f"{str(self.path / IDENTITY)!r} must be as the run wrote it, got what is no JSON: {error}. Remove it "
                "to go on from the checkpoints with the settings that you give."
            ) from error

    def _lock(self) -> str | None:
        """Keep others from the directory as long as this process lives; say who is there if there is somebody."""
        self._held = (self.path / LOCK).open("a+")
        deadline = time.monotonic() + LOCK_PATIENCE_S  # a run that was killed may take a while to be gone
        while True:
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._held.seek(0)
                    return (
                        f"`output_dir` must not be in use, got {str(self.path)!r}, where a run is going on: "
                        f"{self._held.read().strip()}. Stop it, or choose another directory."
                    )
                time.sleep(0.1)
            except OSError as error:  # a file system without locks
                print(f"warning: {str(self.path)!r} cannot be locked against a second run: {error}", file=sys.stderr)
                break
        self._held.truncate(0)
        self._held.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        self._held.flush()
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
        from_rank_0(lambda: checkpoint.prune(self.checkpoints, step, keep, keep_every))


def restore(engine: deepspeed.DeepSpeedEngine, found: Checkpoint, updates: int) -> None:
    """Set the weights, the moments and the count of updates of an engine."""
    found.restore(live_fragments(engine))
    set_updates(engine, updates)
    comm.barrier()  # nobody starts, and removes files, while others read
