"""How a model is fine-tuned, whatever the task."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.training.collectives import from_rank_0, own_rank


@dataclass(frozen=True)
class FitSettings:
    """
    How a model is fine-tuned for a task.

    Attributes
    ----------
    optim
        Optimisation.
    seed
        Seed of what is not loaded, of the order of cells and of dropout.
    directory
        Where checkpoints stay, from which the same fit goes on; None keeps none, and prints nothing.
    speaks
        Whether to tell of progress.
    """

    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    seed: int = 0
    directory: Path | None = None
    speaks: bool = True

    def use_threads(self) -> None:
        """Calculate with the threads that are asked for, from here on: sums depend on their number."""
        torch.set_num_threads(self.optim.threads)

    def part(self, name: str, speaks: bool = False) -> Self:
        """Give the settings of one of several fits of a run, with a place of its own."""
        directory = None if self.directory is None else self.directory.with_name(name)
        return dataclasses.replace(self, directory=directory, speaks=speaks)

    @contextmanager
    def open_directory(self) -> Iterator[Path]:
        """Give the directory for checkpoints, the same for all ranks."""
        if self.directory is not None:
            yield self.directory
            return
        directory = Path(from_rank_0(lambda: tempfile.mkdtemp(prefix="scfusion-fit-")))
        try:
            yield directory
        finally:
            if own_rank() == 0:
                shutil.rmtree(directory, ignore_errors=True)
