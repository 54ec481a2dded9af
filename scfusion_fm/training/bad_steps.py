"""The cells of a step without an update, saved for people to look at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scfusion_fm.training.collectives import from_rank_0, gather
from scfusion_fm.training.run_files import BAD_STEPS


@dataclass(frozen=True)
class CellLosses:
    """
    Cells of a forward pass, and what the model made of each.

    Attributes
    ----------
    rows, passes
        (B,) rows of the atlas, and how often each cell had been shown before.
    rna_loss, adt_loss
        (B,) error of each modality.
    """

    rows: NDArray[np.int64]
    passes: NDArray[np.int64]
    rna_loss: Tensor
    adt_loss: Tensor

    def to_numpy(self) -> dict[str, NDArray]:
        """Give the fields as arrays."""
        losses = {"rna_loss": self.rna_loss, "adt_loss": self.adt_loss}
        arrays = {name: loss.detach().float().cpu().numpy() for name, loss in losses.items()}
        return {"rows": self.rows, "passes": self.passes} | arrays


def save_bad_step(run: Path, step: int, mine: list[CellLosses]) -> Path:
    """
    Write the cells of a step and their losses, of all ranks together, to one file.

    Parameters
    ----------
    run
        Directory of the run.
    step
        Step without an update.
    mine
        The forward passes of this rank.

    Returns
    -------
    The file, an .npz with the fields of `CellLosses`.
    """
    parts = [part for of_rank in gather([p.to_numpy() for p in mine]) for part in of_rank]
    path = run / BAD_STEPS / f"step_{step:08d}.npz"
    from_rank_0(lambda: _write(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}))
    return path


def _write(path: Path, arrays: dict[str, NDArray]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
