"""The only pretraining loop: steps, evaluation on held-out cells, progress, checkpoints, interruption."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import deepspeed
import numpy as np
import torch
from deepspeed import comm
from numpy.typing import NDArray
from torch import Tensor

from .checkpoint import RunDirectory
from .log import RunLog, format_seconds

VALIDATION_EPOCH = -1  # held-out cells get the same masks every time
_LOSSES = ("loss", "rna_loss", "adt_loss")

Collator = Callable[[Any, NDArray[np.int64] | int], dict[str, Tensor]]


class Loader(Protocol):
    """Deals global batches; see `scfusion_fm.data.loader.AtlasLoader`."""

    order: Sized
    cells_seen: int
    stall_seconds: float
    global_batch_size: int
    micro_batch_size: int

    def next_batch(self) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        """Advance by one global batch; give cells and the pass of each."""

    def state_dict(self) -> dict[str, Any]:
        """Give the position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


@dataclass(frozen=True)
class Schedule:
    """
    Learning rate by step: linear warm-up, then cosine.

    Parameters
    ----------
    total_steps, warmup_steps
        Length of the run and of its warm-up, in optimizer steps.
    lr
        Highest learning rate.
    min_ratio
        Last learning rate as a share of the highest.
    """

    total_steps: int
    warmup_steps: int
    lr: float
    min_ratio: float

    def at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self.lr * (self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class PretrainingLoop:
    """
    Train until the schedule ends or somebody asks to stop.

    Parameters
    ----------
    engine
        The DeepSpeed engine.
    loader
        Deals cells and the pass of each to this rank.
    collate
        Turns cells and passes into the arguments of the model.
    read
        Reads cells by their rows in the atlas.
    validation_rows
        Held-out rows of the atlas, the same on all ranks.
    schedule
        Learning rate by step.
    directory
        Where checkpoints go.
    log
        Where records go.
    cadence
        Has `log_every`, `eval_every`, `save_every`, `keep_checkpoints`, in steps.
    """

    engine: deepspeed.DeepSpeedEngine
    loader: Loader
    collate: Collator
    read: Callable[[NDArray[np.int64]], Any]
    validation_rows: NDArray[np.int64]
    schedule: Schedule
    directory: RunDirectory
    log: RunLog
    cadence: Any
    step: int = 0
    seconds: float = 0.0
    _stop_asked: bool = field(default=False, repr=False)

    def resume(self, state: dict[str, Any] | None) -> None:
        """Go on from the state of a checkpoint, if there is one."""
        if state is not None:
            self.step, self.seconds = state["step"], state["seconds"]
            self.loader.load_state_dict(state["loader"])

    def run(self) -> bool:
        """Train; give whether the run is complete. A stop by SIGTERM or SIGINT saves first."""
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        window, cells, stalled, stopped = time.monotonic(), 0, self.loader.stall_seconds, False
        saved = self.step
        while self.step < self.schedule.total_steps and not stopped:
            losses, stopped = self._train_step()
            cells += self.loader.global_batch_size
            last = self.step == self.schedule.total_steps
            if self.step % self.cadence.log_every == 0 or last or stopped:
                elapsed = time.monotonic() - window
                self.seconds += elapsed
                self._report(losses, cells / elapsed, (self.loader.stall_seconds - stalled) / elapsed)
                window, cells, stalled = time.monotonic(), 0, self.loader.stall_seconds
            if self.step % self.cadence.eval_every == 0 or last:
                self._evaluate()
            if self.step % self.cadence.save_every == 0 or last or stopped:
                self._save()
                saved = self.step
        for s, handler in handlers.items():
            signal.signal(s, handler)
        if stopped:
            self.log.say(f"stopped at step {saved}; the same command goes on from there")
        return not stopped

    def _ask_to_stop(self, signum: int, frame: object) -> None:
        self._stop_asked = True

    def _train_step(self) -> tuple[dict[str, float | None], bool]:
        """Take one optimizer step; give the losses of the global batch and whether any rank was asked to stop."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.schedule.at(self.step)
        sums = torch.zeros(6, dtype=torch.float64, device=self.engine.device)
        for cells, passes in self.loader.next_batch():
            batch = self._to_device(self.collate(cells, passes))
            output = self.engine(**batch)
            self.engine.backward(output.loss)
            self.engine.step()
            sums[:5] += _loss_sums(output, batch, torch.ones(len(passes), device=self.engine.device))
        self.step += 1
        sums[5] = float(self._stop_asked)
        comm.all_reduce(sums)
        return _means(sums, self.engine.module.config), bool(sums[5] > 0)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Score held-out cells; the last batch is filled up with cells of weight 0, so that all ranks keep step."""
        number = len(self.validation_rows)
        if number == 0:
            return
        self.engine.eval()
        sums = torch.zeros(6, dtype=torch.float64, device=self.engine.device)
        size = self.loader.micro_batch_size
        for start in range(0, number, size * comm.get_world_size()):
            index = start + comm.get_rank() * size + np.arange(size)
            batch = self._to_device(self.collate(self.read(self.validation_rows[index % number]), VALIDATION_EPOCH))
            weight = torch.from_numpy(index < number).to(self.engine.device, torch.float32)
            sums[:5] += _loss_sums(self.engine(**batch), batch, weight)
        self.engine.train()
        comm.all_reduce(sums)
        means = _means(sums, self.engine.module.config)
        self.log.write(self._record("val") | means)
        self.log.say(f"step {self.step} held-out cells: {_loss_line(means)}")

    def _report(self, losses: dict[str, float | None], rate: float, stalled: float) -> None:
        """Write a record of cells per second and of the share of time that rank 0 waited for data."""
        norm = self.engine.get_global_grad_norm()
        record = (
            self._record("train")
            | losses
            | {
                "lr": self.schedule.at(self.step - 1),
                "grad_norm": None if norm is None else float(norm),
                "cells_per_s": rate,
                "data_stall": stalled,
            }
        )
        self.log.write(record)
        left = (self.schedule.total_steps - self.step) * self.loader.global_batch_size / rate
        self.log.say(
            f"step {self.step}/{self.schedule.total_steps} | epoch {record['epoch']:.1f} | {_loss_line(losses)} | "
            f"lr {record['lr']:.1e} | {rate:.0f} cells/s | {format_seconds(left)} left"
        )

    def _record(self, split: str) -> dict[str, Any]:
        cells = self.loader.cells_seen
        return {
            "step": self.step,
            "epoch": cells / len(self.loader.order),
            "cells": cells,
            "split": split,
            "seconds": self.seconds,
        }

    def _save(self) -> None:
        state = {"step": self.step, "seconds": self.seconds, "loader": self.loader.state_dict()}
        self.directory.save(self.engine, self.step, state, self.cadence.keep_checkpoints)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.engine.device, non_blocking=True) for k, v in batch.items()}


