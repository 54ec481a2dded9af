"""What a step adds up to over all ranks, and how fast steps are."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from deepspeed import comm
from torch import Tensor

_LOSSES = 5  # RNA, cells with RNA targets, ADT, cells with ADT targets, cells
_TOKENS = 4  # visible and masked RNA tokens, visible and masked protein tokens


class LossWeights(Protocol):
    """How the losses of the modalities add up; the configuration of a model knows it."""

    rna_loss_weight: float
    adt_loss_weight: float


class Tally:
    """
    Add up losses and tokens of the cells of a global batch.

    Parameters
    ----------
    device
        Where the batches are.
    weights
        Of the losses.
    """

    def __init__(self, device: torch.device, weights: LossWeights):
        self._weights = weights
        self._sums = torch.zeros(_LOSSES + _TOKENS + 1, dtype=torch.float64, device=device)
        self._total: list[float] = []

    def add(self, output: Any, batch: dict[str, Tensor], weight: Tensor | None = None) -> None:
        """Count the cells of a batch, each with a weight (B,), or 1."""
        rna = (batch["rna_observed"].any(-1), batch["rna_bool_masked_pos"])
        adt = (batch["adt_observed"], batch["adt_bool_masked_pos"])
        columns = [output.rna_loss, _targets(*rna), output.adt_loss, _targets(*adt), torch.ones_like(output.rna_loss)]
        for observed, masked in (rna, adt):
            columns += [(observed & ~masked).sum(1), (observed & masked).sum(1)]
        table = torch.stack([c.detach().double() for c in columns])
        self._sums[:-1] += table.sum(1) if weight is None else table @ weight

    def reduce(self, stop_asked: bool = False) -> None:
        """
        Add up over the ranks; tell all of them whether one was asked to stop.

        The request rides in the same reduction: a step needs no second one, and all ranks stop after the same step.
        """
        self._sums[-1] = float(stop_asked)
        comm.all_reduce(self._sums)
        self._total = self._sums.tolist()

    @property
    def stop_asked(self) -> bool:
        """Whether any rank was asked to stop."""
        return self._total[-1] > 0

    @property
    def cells(self) -> float:
        """Cells of the global batch."""
        return self._total[_LOSSES - 1]

    @property
    def tokens(self) -> list[float]:
        """Tokens of the global batch: visible and masked RNA, visible and masked protein."""
        return self._total[_LOSSES:-1]

    @property
    def loss(self) -> float:
        """The loss of the global batch."""
        rna, _, adt, _, cells = self._total[:_LOSSES]
        return (self._weights.rna_loss_weight * rna + self._weights.adt_loss_weight * adt) / cells

    @property
    def losses(self) -> dict[str, float | None]:
        """The loss, and the error of each modality over the cells where it has targets."""
        rna, rna_cells, adt, adt_cells, _ = self._total[:_LOSSES]
        return {
            "loss": self.loss,
            "rna_loss": rna / rna_cells if rna_cells else None,
            "adt_loss": adt / adt_cells if adt_cells else None,
        }

    def __str__(self) -> str:
        shown = {name.removesuffix("_loss"): value for name, value in self.losses.items() if value is not None}
        return " ".join(f"{name} {value:.4f}" for name, value in shown.items())


def _targets(observed: Tensor, masked: Tensor) -> Tensor:
    return (observed & masked).any(1)


class Speed:
    """
    Measure how fast a run trains, apart from evaluation and checkpoints.

    Parameters
    ----------
    step
        Step that the run starts from.
    stall_seconds
        How long the loader has kept its caller waiting before.
    """

    def __init__(self, step: int, stall_seconds: float):
        self._first_step, self._start = step, time.monotonic()
        self._stall_before = self._stall_now = stall_seconds
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        self._training = 0.0
        self._cells, self._tokens = 0.0, [0.0] * _TOKENS
        self._stall_before = self._stall_now

    @contextmanager
    def training(self) -> Iterator[None]:
        """Measure a step."""
        start = time.monotonic()
        yield
        self._training += time.monotonic() - start

    def add(self, tally: Tally, stall_seconds: float) -> None:
        """Count a step."""
        self._cells += tally.cells
        self._tokens = [a + b for a, b in zip(self._tokens, tally.tokens, strict=True)]
        self._stall_now = stall_seconds

    @property
    def cells_per_s(self) -> float:
        """Cells per second over all ranks."""
        return self._cells / self._training

    @property
    def tokens_per_cell(self) -> list[float]:
        """Mean tokens of a cell: visible and masked RNA, visible and masked protein."""
        return [t / self._cells for t in self._tokens]

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over all ranks, visible and masked."""
        return sum(self._tokens) / self._training

    @property
    def stall(self) -> float:
        """Share of training time in which this rank waited for cells."""
        return (self._stall_now - self._stall_before) / self._training

    def seconds_per_step(self, step: int) -> float:
        """Give the mean duration of a step since the start, evaluation and checkpoints included."""
        return (time.monotonic() - self._start) / max(step - self._first_step, 1)


def memory_gib(device: torch.device) -> float:
    """Give the peak memory of this rank in GiB: of the device, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
