"""The only pretraining loop: steps, evaluation on held-out cells, progress, checkpoints, interruption."""

import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import numpy as np
import torch
from deepspeed import comm
from numpy.typing import NDArray
from torch import Tensor

from scfusion_fm.training.collectives import from_rank_0, gather
from scfusion_fm.training.guard import StepGuard
from scfusion_fm.training.log import RunLog, format_seconds
from scfusion_fm.training.meter import Speed, Tally, memory_gib
from scfusion_fm.training.optimizer import Schedule
from scfusion_fm.training.run_directory import RunDirectory
from scfusion_fm.training.stop import StopRequest

VALIDATION_EPOCH = -1  # held-out cells get the same masks every time
BAD_STEPS = "bad_steps"

Collator = Callable[[Any, NDArray[np.int64] | int], dict[str, Tensor]]


class Loader(Protocol):
    """Deals global batches; see `scfusion_fm.data.stream.loader.AtlasLoader`."""

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


@dataclass(repr=False)
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
    guard
        Judges every step before its update.
    stop
        Whether this rank was asked to stop.
    directory
        Where checkpoints go.
    log
        Where records go.
    cadence
        Has `log_every`, `eval_every`, `save_every`, `keep_checkpoints`, `keep_every`, in steps.
    flops
        Gives the FLOPs of training on a cell, forward and backward, by its numbers of visible and masked RNA tokens and
        visible and masked protein tokens.
    peak_tflops
        What the device of a rank can do at most, in TFLOP/s; None if nobody knows.
    """

    engine: deepspeed.DeepSpeedEngine
    loader: Loader
    collate: Collator
    read: Callable[[NDArray[np.int64]], Any]
    validation_rows: NDArray[np.int64]
    schedule: Schedule
    guard: StepGuard
    stop: StopRequest
    directory: RunDirectory
    log: RunLog
    cadence: Any
    flops: Callable[[Sequence[float]], float]
    peak_tflops: float | None = None
    step: int = 0
    updates: int = 0
    seconds_before: float = 0.0
    _start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, over all its parts."""
        return self.seconds_before + time.monotonic() - self._start

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
        self.step, self.updates, self.seconds_before = state["step"], state["updates"], state["seconds"]
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
        speed, saved, stopped = Speed(self.step, self.loader.stall_seconds), self.step, False
        while self.step < self.schedule.total_steps and not stopped:
            with speed.training():
                tally = self._train_step()
            speed.add(tally, self.loader.stall_seconds)
            stopped = tally.stop_asked
            last = self.step == self.schedule.total_steps
            if self.step % self.cadence.log_every == 0 or last or stopped:
                self._report(tally, speed)
                speed.restart()
            if self.step % self.cadence.eval_every == 0 or last:
                self._evaluate()
            if self.step % self.cadence.save_every == 0 or last or stopped:
                self._save()
                saved = self.step
        complete = self.step == self.schedule.total_steps
        if not complete:
            self.log.say(f"stopped at step {saved}; the same command goes on from there")
        return complete

    def _train_step(self) -> Tally:
        """Take one optimizer step, unless the guard forbids the update; give what the global batch added up to."""
        for group in self.engine.basic_optimizer.param_groups:
            group["lr"] = self.schedule.at(self.step) * group.get("lr_ratio", 1.0)
        tally = Tally(self.engine.device, self.engine.module.config)
        seen = []
        for cells, passes in self.loader.next_batch():
            batch = self._to_device(self.collate(cells, passes))
            output = self.engine(**batch)
            self.engine.backward(output.loss)
            tally.add(output, batch)
            seen.append((cells.row, passes, output.rna_loss.detach(), output.adt_loss.detach()))
            if self.engine.is_gradient_accumulation_boundary():
                tally.reduce(self.stop.asked)
                self.engine.basic_optimizer.skip = not self.guard.accepts(tally.loss)
            self.engine.step()
        self.step += 1
        applied = not self.engine.basic_optimizer.skip and self.engine.was_step_applied()
        self.updates += applied
        self.guard.note(tally.loss, applied)
        if not applied:
            self._tell_of_bad_step(tally, seen)
        return tally

    def _tell_of_bad_step(self, tally: Tally, seen: list[tuple]) -> None:
        """Save which cells a step without an update was made of, and the losses of each; end the run if need be."""
        mine = [
            np.concatenate([torch.as_tensor(x).cpu().numpy() for x in column]) for column in zip(*seen, strict=True)
        ]
        rows, passes, rna_loss, adt_loss = (np.concatenate(column) for column in zip(*gather(mine), strict=True))
        path = self.directory.path / BAD_STEPS / f"step_{self.step:08d}.npz"
        what = f"step {self.step}: loss {tally.loss:.4g}, gradient norm {self._gradient_norm()}"
        from_rank_0(lambda: _save_arrays(path, rows=rows, passes=passes, rna_loss=rna_loss, adt_loss=adt_loss))
        if self.guard.gives_up:
            raise ValueError(
                f"the guard ended the run at {what}. Its cells are in {str(path)!r}. Look at them; then go on from the "
                "newest checkpoint with guard.action=skip, or with another guard.loss_factor."
            )
        self.log.say(f"{what}: no update, {self.guard.skipped} skipped so far; cells in {path}")

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Score held-out cells; the last batch is filled up with cells of weight 0, so that all ranks keep step."""
        number = len(self.validation_rows)
        if number == 0:
            return
        self.engine.eval()
        tally = Tally(self.engine.device, self.engine.module.config)
        size = self.loader.micro_batch_size
        for start in range(0, number, size * comm.get_world_size()):
            index = start + comm.get_rank() * size + np.arange(size)
            batch = self._to_device(self.collate(self.read(self.validation_rows[index % number]), VALIDATION_EPOCH))
            weight = torch.from_numpy(index < number).to(self.engine.device, torch.float64)
            tally.add(self.engine(**batch), batch, weight)
        self.engine.train()
        tally.reduce()
        self.log.write(self._record("val") | tally.losses)
        self.log.say(f"step {self.step} held-out cells: {tally}")

    def _report(self, tally: Tally, speed: Speed) -> None:
        """Write a record; speeds are those of training alone, without evaluation and checkpoints."""
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
                "mfu": tflops / self.peak_tflops if self.peak_tflops else None,
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
            f"{record['memory_gib']:.1f} GiB | "
            f"{left} left"
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

    def _save(self) -> None:
        cadence = self.cadence
        self.directory.save(self.engine, self.step, self.state_dict(), cadence.keep_checkpoints, cadence.keep_every)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.engine.device, non_blocking=True) for k, v in batch.items()}


def _save_arrays(path: Path, **arrays: NDArray) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
