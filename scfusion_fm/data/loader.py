"""The order of pretraining: a function of (seed, position), whatever the ranks, workers or interruptions.

A run reads one endless stream of cells: epoch after epoch, each a permutation of the training cells. Global batch
s is the cells at positions [s * size, (s + 1) * size); a rank takes its share of each. So every cell comes exactly
once per epoch, all batches are full, and the state of the loader is one integer.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .hashing import hash_keys

_BLOCKS, _ROWS = 11, 12  # streams of random numbers


class ElasticOrder:
    """
    Permute rows anew in each epoch, by neighbourhoods that are cheap to read.

    Rows are dealt in blocks of neighbours; blocks are permuted; rows are permuted inside windows of many blocks.

    Parameters
    ----------
    rows
        (n,) row numbers of the atlas to read.
    seed
        Seed of all permutations.
    block_size
        Neighbouring rows that are read together.
    window_blocks
        Blocks that are mixed with each other.

    Raises
    ------
    ValueError
        If there are no rows.
    """

    def __init__(self, rows: NDArray[np.int64], seed: int, block_size: int = 64, window_blocks: int = 128):
        if len(rows) == 0:
            raise ValueError("`rows` must name at least one cell, got none; check the split of the atlas.")
        self.rows = np.sort(np.asarray(rows, dtype=np.int64))
        self.seed = seed
        self.block_size = block_size
        self.window_blocks = window_blocks
        self._window = lru_cache(maxsize=4)(self._permute_window)
        self._blocks = lru_cache(maxsize=2)(self._permute_blocks)

    def __len__(self) -> int:
        return len(self.rows)

    def epoch_of(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the epoch of each position."""
        return np.asarray(position) // len(self)

    def take(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the row of the atlas at each position of the endless stream."""
        position = np.asarray(position, dtype=np.int64)
        result = np.empty_like(position)
        for epoch in np.unique(self.epoch_of(position)):
            inside = self.epoch_of(position) == epoch
            result[inside] = self._take_in_epoch(int(epoch), position[inside] % len(self))
        return result

    def _take_in_epoch(self, epoch: int, offset: NDArray[np.int64]) -> NDArray[np.int64]:
        _, ends = self._blocks(epoch)
        window = np.searchsorted(ends, offset, side="right") // self.window_blocks
        result = np.empty_like(offset)
        for w in np.unique(window):
            start = ends[w * self.window_blocks - 1] if w else 0
            result[window == w] = self._window(epoch, int(w))[offset[window == w] - start]
        return result

    def _permute_blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order the blocks of an epoch; also give the number of rows up to the end of each."""
        number = -(-len(self) // self.block_size)
        order = np.argsort(hash_keys(self.seed, _BLOCKS, epoch, np.arange(number)), kind="stable")
        sizes = np.minimum(self.block_size, len(self) - order * self.block_size)
        return order, np.cumsum(sizes)

    def _permute_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        blocks = self._blocks(epoch)[0][window * self.window_blocks : (window + 1) * self.window_blocks]
        rows = np.concatenate([self.rows[b * self.block_size : (b + 1) * self.block_size] for b in blocks])
        return rows[np.argsort(hash_keys(self.seed, _ROWS, epoch, rows), kind="stable")]


class ElasticLoader:
    """
    Deal the global batches of an order to ranks and accumulation steps.

    Parameters
    ----------
    order
        Rows by position.
    global_batch_size
        Cells per optimizer step over all ranks.
    micro_batch_size
        Cells per rank and forward pass; `world_size` times it must divide the global batch.
    rank, world_size
        Which share this process takes.

    Raises
    ------
    ValueError
        If the global batch cannot be dealt out evenly.
    """

    def __init__(self, order: ElasticOrder, global_batch_size: int, micro_batch_size: int, rank: int, world_size: int):
        if min(global_batch_size, micro_batch_size) < 1 or global_batch_size % (micro_batch_size * world_size):
            raise ValueError(
                "`global_batch_size` must be a multiple of `micro_batch_size` times the number of ranks, got "
                f"{global_batch_size}, {micro_batch_size} and {world_size} ranks."
            )
        self.order = order
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.cells_seen = 0

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of one rank per optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def next_batch(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Advance by one global batch; give this rank's micro-batches as (row of the atlas, epoch)."""
        start = self.cells_seen
        self.cells_seen += self.global_batch_size
        for i in range(self.accumulation_steps):
            first = start + (i * self.world_size + self.rank) * self.micro_batch_size
            position = np.arange(first, first + self.micro_batch_size)
            yield self.order.take(position), self.order.epoch_of(position)

    def state_dict(self) -> dict[str, int]:
        """Give the position in the stream, the same on all ranks."""
        return {"cells_seen": self.cells_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position in the stream, in constant time."""
        self.cells_seen = int(state["cells_seen"])
