"""Assign cells to train, validation and test by a hash of their names."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np


def assign_split(
    cell_names: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Sequence[str] | None = None,
) -> np.ndarray:
    """Assign each cell to 'train', 'val' or 'test'.

    Parameters
    ----------
    cell_names
        (n_obs,) names.
    val_fraction, test_fraction
        Expected share of the names (of the groups, if given), each in [0, 1) and together below 1.
    seed
        Another seed gives another split.
    groups
        (n_obs,) names of donors or batches whose cells must stay together.

    Returns
    -------
    (n_obs,) array of strings.

    Raises
    ------
    ValueError
        If a fraction is out of range, lengths differ, or a group has no name.

    Notes
    -----
    A cell's part depends on its own name (or group) and the seed only: not on order, on other cells or on the
    library versions. `tests/data/test_split.py` guards it.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"`{name}` must lie in [0, 1), got {fraction}.")
    if val_fraction + test_fraction >= 1:
        raise ValueError(
            "`val_fraction` + `test_fraction` must be below 1 so that cells are left to train on, "
            f"got {val_fraction} + {test_fraction}."
        )
    keys = cell_names if groups is None else _check_groups(groups, len(cell_names))
    uniform = np.array([_hash_to_unit(f"{seed}:{key}") for key in keys], dtype=np.float64)
    split = np.full(len(keys), "train", dtype="<U5")
    split[uniform < val_fraction + test_fraction] = "val"
    split[uniform < test_fraction] = "test"
    return split


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
