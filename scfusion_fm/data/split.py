"""Assign cells to train, validation and test by a hash of their names."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.config.split import SplitConfig

SPLITS = ("train", "val", "test")


def assign_split(cell_names: Sequence[str], rule: SplitConfig, groups: Sequence[str] | None = None) -> NDArray[np.str_]:
    """Assign each cell to 'train', 'val' or 'test'.

    Parameters
    ----------
    cell_names
        (n_obs,) names.
    rule
        Expected shares of the names (of the groups, if given); another seed gives another split.
    groups
        (n_obs,) names of donors or batches whose cells must stay together; those of the column that `rule` names.

    Returns
    -------
    (n_obs,) array of strings.

    Raises
    ------
    ValueError
        If lengths differ or a group has no name.

    Notes
    -----
    A cell's part depends on its own name (or group) and the seed only: not on order, on other cells or on the
    library versions. `tests/data/test_split.py` guards it.
    """
    keys = cell_names if groups is None else _check_groups(groups, len(cell_names))
    uniform = np.array([_hash_to_unit(f"{rule.seed}:{key}") for key in keys], dtype=np.float64)
    split = np.full(len(keys), "train", dtype="<U5")
    split[uniform < rule.val_fraction + rule.test_fraction] = "val"
    split[uniform < rule.test_fraction] = "test"
    return split


def order_by_hash(names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Give the places of names in the order of their hashes, by which `assign_split` assigns them."""
    return np.argsort([_hash_to_unit(f"{seed}:{name}") for name in names], kind="stable")


def _check_groups(groups: Sequence[str], num_cells: int) -> Sequence[str]:
    if len(groups) != num_cells:
        raise ValueError(f"`groups` must have one entry per cell ({num_cells}), got {len(groups)}.")
    unnamed = sum(not isinstance(group, str) or not group for group in groups)
    if unnamed:
        raise ValueError(
            f"`groups` must name the group of every cell, got {unnamed} empty or non-text entries. "
            "Fill the column, convert it to text, or split without groups."
        )
    return groups


def _hash_to_unit(text: str) -> float:
    digest = blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits: always below 1
