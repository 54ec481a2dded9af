"""The loop of a fine-tuning: steps, evaluation after every epoch, checkpoints, interruption."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import Collate
from scfusion_fm.notices import tell
from scfusion_fm.tasks.dropout import InputDropout, order_cells, tell_cells
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.training.checkpoint import Checkpoint
from scfusion_fm.training.checkpoint_store import CheckpointStore, restore
from scfusion_fm.training.collectives import add_up, count_ranks, from_rank_0, own_rank
from scfusion_fm.training.log import format_seconds
from scfusion_fm.training.optimizer import set_learning_rate
from scfusion_fm.training.stop import Stopped, StopRequest
from scfusion_fm.untrusted.rules import Maybe, Number, Whole, parse, ruled

SAVE_EVERY_S = 300.0
TELL_EVERY_S = 60.0
_STEP = Whole(0, 2**53)


class Hides(Protocol):
    """Hides parts of what training cells show; see `InputDropout`."""

    def hide(self, batch: dict[str, Tensor], rows: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Give the arguments of the model with less shown."""


@dataclass(frozen=True)
class Objective:
    """
    What is learned, and what is best.

    Attributes
    ----------
    score
        Turns the output for the cells that choose into {"score": higher is better, ...}.
    loss
        Called with outputs and labels instead of taking the loss of the model; a mean over cells, as that is.
    dropout
        What training cells lose.
    output
        Field of the output of the model that is scored.
    """

    score: Callable[[NDArray[np.float32]], dict[str, float]]
    loss: Callable[[Any, Tensor], Tensor] | None = None
    dropout: Hides = field(default_factory=InputDropout)
    output: str = "logits"


@dataclass
class Standing:
    """
    How far a training is; with weights and moments, all that it needs to go on.

    Attributes
    ----------
    step, updates
        Steps taken, and those of them that changed the model.
    start_score, best_score
        Scores of the start and of the best epoch; None where they are no numbers.
    best_step
        Step at the end of the best epoch.
    waited
        Evaluations since then.
    loss, cells
        Sum of the losses in this epoch so far, and of how many cells.
    """

    step: int = ruled(_STEP, 0)
    updates: int = ruled(_STEP, 0)
    start_score: float | None = ruled(Maybe(Number()), None)
    best_score: float | None = ruled(Maybe(Number()), None)
    best_step: int = ruled(_STEP, 0)
    waited: int = ruled(_STEP, 0)
    loss: float | None = ruled(Maybe(Number()), 0.0)
    cells: int = ruled(_STEP, 0)


