"""The order of pretraining: a function of (seed, position), whatever the ranks, threads or interruptions.

A run reads one endless stream of cells, epoch after epoch. How an epoch is laid out:

    data sets -> blocks of neighbouring rows, permuted -> L lanes of equal length -> windows of some blocks,
    rows permuted inside each window

Position p of an epoch is row p // L of lane p % L. So a batch draws from all lanes, neighbouring rows are read
together, and a reader needs only one window of each of its lanes. Every permutation is a sort by hashes of
(seed, epoch, ...): nothing is remembered, and any place of the stream is found at once.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.config.pretrain import LoaderConfig
from scfusion_fm.data.hashing import hash_keys

_BLOCKS, _EPOCH, _ROWS = 11, 12, 13  # streams of random numbers


@dataclass(frozen=True)
class _EpochPlan:
    """Blocks of one epoch, end to end: their first row, pass and end, and where windows begin."""

    first: NDArray[np.int64]
    passes: NDArray[np.int64]
    ends: NDArray[np.int64]
    borders: NDArray[np.int64]


class CellOrder:
    """
    Permute rows anew in each epoch, by neighbourhoods that are cheap to read.

    Parameters
    ----------
    rows
        For each data set, the row numbers of the atlas to read.
    seed
        Seed of all permutations.
    neighbourhoods
        Sizes of blocks and windows, number of lanes, and how often data sets are shown.

    Raises
    ------
    ValueError
        If there is nothing to read, or a weight is out of range or of no data set.
    """

    def __init__(self, rows: Mapping[str, NDArray[np.int64]], seed: int, neighbourhoods: LoaderConfig):
        weights = neighbourhoods.weights
        _check_weights(weights, rows)
        share = [float(weights.get(name, 1.0)) for name in rows]
        self._lengths = [len(r) for r in rows.values()]
        # One array of all rows, sorted in its place: an atlas may have a hundred million of them.
        ordered = np.concatenate([*rows.values(), np.array([], dtype=np.int64)], dtype=np.int64, casting="unsafe")
        for part in np.split(ordered, np.cumsum(self._lengths)):
            part.sort()
        self._shown = [round(w * length) for w, length in zip(share, self._lengths, strict=True)]
        if sum(self._shown) == 0:
            raise ValueError("`rows` must name at least one cell, got none; check the split and the weights.")
        sizes = {name: getattr(neighbourhoods, name) for name in ("block_rows", "window_blocks", "lanes")}
        self.seed, (self.block_rows, self.window_blocks, self.lanes) = seed, sizes.values()
        self.settings: dict[str, Any] = {
            "seed": seed,
            **sizes,
            "weights": dict(zip(rows, share, strict=True)),
            "rows": hashlib.blake2b(ordered.data, digest_size=8).hexdigest(),
        }
        self._rows = ordered.astype(np.int32) if ordered.max() < 2**31 else ordered
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _plan=lru_cache(maxsize=2)(self._plan_epoch))

    def __len__(self) -> int:
        """Count the rows of an epoch."""
        return sum(self._shown)

    def locate(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Find positions of the stream: epoch, window of the epoch, and place in the window."""
        epoch, offset = np.divmod(position, len(self))
        place = self._lane_starts(offset % self.lanes) + offset // self.lanes
        window, inside = np.empty_like(place), np.empty_like(place)
        for e in np.unique(epoch):
            here, borders = epoch == e, self._plan(int(e)).borders
            window[here] = np.searchsorted(borders, place[here], side="right") - 1
            inside[here] = place[here] - borders[window[here]]
        return epoch, window, inside

    def window(self, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """
        List the rows of a window in their order, and the pass of each.

        The pass counts how often the data set was gone through before; it is the epoch where the weight is 1.
        """
        plan = self._plan(epoch)
        place = np.arange(plan.borders[number], plan.borders[number + 1])
        place = place[np.argsort(hash_keys(self.seed, _ROWS, epoch, place), kind="stable")]
        block = np.searchsorted(plan.ends, place, side="right")
        starts = plan.ends[block - 1] * (block > 0)
        return self._rows[plan.first[block] + place - starts].astype(np.int64), plan.passes[block]

    def _lane_starts(self, lane: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give where lanes begin in the epoch; the first len % lanes of them hold one row more."""
        shortest, longer = divmod(len(self), self.lanes)
        return lane * shortest + np.minimum(lane, longer)

    def _plan_epoch(self, epoch: int) -> _EpochPlan:
        first, size, passes = (np.concatenate(parts) for parts in zip(*self._blocks_of_epoch(epoch), strict=True))
        order = np.argsort(hash_keys(self.seed, _EPOCH, epoch, np.arange(len(first))), kind="stable")
        ends = np.cumsum(size[order])
        return _EpochPlan(first[order], passes[order], ends, self._window_borders(ends))

    def _blocks_of_epoch(self, epoch: int):
        """Yield first rows, sizes and passes of the blocks that each data set shows in an epoch."""
        base = 0
        for dataset, (rows, shown) in enumerate(zip(self._lengths, self._shown, strict=True)):
            start, stop = epoch * shown, (epoch + 1) * shown
            for number in range(start // max(rows, 1), -(-stop // max(rows, 1))):
                gone = number * rows
                yield self._blocks_of_pass(dataset, number, base, max(start - gone, 0), min(stop - gone, rows))
            base += rows

    def _blocks_of_pass(self, dataset: int, number: int, base: int, start: int, stop: int):
        """Permute the blocks of a data set and keep rows [start, stop) of the result, cutting blocks at both ends."""
        rows = self._lengths[dataset]
        block = np.arange(-(-rows // self.block_rows))
        block = block[np.argsort(hash_keys(self.seed, _BLOCKS, dataset, number, block), kind="stable")]
        size = np.minimum(self.block_rows, rows - block * self.block_rows)
        ends = np.cumsum(size)
        begins = ends - size
        low, high = np.maximum(begins, start), np.minimum(ends, stop)
        kept = low < high
        first = base + block * self.block_rows + low - begins
        return first[kept], (high - low)[kept], np.full(kept.sum(), number)

    def _window_borders(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Cut the epoch at the borders of lanes and, inside a lane, every `window_blocks` blocks.

        The first windows have different lengths, so that lanes do not need their next window all at the same time.
        """
        starts = self._lane_starts(np.arange(self.lanes + 1))
        starts[-1] = len(self)
        cuts = [starts]
        for lane in range(self.lanes):
            inside = slice(*np.searchsorted(ends, starts[lane : lane + 2], side="right"))
            cuts.append(ends[inside][lane * self.window_blocks // self.lanes :: self.window_blocks])
        return np.unique(np.concatenate(cuts))


def _check_weights(weights: Mapping[str, float], rows: Mapping[str, NDArray[np.int64]]) -> None:
    unknown = weights.keys() - rows.keys()
    if unknown:
        raise ValueError(f"`weights` must name data sets of the atlas, got {sorted(unknown)}; it has {sorted(rows)}.")
    for name, weight in weights.items():
        if not 0 <= weight < np.inf:
            raise ValueError(f"`weights` must be finite and at least 0, got {weight} for {name!r}.")


def rank_slots(batch_size: int, lanes: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """
    Give the slots of a batch that a rank takes, an equal number for each.

    Slots are sorted by their lane first, so that a rank needs few lanes: `lanes / world_size` of them when the ranks
    divide the lanes and the lanes divide the batch.
    """
    slot = np.arange(batch_size)
    by_lane = np.lexsort((slot, slot % lanes))
    share = batch_size // world_size
    return by_lane[rank * share : (rank + 1) * share]
