"""How a model is fine-tuned, whatever the task."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scfusion_fm.config.finetune import FinetuneOptimConfig


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
        Where the trainer's files stay; None keeps none, and prints nothing.
    """

    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    seed: int = 0
    directory: Path | None = None

    @contextmanager
    def open_directory(self) -> Iterator[Path]:
        """Give the directory for the trainer's files."""
        if self.directory is not None:
            yield self.directory
            return
        with tempfile.TemporaryDirectory(prefix="scfusion-trainer-") as directory:
            yield Path(directory)