@dataclass(repr=False)
class EpochLoop:
    """
    Train until the last epoch, or until patience ends.

    Parameters
    ----------
    engine
        The engine with the model that is trained.
    partition
        Which cells train, and which choose.
    collate
        Prepares cells.
    objective
        What is learned, and what is best.
    settings
        How to train.
    store
        Where checkpoints go.
    stop
        Whether this process was asked to stop.
    epochs
        Passes after which to end before the last; None ends with the last, or by patience.
    """

    engine: Any
    partition: Partition
    collate: Collate
    objective: Objective
    settings: FitSettings
    store: CheckpointStore
    stop: StopRequest
    epochs: float | None = None

    def __post_init__(self):
        optim, cells = self.settings.optim, len(self.partition.train)
        self.device = self.engine.device
        self.steps_per_epoch = math.ceil(cells / optim.batch_size)
        self.total_steps = max(math.ceil(optim.epochs * self.steps_per_epoch), 1)
        self.warmup_steps = math.ceil(optim.warmup_ratio * self.total_steps)
        # What ends early has the learning rates of the whole length until then: a schedule that is shortened would have
        # come down to 0 where the run that found this number of passes still learned at a high rate. Passes are counted
        # and not steps, so that with more cells each cell is met as often, at the same places of the schedule.
        self.last_step = self.total_steps
        if self.epochs is not None:
            self.last_step = min(math.ceil(round(self.epochs * self.steps_per_epoch, 6)), self.total_steps)
        self.at = Standing()

    def run(self, newest: Checkpoint | None) -> Checkpoint | None:
        """
        Train from the start or from a checkpoint, whose weights the engine has; give what is best, None for the start.

        Raises
        ------
        Stopped
            If somebody asked to stop, after a checkpoint was written.
        """
        if newest is not None:
            self.at = read_standing(newest)
            restore(self.engine, newest, self.at.updates)
            done = "training is done already, by" if self.finished else "training goes on from"
            self._tell(f"{done} step {self.at.step} of at most {self.last_step}")
        elif len(self.partition.val):
            self.at.start_score = self._evaluate()["score"]
        self._began = self._saved = self._told = time.monotonic()
        self._first = self.at.step
        while not self.finished:
            self._advance()
        self.engine.destroy()
        at = self.at
        if len(self.partition.val) == 0:
            return self.store.open(at.step) if at.step else None
        is_better = at.best_score is not None and (at.start_score is None or at.best_score >= at.start_score)
        return self.store.open(at.best_step) if is_better else None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.at.step >= self.last_step or self.at.waited >= self.settings.optim.patience

    def _advance(self) -> None:
        """Take a step, with what is due after it."""
        asked, due = self._train_step()
        at_end = self.at.step % self.steps_per_epoch == 0 or self.at.step == self.last_step
        if at_end:
            self._end_epoch()
        elif own_rank() == 0 and time.monotonic() - self._told > TELL_EVERY_S:
            self._tell_progress("")
        if at_end or asked or due:
            self.store.save(self.engine, self.at.step, dataclasses.asdict(self.at))
            self.store.keep(self.at.step, self.at.best_step)
            self._saved = time.monotonic()
        if asked and not self.finished:
            where = f"stopped at step {self.at.step} of at most {self.last_step}"
            raise Stopped(f"{where}; the same command goes on from there")

    def _train_step(self) -> tuple[bool, bool]:
        """Take a step; give whether somebody asked to stop, and whether a checkpoint is due."""
        epoch, place = divmod(self.at.step, self.steps_per_epoch)
        if place == 0 or not hasattr(self, "_order"):
            self._order = order_cells(self.partition.train, self.settings.seed, epoch)
        size = self.settings.optim.batch_size
        whole = self._order[place * size : (place + 1) * size]
        mine, counted = deal(whole)
        batch = self._to_device(self.objective.dropout.hide(self.collate(mine), mine, epoch))
        tell_cells(self.engine.module, mine, epoch)
        self.engine.train()
        loss = self._loss(batch)
        # Ranks are averaged; all cells of the step count alike, wherever they are.
        self.engine.backward(loss * (counted * count_ranks() / len(whole)))
        set_learning_rate(self.engine.basic_optimizer, self._rate(self.at.step))
        self.engine.step()
        due = time.monotonic() - self._saved > SAVE_EVERY_S
        sums = [float(loss.detach()) * counted, self.stop.asked, due and own_rank() == 0]
        total, asked, due = add_up(torch.tensor(sums, dtype=torch.float64, device=self.device)).tolist()
        self.at.step += 1
        self.at.updates += not getattr(self.engine.basic_optimizer, "overflow", False)
        self.at.cells += len(whole)
        self.at.loss = _finite((self.at.loss or 0.0) + total)
        return asked > 0, due > 0

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.objective.loss is None:
            return self.engine(**batch).loss
        labels = batch.pop("labels")
        return self.objective.loss(self.engine(**batch), labels)

    def _rate(self, step: int) -> float:
        """Give the learning rate of a step: linear warm-up from 0, then a cosine to 0."""
        lr = self.settings.optim.lr
        if step < self.warmup_steps:
            return lr * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return lr * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))

    def _end_epoch(self) -> None:
        """Score the cells that choose, and note what is best."""
        at, told = self.at, ""
        if len(self.partition.val):
            scores = self._evaluate()
            at.waited += 1
            if scores["score"] is not None and (at.best_score is None or scores["score"] > at.best_score):
                at.best_score, at.best_step, at.waited = scores["score"], at.step, 0
            told = " | " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)
        self._tell_progress(told)
        at.loss, at.cells = 0.0, 0

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float | None]:
        """Score the cells that choose; all ranks get what rank 0 finds."""
        self.engine.eval()
        rows, size, logits = self.partition.val, self.settings.optim.batch_size, None
        for start in range(0, len(rows), size):
            places, counted = deal(np.arange(start, min(start + size, len(rows))))
            output = self.engine(**self._to_device(self.collate(rows[places])))
            found = output[self.objective.output].float()
            if logits is None:
                logits = found.new_zeros((len(rows), *found.shape[1:]))
            logits[places[:counted]] = found[:counted]
        array = add_up(logits).cpu().numpy()
        return from_rank_0(lambda: {name: _finite(value) for name, value in self.objective.score(array).items()})

    def _tell_progress(self, scores: str) -> None:
        at, seconds = self.at, time.monotonic() - self._began
        left = format_seconds((self.last_step - at.step) * seconds / max(at.step - self._first, 1))
        loss = math.nan if at.loss is None else at.loss / max(at.cells, 1)
        most = self.settings.optim.epochs if self.epochs is None else self.epochs
        epoch = f"epoch {at.step / self.steps_per_epoch:.1f} of {most:g}"
        self._tell(f"{epoch} | loss {loss:.4f}{scores} | at most {left} left")
        self._told = time.monotonic()

    def _tell(self, text: str) -> None:
        if own_rank() == 0 and self.settings.speaks and self.settings.directory is not None:
            tell(text)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in batch.items()}


def read_standing(found: Checkpoint) -> Standing:
    """
    Read how far a training was.

    Raises
    ------
    ValueError
        If the checkpoint does not tell that.
    """
    return parse(Standing, found.manifest["state"])


def deal(whole: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """
    Give the share of this rank in the cells of a step, and how many of it count.

    A rank without a share gets a cell that does not count, for all ranks must call the model.
    """
    share = math.ceil(len(whole) / count_ranks())
    mine = whole[own_rank() * share : (own_rank() + 1) * share]
    return (mine, len(mine)) if len(mine) else (whole[:1], 0)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
