"""The directory of a run: its settings, its checkpoints, and going on from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import comm

CHECKPOINTS = "checkpoints"
ATLAS_MANIFEST = "atlas_manifest.json"
_STATE = "scfusion"  # DeepSpeed merges the client state at top level, so ours stays under one key


class RunDirectory:
    """
    Keep what belongs to one run together, and refuse to mix it with another.

    Parameters
    ----------
    path
        Directory of the run; made when missing.
    identity
        What must not change between a run and its continuation: settings, atlas, ranks.
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
        verdict = [self._claim(identity, differences) if comm.get_rank() == 0 else None]
        torch.distributed.broadcast_object_list(verdict, src=0)
        if verdict[0] is not None:
            raise ValueError(verdict[0])

    @property
    def _identity_file(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """Directory of the DeepSpeed checkpoints."""
        return self.path / CHECKPOINTS

    def _claim(self, identity: dict[str, Any], differences: Callable[[Any, Any], list[str]]) -> str | None:
        """Write the identity of a new run, or compare it; give what is wrong, or None."""
        occupied = self.path.exists() and any(self.path.iterdir())
        if occupied and not self._identity_file.exists():
            return f"`output_dir` must be new, empty or a run to resume, got {str(self.path)!r} with other files."
        if latest_checkpoint(self.checkpoints) is not None:
            changed = differences(json.loads(self._identity_file.read_text()), identity)
            if changed:
                return (
                    f"`output_dir` {str(self.path)!r} holds a run with other settings: {'; '.join(changed)}. "
                    "Choose another directory, or go on with the old settings."
                )
        self.path.mkdir(parents=True, exist_ok=True)
        _write_atomically(self._identity_file, json.dumps(identity, indent=1))
        return None

    def save(self, engine: deepspeed.DeepSpeedEngine, step: int, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint from all ranks, then remove all but the newest `keep`."""
        engine.save_checkpoint(str(self.checkpoints), tag=f"step_{step:08d}", client_state={_STATE: state})
        comm.barrier()
        if comm.get_rank() == 0:
            for old in sorted(self.checkpoints.glob("step_*"))[:-keep]:
                shutil.rmtree(old)

    def resume(self, engine: deepspeed.DeepSpeedEngine) -> dict[str, Any] | None:
        """Load the newest checkpoint into the engine; give its state, or None when there is none."""
        if latest_checkpoint(self.checkpoints) is None:
            return None
        _, client_state = engine.load_checkpoint(str(self.checkpoints))
        return client_state[_STATE]


def latest_checkpoint(directory: Path) -> Path | None:
    """Give the directory of the newest complete checkpoint, or None."""
    pointer = directory / "latest"
    if not pointer.is_file():
        return None
    found = directory / pointer.read_text().strip()
    return found if found.is_dir() else None


def load_weights(directory: Path) -> dict[str, Any]:
    """
    Gather the float32 weights of the newest checkpoint from the parts of all ranks.

    Raises
    ------
    ValueError
        If there is no checkpoint.
    """
    if latest_checkpoint(directory) is None:
        raise ValueError(f"`run` must hold a checkpoint, got {str(directory.parent)!r} without one.")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(directory))


def _write_atomically(path: Path, text: str) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text)
    scratch.replace(path)