def _loss_sums(output: Any, batch: dict[str, Tensor], weight: Tensor) -> Tensor:
    """Sum losses over cells: RNA, cells with RNA targets, the same for ADT, and cells."""
    rna = (batch["rna_observed"] & batch["rna_bool_masked_pos"].unsqueeze(-1)).flatten(1).any(1)
    adt = (batch["adt_observed"] & batch["adt_bool_masked_pos"]).any(1)
    columns = (output.rna_loss, rna, output.adt_loss, adt, torch.ones_like(weight))
    return torch.stack([(c.detach().double() * weight).sum() for c in columns])


def _means(sums: Tensor, config: Any) -> dict[str, float | None]:
    """Turn sums over the global batch into the loss and the error of each modality where it has targets."""
    rna, rna_cells, adt, adt_cells, cells = sums[:5].tolist()
    return {
        "loss": (config.rna_loss_weight * rna + config.adt_loss_weight * adt) / cells,
        "rna_loss": rna / rna_cells if rna_cells else None,
        "adt_loss": adt / adt_cells if adt_cells else None,
    }


def _loss_line(losses: dict[str, float | None]) -> str:
    shown = {k: losses[k] for k in _LOSSES if losses[k] is not None}
    return " ".join(f"{k.removesuffix('_loss')} {v:.4f}" for k, v in shown.items())
