"""An atlas as a `datasets.IterableDataset`, for trainers that want one.

Nodes and workers of torch's `DataLoader` become ranks of the order: together they see every cell of an epoch once.
`set_epoch` selects the epoch of the order, and a saved state goes on with the very next cell when the same epoch was
set before it is loaded. The order shuffles already; `datasets.IterableDataset.shuffle`, whose buffer would lose cells
at a resumption, is not supported.
"""

import json
from collections.abc import Iterator
from copy import copy
from typing import Any

import datasets
import numpy as np
from datasets.iterable_dataset import _BaseExamplesIterable

from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder, rank_slots


def build_iterable_dataset(atlas: Atlas, order: CellOrder, threads: int = 2) -> datasets.IterableDataset:
    """
    Show one epoch of an order, cell by cell.

    Parameters
    ----------
    atlas, order
        Where the cells are and which comes when.
    threads
        Threads that read ahead, in each process that iterates.

    Returns
    -------
    A data set of dicts with `row`, `pass`, and the arguments of the feature extractor for one cell: `rna_counts`,
    `rna_observed` (G,), `rna_total_counts`, `adt_counts`, `adt_observed` (P,). Nodes that divide the lanes of the order
    read their own part of the store only.
    """
    return datasets.IterableDataset(_AtlasExamples(atlas, order, threads))


class _AtlasExamples(_BaseExamplesIterable):
    """The share of one rank in one epoch; its state is the number of cells that it gave."""

    def __init__(self, atlas: Atlas, order: CellOrder, threads: int):
        super().__init__()
        self._atlas, self._order, self._threads = atlas, order, threads
        self._epoch, self._rank, self._world_size = 0, 0, 1

    @property
    def num_shards(self) -> int:
        """Number of ranks into which this share can be divided without reading anything twice."""
        return max(self._order.lanes // self._world_size, 1)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "_AtlasExamples":
        """Take a part of this share; which lanes it gets is up to the order."""
        part = copy(self)
        part._rank, part._world_size = self._rank * num_shards + index, self._world_size * num_shards
        return part

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_AtlasExamples":
        """Go to another epoch; `set_epoch(n)` makes this call with a generator seeded by n."""
        other = copy(self)
        other._epoch = int(generator.bit_generator.seed_seq.entropy)
        return other

    def _init_state_dict(self) -> dict[str, Any]:
        stream = {"atlas": self._atlas.fingerprint, "order": self._order.settings}
        self._state_dict = {
            "cells": 0,
            "share": [self._rank, self._world_size],
            "stream": json.dumps(stream),
            "type": type(self).__name__,
        }
        return self._state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Go on after the cells that were given.

        Raises
        ------
        ValueError
            If the state is that of another node or worker, or of another number of them. (Another atlas or order is
            refused when the iteration begins.)
        """
        share = [self._rank, self._world_size]
        if state_dict["share"] != share:
            raise ValueError(
                f"`state_dict` must be that of node and worker {share[0]} of {share[1]}, got that of "
                f"{state_dict['share'][0]} of {state_dict['share'][1]}."
            )
        return super().load_state_dict(state_dict)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (row, cell) from where the state says to the end of the epoch."""
        state = self._state_dict if self._state_dict is not None else self._init_state_dict()
        slots = rank_slots(self._batch_size, self._order.lanes, self._rank, self._world_size)
        step, given = divmod(state["cells"], len(slots))
        first, end = step * self._batch_size, len(self._order)
        share = (self._batch_size, len(slots), self._rank, self._world_size)
        with AtlasLoader(self._atlas, self._order, *share, self._threads) as loader:
            if first < end:
                loader.load_state_dict(json.loads(state["stream"]) | {"cells_seen": self._epoch * end + first})
            for start in range(first, end, self._batch_size):
                inside = np.flatnonzero(start + slots < end)[given:]
                given = 0
                ((cells, passes),) = loader.next_batch()
                counts = cells.as_counts()
                for i in inside:
                    state["cells"] += 1
                    row = int(cells.row[i])
                    yield row, {"row": row, "pass": int(passes[i]), **{k: v[i] for k, v in counts.items()}}

    @property
    def _batch_size(self) -> int:
        return self._order.lanes * self._world_size
