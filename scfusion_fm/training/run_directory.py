"""The directory of a run: its settings and its checkpoints, which all ranks write and read together."""

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from scfusion_fm.config.loading import config_differences
from scfusion_fm.config.pretrain import RunConfig
from scfusion_fm.records import SEAL, read_record, seal_record
from scfusion_fm.training import checkpoint
from scfusion_fm.training.checkpoint import Checkpoint
from scfusion_fm.training.checkpoint_store import CheckpointStore
from scfusion_fm.training.collectives import from_rank_0
from scfusion_fm.training.fragments import Engine
from scfusion_fm.training.run_files import CHECKPOINTS, IDENTITY, LOCK

LOCK_PATIENCE_S = 20.0  # a run that was killed may take a while to be gone


class RunDirectory:
    """
    Keep what belongs to one run together, and refuse to mix it with another.

    Parameters
    ----------
    path
        Directory of the run; made when missing.
    identity
        What must not change between a run and its continuation: settings and atlas.
    settings
        Which checkpoints stay.

    Raises
    ------
    ValueError
        On all ranks, if the directory holds something else, a run with another identity, or one that goes on.
    """

    def __init__(self, path: Path, identity: dict[str, Any], settings: RunConfig):
        self.path = path
        self._settings = settings
        self._store = CheckpointStore(self.checkpoints)
        from_rank_0(lambda: self._claim(identity))

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / CHECKPOINTS

    def newest(self) -> Checkpoint | None:
        """
        Open the newest checkpoint whose files are as they were written; None if the run has none yet.

        Every rank checks a share of the files. A damaged checkpoint is told of, and left where it is.

        Raises
        ------
        ValueError
            If there are checkpoints, and all of them are damaged.
        """
        found, damaged = self._store.newest()
        if found is None and damaged:
            raise ValueError(
                f"`output_dir` must hold at least one intact checkpoint, got {damaged} damaged ones in "
                f"{str(self.checkpoints)!r}. Copy them again, or move them away to start anew."
            )
        return found

    def save(self, engine: Engine, step: int, state: dict[str, Any]) -> None:
        """
        Write a checkpoint from all ranks, then remove old ones.

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
        self._store.save(engine, step, state)
        keep = self._settings
        from_rank_0(lambda: checkpoint.prune(self.checkpoints, step, keep.keep_checkpoints, keep.keep_every))

    def _claim(self, identity: dict[str, Any]) -> None:
        """
        Write the identity of a new run, or compare it.

        Raises
        ------
        ValueError
            If the directory holds something else, a run with another identity, or one that goes on.
        """
        known = self.path / IDENTITY
        occupied = self.path.exists() and any(found.name != LOCK for found in self.path.iterdir())
        has_checkpoints = bool(checkpoint.complete_checkpoints(self.checkpoints))
        if occupied and not (known.exists() or has_checkpoints):
            raise ValueError(
                f"`output_dir` must be new, empty or a run to resume, got {str(self.path)!r} with other files."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        if known.exists() and has_checkpoints:
            changed = config_differences(self._read_identity(), identity)
            if changed:
                raise ValueError(
                    f"`output_dir` {str(self.path)!r} holds a run with other settings: {'; '.join(changed)}. "
                    "Choose another directory, or go on with the old settings."
                )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_leftovers(self.checkpoints)
        checkpoint.write_durably(known, json.dumps(seal_record(identity), indent=1))

    def _lock(self) -> None:
        """
        Keep others from the directory as long as this process lives.

        Raises
        ------
        ValueError
            If somebody else is there, and stays.
        """
        self._held = (self.path / LOCK).open("a+")
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not _try_lock(self._held):
            if time.monotonic() > deadline:
                self._held.seek(0)
                raise ValueError(
                    f"`output_dir` must not be in use, got {str(self.path)!r}, where a run is going on: "
                    f"{self._held.read().strip()}. Stop it, or choose another directory."
                )
            time.sleep(0.1)
        self._held.truncate(0)
        self._held.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        self._held.flush()

    def _read_identity(self) -> dict[str, Any]:
        """
        Read the settings that the run was started with.

        Raises
        ------
        ValueError
            If they cannot be read.
        """
        known = read_record(
            self.path / IDENTITY, "remove it to go on from the checkpoints with the settings that you give"
        )
        return {key: value for key, value in known.items() if key != SEAL}


def _try_lock(file: TextIO) -> bool:
    """Lock a file, unless another process has; on a file system without locks, warn and go on."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"warning: {file.name!r} cannot be locked against a second run: {error}", file=sys.stderr)
    return True
