"""Which cells a fine-tuning learns from, chooses by and is tested on: the rule that atlases use, a column, or groups.

Letters: n cells.
"""

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.config.finetune import AUTO, FinetuneSplitConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.schema import read_categories
from scfusion_fm.data.split import SPLITS, assign_split, order_by_hash
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.notices import warn

FEWEST_GROUPS = 5  # of which whole ones are held out by themselves
LARGEST_EXCESS = 1.5  # how much more than its share a part may hold for the sake of whole groups
MOST_TEST_CELLS = 20_000  # more make no score more certain by a digit that is shown
MOST_VAL_CELLS = 20_000
MOST_BASELINE_CELLS = 20_000  # that baselines learn from
OTHER_WORDS = {"training": "train", "validation": "val", "valid": "val", "testing": "test", "heldout": "test"}


def divide_cells(
    obs: pd.DataFrame, names: NDArray[np.object_], rule: FinetuneSplitConfig, batch_key: str | None = None
) -> tuple[Partition, str]:
    """
    Divide cells into train, val and, unless its share is 0, test; say how it was done.

    Parameters
    ----------
    obs
        Annotation of the n cells.
    names
        (n,) names by which cells are divided that no column divides.
    rule
        How to divide them.
    batch_key
        Column of groups that stay together where `rule.group_key` is auto.

    Raises
    ------
    ValueError
        If a column is missing, says something else than train, val or test, or a part gets no cell.
    """
    named = obs.set_axis(pd.Index(names), axis=0)
    if rule.column is not None:
        return _read_column(named, rule), f"the column {rule.column!r}"
    if rule.group_key != AUTO:
        return split_cells(named, rule), f"groups of {rule.group_key!r}" if rule.group_key else "single cells"
    return _hold_out_batches(named, rule, batch_key)


def split_cells(obs: pd.DataFrame, rule: SplitConfig) -> Partition:
    """
    Divide cells into train, val and test; those without a group are in none if groups are held out, with a warning.

    Raises
    ------
    ValueError
        If the column of groups is missing, or a part whose share is not 0 gets no cell.
    """
    if rule.group_key is not None and rule.group_key not in obs:
        raise ValueError(
            f"`split.group_key` must be a column of obs, got {rule.group_key!r}; it has {list(obs.columns)}."
        )
    names, roles = obs.index.astype(str), np.full(len(obs), "", dtype="<U5")
    groups = None if rule.group_key is None else read_categories(obs[rule.group_key])
    known = np.ones(len(obs), dtype=bool) if groups is None else ~pd.isna(groups)
    _warn_of_unknown(known, rule.group_key)
    roles[known] = assign_split(names[known], rule, None if groups is None else list(groups[known]))
    partition = Partition.from_roles(roles)
    partition.check("`split`", SPLITS if rule.test_fraction else SPLITS[:2])
    return partition


def limit_parts(partition: Partition, seed: int) -> Partition:
    """Leave cells out of very large parts for tests and choices: the one is scored at length, the other every epoch."""
    most = {"val": MOST_VAL_CELLS, "test": MOST_TEST_CELLS}
    return _limit(partition, most, seed)


def limit_training(partition: Partition, seed: int) -> Partition:
    """Leave cells out of a very large part to train on, for methods that hold all of them in memory."""
    return _limit(partition, {"train": MOST_BASELINE_CELLS}, seed)


def count_for_baselines(partition: Partition) -> int:
    """Count the training cells that `limit_training` leaves."""
    return min(len(partition.train), MOST_BASELINE_CELLS)


def _limit(partition: Partition, most: dict[str, int], seed: int) -> Partition:
    rng, kept = np.random.default_rng(seed), {}
    for name, number in most.items():
        rows = getattr(partition, name)
        kept[name] = rng.choice(rows, number, replace=False) if len(rows) > number else rows
    return dataclasses.replace(partition, **kept)


def _read_column(obs: pd.DataFrame, rule: FinetuneSplitConfig) -> Partition:
    """Read the parts from a column; val is drawn from train where there is none."""
    if rule.column not in obs:
        raise ValueError(f"`split.column` must be a column of obs, got {rule.column!r}; it has {list(obs.columns)}.")
    given = read_categories(obs[rule.column])
    roles = np.where(pd.isna(given), "", given).astype(str)
    words = {word: OTHER_WORDS.get(word.strip().lower(), word.strip().lower()) for word in set(roles.tolist())}
    other = sorted(word for word, role in words.items() if role not in (*SPLITS, ""))
    if other:
        raise ValueError(f"`split.column` must say train, val or test of each cell, or nothing, got {other[:5]}.")
    roles = np.array([words[role] for role in roles.tolist()])
    if "val" not in roles:
        drawn = assign_split(obs.index.astype(str), dataclasses.replace(rule, test_fraction=0.0))
        roles = np.where((roles == "train") & (drawn == "val"), "val", roles)
    partition = Partition.from_roles(roles)
    partition.check("`split.column`", SPLITS if "test" in roles else SPLITS[:2])
    return partition


def _hold_out_batches(obs: pd.DataFrame, rule: FinetuneSplitConfig, batch_key: str | None) -> tuple[Partition, str]:
    """Hold out whole batches where there are enough of them, and else single cells."""
    alone = dataclasses.replace(rule, group_key=None)
    if batch_key is None or batch_key not in obs:
        return split_cells(obs, alone), "single cells"
    groups = read_categories(obs[batch_key])
    known = ~pd.isna(groups)
    roles = _choose_groups(groups[known].astype(str), rule)
    if roles is None:
        return split_cells(obs, alone), f"single cells, for {batch_key!r} has no groups that could be held out"
    _warn_of_unknown(known, batch_key)
    every = np.full(len(obs), "", dtype="<U5")
    every[known] = roles
    return Partition.from_roles(every), f"groups of {batch_key!r}"


def _choose_groups(groups: NDArray[np.str_], rule: SplitConfig) -> NDArray[np.str_] | None:
    """
    Take whole groups for test and val, in the order of a hash, until each has its share; None where that cannot be.

    Unlike by thresholds of the hash, no part is empty, and none has far more than its share.
    """
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < FEWEST_GROUPS:
        return None
    left = [int(place) for place in order_by_hash(names.tolist(), rule.seed)]
    part_of = np.full(len(names), "train", dtype="<U5")
    for part, share in (("test", rule.test_fraction), ("val", rule.val_fraction)):
        wanted, taken = share * len(groups), 0
        for place in list(left) if share else ():
            if taken < wanted and taken + sizes[place] <= LARGEST_EXCESS * wanted:
                part_of[place], taken = part, taken + sizes[place]
                left.remove(place)
        if share and not taken:
            return None
    return part_of[np.searchsorted(names, groups)]


def _warn_of_unknown(known: NDArray[np.bool_], key: str | None) -> None:
    if not known.all():
        message = f"{(~known).sum():,} of {len(known):,} cells have no {key!r} and are left out of all parts."
        warn(message)
