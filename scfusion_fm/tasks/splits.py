"""Which cells a fine-tuning learns from, chooses by, calibrates on and is tested on."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.split import assign_split


def split_cells(obs: pd.DataFrame, rule: SplitConfig) -> NDArray[np.str_]:
    """
    Assign cells to train, val and test by the rule that atlases use.

    Raises
    ------
    ValueError
        If the column of groups is missing.
    """
    if rule.group_key is not None and rule.group_key not in obs:
        raise ValueError(
            f"`split.group_key` must be a column of obs, got {rule.group_key!r}; it has {list(obs.columns)}."
        )
    groups = None if rule.group_key is None else obs[rule.group_key].astype(str).to_numpy()
    return assign_split(obs.index.astype(str), rule, groups)


def rows_by_split(rows: NDArray[np.int64], split: NDArray[np.str_]) -> dict[str, NDArray[np.int64]]:
    """
    Sort rows into `train`, `val` and `test`.

    Raises
    ------
    ValueError
        If one of them gets no cell.
    """
    parts = {name: rows[split[rows] == name] for name in ("train", "val", "test")}
    empty = [name for name, part in parts.items() if len(part) == 0]
    if empty:
        raise ValueError(
            f"`split` must leave cells for train, val and test, got none for {empty}; change its fractions."
        )
    return parts


def set_apart_calibration(
    rows: dict[str, NDArray[np.int64]], fraction: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """
    Move some rows of `val` to `calibration`, so that they neither train nor choose anything.

    Raises
    ------
    ValueError
        If the fraction is out of range, or one of both gets no cell.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`calibration_fraction` must lie in (0, 1), got {fraction}.")
    order = np.random.default_rng([seed, len(rows["val"])]).permutation(rows["val"])
    number = round(fraction * len(order))
    if not 0 < number < len(order):
        raise ValueError(
            f"`calibration_fraction` must leave cells for validation and calibration, got {fraction} of {len(order)} "
            "cells; raise `split.val_fraction`."
        )
    return rows | {"val": np.sort(order[number:]), "calibration": np.sort(order[:number])}


def join_rows(rows: dict[str, NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Put the rows of train, val and test into one list, and say of each which it is."""
    names = ("train", "val", "test")
    return np.concatenate([rows[n] for n in names]), np.repeat(names, [len(rows[n]) for n in names])
