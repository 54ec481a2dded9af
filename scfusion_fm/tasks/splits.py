"""Which cells a fine-tuning learns from, chooses by and is tested on: the rule that atlases use."""

import pandas as pd

from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.schema import as_text
from scfusion_fm.data.split import assign_split
from scfusion_fm.evaluation.partition import Partition


def split_cells(obs: pd.DataFrame, rule: SplitConfig) -> Partition:
    """
    Divide cells into train, val and test.

    Raises
    ------
    ValueError
        If the column of groups is missing, or a part gets no cell.
    """
    if rule.group_key is not None and rule.group_key not in obs:
        raise ValueError(
            f"`split.group_key` must be a column of obs, got {rule.group_key!r}; it has {list(obs.columns)}."
        )
    groups = None if rule.group_key is None else as_text(obs[rule.group_key]).to_numpy()
    partition = Partition.from_roles(assign_split(obs.index.astype(str), rule, groups))
    partition.check("`split`")
    return partition
