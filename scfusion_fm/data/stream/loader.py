"""Batches of cells for one rank, read ahead by threads.

The loader walks along the order some batches ahead of training and has threads read every window that it meets; the
next two batches are also made dense there, and collated. It remembers nothing but how many cells were handed out.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.data.atlas.atlas import Atlas, AtlasRows
from scfusion_fm.data.atlas.packed import PackedCells
from scfusion_fm.data.stream.order import CellOrder, rank_slots

_READY_AHEAD = 2  # micro-batches made dense and collated before they are asked for
_COLLATED = 1.25  # of a dense batch: what was observed comes with the values
_COLLATING = 4  # dense batches that a thread holds while it collates: counts, and steps on the way
_WINDOWS = 3  # of a lane that can be in memory: one being read from, one ahead, and what an epoch's border cuts off

Collator = Callable[[AtlasRows, NDArray[np.int64] | int], dict[str, Any]]


@dataclass(frozen=True)
class CollatedCells:
    """
    Some cells of an atlas, as a collator made them.

    Attributes
    ----------
    row
        (B,) row numbers in the atlas.
    inputs
        What the collator gave: the arguments of a model.
    """

    row: NDArray[np.int64]
    inputs: dict[str, Any]


Batch = tuple[Any, NDArray[np.int64]]  # AtlasRows, or CollatedCells where there is a collator


@dataclass(frozen=True)
class _Window:
    """Rows that are read together, their passes, and their counts as soon as they are there."""

    rows: NDArray[np.int64]
    passes: NDArray[np.int64]
    cells: Future[PackedCells]


_Parts = list[tuple[_Window, NDArray[np.int64]]]


class AtlasLoader:
    """
    Deal the global batches of an order to ranks and accumulation steps.

    Parameters
    ----------
    atlas
        Where the cells are.
    order
        Which cell comes when.
    global_batch_size
        Cells per optimizer step over all ranks.
    micro_batch_size
        Cells per rank and forward pass; `world_size` times it must divide the global batch.
    rank, world_size
        Which share this process takes.
    threads
        Threads that read ahead.
    collate
        Makes the arguments of a model from cells and the pass of each, in these threads. Then `CollatedCells` are
        handed out in place of `AtlasRows`.

    Attributes
    ----------
    cells_seen
        Cells of the stream that were handed out, over all ranks.
    stall_seconds
        How long `next_batch` let its caller wait so far.

    Raises
    ------
    ValueError
        If the global batch cannot be dealt out evenly.

    Notes
    -----
    `with AtlasLoader(...) as loader` stops the threads at the end, also where an error ends it.
    """

    def __init__(
        self,
        atlas: Atlas,
        order: CellOrder,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        collate: Collator | None = None,
    ):
        if min(global_batch_size, micro_batch_size) < 1 or global_batch_size % (micro_batch_size * world_size):
            raise ValueError(
                "`global_batch_size` must be a multiple of `micro_batch_size` times the number of ranks, got "
                f"{global_batch_size}, {micro_batch_size} and {world_size} ranks."
            )
        if threads < 1:
            raise ValueError(f"`threads` must be at least 1, got {threads}.")
        self.order = order
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.cells_seen = 0
        self.stall_seconds = 0.0
        self._atlas, self._collate = atlas, collate
        self._rank, self._world_size = rank, world_size
        self._slots = rank_slots(global_batch_size, order.lanes, rank, world_size)
        steps = min(order.lanes * self._window_rows, len(order)) // global_batch_size
        self._ahead = max(steps, 1) * self.accumulation_steps  # one window of each lane, or one epoch
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="atlas")
        self._windows: WeakValueDictionary[tuple[int, int], _Window] = WeakValueDictionary()
        self._planned: deque[_Parts] = deque()
        self._ready: deque[Future[Batch]] = deque()
        self._planned_cells = self._left = 0

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of one rank per optimizer step."""
        return len(self._slots) // self.micro_batch_size

    @property
    def _window_rows(self) -> int:
        return self.order.window_blocks * self.order.block_rows

    def next_batch(self) -> Iterator[Batch]:
        """
        Advance by one global batch; give this rank's micro-batches as (cells, pass of each cell).

        The batch counts as seen from its first micro-batch on.
        """
        if self._left:  # the last batch was not read to its end
            self._restart()
        self.cells_seen += self.global_batch_size
        for left in reversed(range(self.accumulation_steps)):
            self._left = left
            start = time.monotonic()
            self._look_ahead()
            batch = self._ready.popleft().result()
            self.stall_seconds += time.monotonic() - start
            yield batch

    def deal_rows(self, rows: NDArray[np.int64], passes: int = 0) -> Iterator[tuple[Any, NDArray[np.bool_]]]:
        """
        Read some rows of the atlas once, whatever the position; give cells, and which of them count, (B,).

        Every rank gets as many batches. They are filled up with cells that do not count, since others have them. A
        collator is told the same pass of all of them.
        """
        size = self.micro_batch_size
        ready: deque[tuple[Future[Any], NDArray[np.bool_]]] = deque()
        for start in range(0, len(rows), size * self._world_size):
            place = start + self._rank * size + np.arange(size)
            made = self._pool.submit(self._read_batch, rows[place % len(rows)], passes)
            ready.append((made, place < len(rows)))
            if len(ready) > _READY_AHEAD:
                made, counts = ready.popleft()
                yield made.result(), counts
        for made, counts in ready:
            yield made.result(), counts

    def state_dict(self) -> dict[str, Any]:
        """Give the position in the stream, the same on all ranks, and what the stream consists of."""
        return {
            "cells_seen": self.cells_seen,
            "atlas": self._atlas.fingerprint,
            "order": self.order.settings,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go to a position in the stream, in constant time.

        Ranks, threads and sizes of batches may differ from those of the saved loader: the stream goes on with the
        first cell that was not in a batch yet.

        Raises
        ------
        ValueError
            If the atlas or the order is another one, so that the position would mean other cells.
        """
        here = self.state_dict()
        if state["atlas"] != here["atlas"]:
            raise ValueError(
                "`atlas` must be the one that the run started with, got another one: fingerprint "
                f"{here['atlas'][:12]} instead of {state['atlas'][:12]}. Give that atlas, or start a new run."
            )
        changed = [k for k in here["order"] if here["order"][k] != state["order"].get(k)]
        if changed:
            was, now = ({k: order.get(k) for k in changed} for order in (state["order"], here["order"]))
            raise ValueError(
                f"`loader` and `seed` must be those that the run started with, got {now} instead of {was}. "
                "Give the old settings, or start a new run."
            )
        self.cells_seen = int(state["cells_seen"])
        self._restart()

    def describe(self) -> dict[str, int]:
        """
        Tell how the loader reads and what memory this rank needs for it.

        In memory are windows of the rank's lanes, sparse (two of each lane, or three at the border of epochs), three
        dense micro-batches and the tables of the atlas: `mebibytes` = 3 * lanes * window_rows * bytes of a sparse cell
        + 3 * micro_batch_size * bytes of a dense cell + tables, where the sparse cell is a mean over the atlas. With a
        collator, the three have masks too, and each thread works on some more. `ranks_per_lane` ranks read the same
        windows, each for some of its cells: with more ranks than lanes, that is more than one.
        """
        lanes = len(np.unique(self._slots % self.order.lanes))
        if self.global_batch_size % self.order.lanes:
            lanes = self.order.lanes  # the lanes of a slot change from batch to batch
        sparse = _WINDOWS * lanes * self._window_rows * self._atlas.sparse_bytes_per_cell(self.order.block_rows)
        batches = float(_READY_AHEAD + 1)
        if self._collate is not None:
            batches = _COLLATED * batches + _COLLATING * self._threads
        dense = batches * self.micro_batch_size * self._atlas.dense_bytes_per_cell
        return {
            "lanes": lanes,
            "window_rows": self._window_rows,
            "ranks_per_lane": -(-lanes * self._world_size // self.order.lanes),
            "micro_batches_ahead": self._ahead,
            "mebibytes": round((sparse + dense + self._atlas.table_bytes) / 2**20),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; what they were asked for and have not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _restart(self) -> None:
        """Forget what was read ahead, and look ahead from the present position."""
        waiting: list[Future[Any]] = [*self._ready, *(w.cells for w in self._windows.values())]
        for future in waiting:
            future.cancel()
        self._windows.clear()
        self._planned.clear()
        self._ready.clear()
        self._planned_cells, self._left = self.cells_seen, 0

    def _look_ahead(self) -> None:
        """
        Plan micro-batches, which has their windows read, and have the next ones made.

        The pool takes tasks in turn, and a task that makes a batch comes after those that read its windows, so that it
        never waits for a task behind it.
        """
        while len(self._planned) + len(self._ready) < self._ahead:
            self._planned.extend(self._plan_step())
            self._start_batches()
        self._start_batches()

    def _start_batches(self) -> None:
        while self._planned and len(self._ready) < _READY_AHEAD:
            self._ready.append(self._pool.submit(self._make_batch, self._planned.popleft()))

    def _plan_step(self) -> Iterator[_Parts]:
        """Find the windows of this rank's micro-batches in the next global batch."""
        positions = self._planned_cells + self._slots
        self._planned_cells += self.global_batch_size
        for micro_batch in positions.reshape(self.accumulation_steps, -1):
            epoch, window, inside = self.order.locate(micro_batch)
            change = (np.diff(epoch) != 0) | (np.diff(window) != 0)
            parts = np.split(np.arange(len(inside)), np.flatnonzero(change) + 1)
            yield [(self._window(int(epoch[p[0]]), int(window[p[0]])), inside[p]) for p in parts]

    def _window(self, epoch: int, number: int) -> _Window:
        """Give a window that a planned batch holds already, or have it read; it goes with the last such batch."""
        window = self._windows.get((epoch, number))
        if window is None:
            rows, passes = self.order.window(epoch, number)
            window = _Window(rows, passes, self._pool.submit(self._atlas.read_packed, rows))
            self._windows[epoch, number] = window
        return window

    def _make_batch(self, parts: _Parts) -> Batch:
        rows = np.concatenate([window.rows[inside] for window, inside in parts])
        passes = np.concatenate([window.passes[inside] for window, inside in parts])
        cells = self._atlas.unpack(rows, [(window.cells.result(), inside) for window, inside in parts])
        return self._finish(cells, passes), passes

    def _read_batch(self, rows: NDArray[np.int64], passes: int) -> AtlasRows | CollatedCells:
        return self._finish(self._atlas.read(rows), passes)

    def _finish(self, cells: AtlasRows, passes: NDArray[np.int64] | int) -> AtlasRows | CollatedCells:
        """Collate, where somebody said how; the dense counts can be lent again then."""
        return cells if self._collate is None else CollatedCells(cells.row, self._collate(cells, passes))
