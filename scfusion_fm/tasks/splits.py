"""Which cells a fine-tuning learns from, chooses by and is tested on: the rule that atlases use."""

import numpy as np
import pandas as pd

from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.schema import read_categories
from scfusion_fm.data.split import assign_split
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.notices import warn


def split_cells(obs: pd.DataFrame, rule: SplitConfig) -> Partition:
    """
    Divide cells into train, val and test; those without a group are in none if groups are held out, with a warning.

    Raises
    ------
    ValueError
        If the column of groups is missing, or a part gets no cell.
    """
    if rule.group_key is not None and rule.group_key not in obs:
        raise ValueError(
            f"`split.group_key` must be a column of obs, got {rule.group_key!r}; it has {list(obs.columns)}."
        )
    names, roles = obs.index.astype(str), np.full(len(obs), "", dtype="<U5")
    groups = None if rule.group_key is None else read_categories(obs[rule.group_key])
    known = np.ones(len(obs), dtype=bool) if groups is None else ~pd.isna(groups)
    if not known.all():
        message = f"{(~known).sum():,} of {len(obs):,} cells have no {rule.group_key!r} and are left out of all parts."
        warn(message)
    roles[known] = assign_split(names[known], rule, None if groups is None else list(groups[known]))
    partition = Partition.from_roles(roles)
    partition.check("`split`")
    return partition
