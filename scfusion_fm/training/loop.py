"""The only pretraining loop: steps, evaluation on held-out cells, progress, checkpoints, interruption."""

import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import deepspeed
import numpy as np
import torch
from deepspeed import comm
from numpy.typing import NDArray
from torch import Tensor

from scfusion_fm.config.pretrain import RunConfig
from scfusion_fm.training.bad_steps import CellLosses, save_bad_step
from scfusion_fm.training.guard import StepGuard
from scfusion_fm.training.log import RunLog, format_seconds
from scfusion_fm.training.meter import Speed, Tally, memory_gib
from scfusion_fm.training.optimizer import Schedule, set_learning_rate
from scfusion_fm.training.run_directory import RunDirectory
from scfusion_fm.training.stop import StopRequest

VALIDATION_EPOCH = -1  # held-out cells get the same masks every time


class Loader(Protocol):
    """Reads and collates the cells of this rank; see `scfusion_fm.data.stream.loader.AtlasLoader`."""

    order: Sized
    cells_seen: int
    stall_seconds: float

    def next_batch(self) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        """Advance by one global batch; give cells (`row` and the `inputs` of the model) and the pass of each."""

    def deal_rows(self, rows: NDArray[np.int64], passes: int) -> Iterator[tuple[Any, NDArray[np.bool_]]]:
        """Read some rows once; give cells, as many batches to every rank, and which of the cells count."""

    def state_dict(self) -> dict[str, Any]:
        """Give the position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


@dataclass(repr=False, kw_only=True)
class PretrainingLoop:
    """
    Train until the schedule ends or somebody asks to stop.

    Parameters
    ----------
    engine
        The DeepSpeed engine.
    loader
        Reads the cells of this rank, and makes the arguments of the model.
    validation_rows
        Held-out rows of the atlas, the same on all ranks.
    schedule
        Learning rate by step.
    guard
        Judges every step before its update.
    stop
        Whether this rank was asked to stop.
    directory
        Where checkpoints go.
    log
        Where records go.
    settings
        When it reports, evaluates and saves.
    flops
        Gives the FLOPs of training on a cell, forward and backward, by its numbers of visible and masked RNA tokens and
        visible and masked protein tokens.

    Attributes
    ----------
    step
        Steps taken, with those of the runs before that this one goes on from.
    updates
        Those of them that changed the model.
    """

    engine: deepspeed.DeepSpeedEngine
    loader: Loader
    validation_rows: NDArray[np.int64]
    schedule: Schedule
    guard: StepGuard
    stop: StopRequest
    directory: RunDirectory
    log: RunLog
    settings: RunConfig
    flops: Callable[[Sequence[float]], float]
    step: int = field(default=0, init=False)
    updates: int = field(default=0, init=False)
    _seconds_before: float = field(default=0.0, init=False)
    _start: float = field(default_factory=time.monotonic, init=False)

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, over all its parts."""
        return self._seconds_before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint needs beside weights and moments. Chance has no state: see `scfusion_fm.data`."""
        return {
            "step": self.step,
            "updates": self.updates,
            "seconds": self.seconds,
            "loader": self.loader.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of a checkpoint."""
        self.step, self.updates, self._seconds_before = state["step"], state["updates"], state["seconds"]
        self.loader.load_state_dict(state["loader"])
        self.guard.load_state_dict(state["guard"])

    def run(self) -> bool:
        """
        Train; give whether the run is complete. A stop that was asked for saves first.

        Raises
        ------
        ValueError
            If the guard gives up.
        """
        speed, stopped = Speed(self.step, self.loader.stall_seconds), False
        while self.step < self.schedule.total_steps and not stopped:
            with speed.training():
                tally = self._train_step()
            speed.add(tally, self.loader.stall_seconds)
            stopped = tally.stop_asked
            last = self.step == self.schedule.total_steps
            if self.step % self.settings.log_every == 0 or last or stopped:
                self._report(tally, speed)
                speed.restart()
            if self.step % self.settings.eval_every == 0 or last:
                self._evaluate()
            if self.step % self.settings.save_every == 0 or last or stopped:
                self.directory.save(self.engine, self.step, self.state_dict())
        complete = self.step == self.schedule.total_steps
        if not complete:
            self.log.say(f"stopped at step {self.step}; the same command goes on from there")
        return complete

    def _train_step(self) -> Tally:
        """Take one optimizer step, unless the guard forbids the update; give what the global batch added up to."""
        set_learning_rate(self.engine.basic_optimizer, self.schedule.at(self.step))
        tally, seen = Tally(self.engine.device, self.engine.module.config), []
        for cells, passes in self.loader.next_batch():
            batch = self._to_device(cells.inputs)
            output = self.engine(**batch)
            self.engine.backward(output.loss)
            tally.add(output, batch)
            seen.append(CellLosses(cells.row, passes, output.rna_loss.detach(), output.adt_loss.detach()))
            if self.engine.is_gradient_accumulation_boundary():
                tally.reduce(self.stop.asked)  # the request to stop rides along with the losses
                self.engine.basic_optimizer.skip = not self.guard.accepts(tally.loss)
            self.engine.step()
        self.step += 1
        applied = not self.engine.basic_optimizer.skip and self.engine.was_step_applied()
        self.updates += applied
        self.guard.note(tally.loss, applied)
        if not applied:
            file = save_bad_step(self.directory.path, self.step, seen)
            norm = self._gradient_norm()
            what = f"step {self.step}: loss {tally.loss:.4g}, gradient norm {norm}, its cells in {str(file)!r}"
            self.guard.check_goes_on(what)
            self.log.say(f"{what}: no update, {self.guard.skipped} skipped so far")
        return tally

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Score held-out cells, if there are any."""
        if len(self.validation_rows) == 0:
            return
        self.engine.eval()
        tally = Tally(self.engine.device, self.engine.module.config)
        for cells, counts in self.loader.deal_rows(self.validation_rows, VALIDATION_EPOCH):
            batch = self._to_device(cells.inputs)
            weight = torch.from_numpy(counts).to(self.engine.device, torch.float64)
            tally.add(self.engine(**batch), batch, weight)
        self.engine.train()
        tally.reduce()
        self.log.write(self._record("val") | tally.losses)
        self.log.say(f"step {self.step} held-out cells: {tally}")

    def _report(self, tally: Tally, speed: Speed) -> None:
        """Write a record; speeds are those of training alone, without evaluation and checkpoints."""
        peak = self.settings.peak_tflops
        tflops = speed.cells_per_s * self.flops(speed.tokens_per_cell) / comm.get_world_size() / 1e12
        record = (
            self._record("train")
            | tally.losses
            | {
                "lr": self.schedule.at(self.step - 1),
                "grad_norm": self._gradient_norm(),
                "cells_per_s": speed.cells_per_s,
                "tokens_per_s": speed.tokens_per_s,
                "tflops": tflops,
                "mfu": tflops / peak if peak else None,
                "data_stall": speed.stall,
                "memory_gib": memory_gib(self.engine.device),
                "skipped_steps": self.guard.skipped,
            }
        )
        self.log.write(record)
        left = format_seconds((self.schedule.total_steps - self.step) * speed.seconds_per_step(self.step))
        used = "" if record["mfu"] is None else f" | MFU {record['mfu']:.1%}"
        self.log.say(
            f"step {self.step}/{self.schedule.total_steps} | epoch {record['epoch']:.1f} | {tally} | "
            f"norm {record['grad_norm'] or float('nan'):.2f} | lr {record['lr']:.1e} | "
            f"{speed.cells_per_s:.0f} cells/s | {speed.tokens_per_s:.0f} tokens/s{used} | stall {speed.stall:.0%} | "
            f"{record['memory_gib']:.1f} GiB | {left} left"
        )

    def _gradient_norm(self) -> float | None:
        norm = self.engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def _record(self, split: str) -> dict[str, Any]:
        cells = self.loader.cells_seen
        return {
            "step": self.step,
            "epoch": cells / len(self.loader.order),
            "cells": cells,
            "split": split,
            "seconds": self.seconds,
        }

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.engine.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
