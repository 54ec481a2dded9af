"""Studies and batches of cells, and whole ones that are held out by their names.

Letters: n cells.
"""

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.config.finetune import FinetuneConfig
from scfusion_fm.data.schema import DATASET, read_categories
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.tasks.given import GivenCells
from scfusion_fm.tasks.splits import divide_cells

ONE_STUDY = "all cells"


def read_batches(cells: GivenCells, config: FinetuneConfig) -> tuple[NDArray[np.object_], str | None]:
    """
    Give the batch of each cell, (n,), None without one, and the column: `batch_key`, or that of files if there are any.

    Raises
    ------
    ValueError
        If the column is missing.
    """
    obs, key = cells.obs, config.batch_key
    if key is None:
        key = DATASET if len(config.data) > 1 or DATASET in obs else None
    if key is None:
        return np.full(len(obs), ONE_STUDY, dtype=object), None
    if key not in obs:
        raise ValueError(f"`batch_key` must be a column of obs, got {key!r}; it has {list(obs.columns)}.")
    return read_categories(obs[key]), key


def hold_out(
    cells: GivenCells, config: FinetuneConfig, batches: NDArray[np.object_], key: str | None, test_groups: list[str]
) -> tuple[Partition, NDArray[np.int64], str]:
    """
    Divide cells, and hold named batches out.

    Returns
    -------
    The partition of all other cells, the rows of the batches that are held out, and how it was done.

    Raises
    ------
    ValueError
        If a batch is not there, or a part gets no cell.
    """
    known = set(batches[~pd.isna(batches)])
    missing = [name for name in test_groups if name not in known]
    if missing:
        raise ValueError(
            f"`test_groups` must name groups of {key or DATASET!r}, got {missing}; there are {sorted(known)}."
        )
    held = np.isin(batches.astype(str), test_groups) & ~pd.isna(batches)
    rest = np.flatnonzero(~held)
    split = config.split
    if key == DATASET and split.column is None and config.batch_key is None and held.any():
        key = None  # files are held out by name, and cells one by one
    partition, rule = divide_cells(cells.obs.iloc[rest], cells.own_names[rest], split, key)
    rule += f", without {', '.join(test_groups)}" if test_groups else ""
    return partition.of(rest), np.flatnonzero(held), rule


def without_test(config: FinetuneConfig) -> FinetuneConfig:
    """Give the settings of a division that leaves no cell for a test: all of it is held out by name."""
    return dataclasses.replace(config, split=dataclasses.replace(config.split, test_fraction=0.0))
