"""Which cells are fitted, tuned on and tested: folds of cells, of groups, and folds with few labels.

Shapes: n cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scfusion_fm.evaluation.partition import Partition

NO_NAME = ("", "unknown", "nan", "NaN", "None", "<NA>")
VAL_EVERY = 5
VAL_PLACE = 2
MIN_BUDGET = 3


@dataclass(frozen=True)
class Fold:
    """One division of the cells.

    Attributes
    ----------
    name
        What is held out, e.g. "fold 1 of 5" or the name of a donor.
    partition
        What the cells are for.
    """

    name: str
    partition: Partition


def k_folds(n_folds: int, strata: ArrayLike, seed: int = 0, val_fraction: float = 0.1) -> list[Fold]:
    """Deal all cells into folds; every cell is a test cell exactly once.

    Parameters
    ----------
    n_folds
        Number of folds, at least 2 and at most n.
    strata
        (n,), what is spread evenly over the folds, e.g. cell types.
    seed
        Seed of the draw.
    val_fraction
        Share of the cells outside the test fold that become validation cells, in (0, 0.5].

    Returns
    -------
    The folds, equal in size to one cell. In each stratum, too, the folds' test cells differ by one at most, so that
    a stratum with fewer cells than folds has one test cell in as many folds as it has cells.

    Raises
    ------
    ValueError
        If `n_folds` or `val_fraction` is out of range, or no validation cell can be drawn.
    """
    strata = np.asarray(strata).astype(str)
    check_val_fraction(val_fraction)
    if not 2 <= n_folds <= len(strata):
        raise ValueError(
            f"`n_folds` must lie in [2, {len(strata)}], the number of cells, got {n_folds}; pass another number."
        )
    rng = np.random.default_rng(seed)
    dealt = np.empty(len(strata), np.int64)
    dealt[shuffle_by_stratum(strata, rng)] = np.arange(len(strata)) % n_folds
    return [
        divide(f"fold {k + 1} of {n_folds}", dealt == k, strata, val_fraction, np.random.default_rng([seed, k]))
        for k in range(n_folds)
    ]


def leave_group_out(
    groups: ArrayLike,
    seed: int = 0,
    val_fraction: float = 0.1,
    strata: ArrayLike | None = None,
    test_groups: Sequence[str] = (),
) -> list[Fold]:
    """Hold out one group of cells after the other: donors, batches or data sets.

    Parameters
    ----------
    groups
        (n,), name of every cell's group.
    seed
        Seed of the draw of validation cells.
    val_fraction
        Share of the cells of the other groups that become validation cells, in (0, 0.5].
    strata
        (n,), what the draw of validation cells is spread over evenly, e.g. cell types; nothing if not given.
    test_groups
        Groups to hold out, the others being trained on in every fold; all when empty.

    Returns
    -------
    One fold per group that is held out, in the order of their names.

    Raises
    ------
    ValueError
        If there are fewer than two groups, a cell has none, `strata` has another length, a test group is unknown, or
        `val_fraction` is out of range.

    Notes
    -----
    Validation cells come from the training groups, so that their score is too good for a group that is new.
    """
    groups = np.asarray(groups).astype(str)
    strata = np.zeros(len(groups), "U1") if strata is None else np.asarray(strata).astype(str)
    check_val_fraction(val_fraction)
    if strata.shape != groups.shape:
        raise ValueError(
            f"`strata` must have one entry per cell ({len(groups)}), got shape {strata.shape}; select the same cells."
        )
    n_unknown = int(np.isin(groups, NO_NAME).sum())
    if n_unknown:
        raise ValueError(
            f"`groups` must name the group of every cell, got {n_unknown} cells without one; leave them out."
        )
    names = np.unique(groups)
    if len(names) < 2:
        raise ValueError(
            f"`groups` must hold at least two groups, got {names.tolist()}; use `k_folds` or another column."
        )
    unknown = sorted(set(test_groups) - set(names.tolist()))
    if unknown:
        raise ValueError(f"`test_groups` must be among the groups {names.tolist()}, got {unknown}.")
    return [
        divide(str(name), groups == name, strata, val_fraction, np.random.default_rng([seed, k]))
        for k, name in enumerate(names)
        if not test_groups or name in test_groups
    ]


def limit_labels(fold: Fold, labels: ArrayLike, budget: int, seed: int = 0) -> Fold:
    """Keep a number of labelled cells for training and validation together, and use no other.

    Parameters
    ----------
    fold
        The division to thin out; its test cells stay.
    labels
        (n,), cell types; cells with "" or "unknown" are not counted as labelled and are dropped.
    budget
        Number of cells to keep, training and validation cells together, at least 3.
    seed
        Seed of the draw.

    Returns
    -------
    A fold without all other training and validation cells.

    Raises
    ------
    ValueError
        If the fold is of more cells than `labels`, or `budget` is below 3 or above the number of labelled cells.

    Notes
    -----
    Validation cells are labels, too, and are paid for out of the budget. The pool is what the fold has for training
    and validation. Cells are taken one by one: first one of every class, the frequent ones first, then always from
    the class that is furthest behind its share of the pool (Sainte-Lague). So a smaller budget's cells are among
    those of a larger one with the same seed. Of a class's cells, the third and every fifth after it (the 8th, the
    13th, ...) become validation cells, about one in five; a class with one or two cells only trains. If no class has
    three cells, the last cell taken whose class has another one becomes the only validation cell; if no class has two
    either, simply the last one. A cell keeps its part for all budgets above that.
    """
    labels = np.asarray(labels).astype(str)
    fold.partition.check_arrays({"labels": labels})
    pool = fold.partition.known
    pool = pool[~np.isin(labels[pool], NO_NAME)]
    if not MIN_BUDGET <= budget <= len(pool):
        raise ValueError(
            f"`budget` must lie in [{MIN_BUDGET}, {len(pool)}], the number of labelled cells, got {budget}; "
            "pass another."
        )
    queue, places = rank_cells(labels[pool], np.random.default_rng(seed))
    chosen, places = pool[queue[:budget]], places[:budget]
    is_val = places % VAL_EVERY == VAL_PLACE
    if not is_val.any():
        second = np.flatnonzero(places > 0)
        is_val[second[-1] if len(second) else -1] = True
    return Fold(f"{fold.name}, {budget} labels", Partition(chosen[~is_val], chosen[is_val], fold.partition.test))


def rank_cells(labels: NDArray[np.str_], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order cells so that the first ones, however many, represent the classes.

    Parameters
    ----------
    labels
        (n,), cell types.
    rng
        Source of chance.

    Returns
    -------
    (n,) positions in that order, and (n,) how many cells of the same class stand before each.
    """
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(labels))
    place = np.empty(len(labels), np.int64)
    for code in range(len(classes)):
        members = shuffled[codes[shuffled] == code]
        place[members] = np.arange(len(members))
    size = counts[codes]
    quotient = size / (2 * place + 1)  # Sainte-Lague: the highest quotient gets the next seat
    queue = np.lexsort((codes, -size, -quotient, place > 0))
    return queue, place[queue]


def divide(
    name: str, test: NDArray[np.bool_], strata: NDArray[np.str_], val_fraction: float, rng: np.random.Generator
) -> Fold:
    """Make a fold from its test cells; validation cells are drawn from the rest, spread over the strata.

    Parameters
    ----------
    name
        Name of the fold.
    test
        (n,), bool.
    strata
        (n,), what is spread evenly. A stratum with one cell outside the test cells gives none to validation.
    val_fraction
        Share of validation cells among the rest.
    rng
        Source of chance.

    Raises
    ------
    ValueError
        If no validation cell can be drawn.
    """
    rest = np.flatnonzero(~test)
    _, codes, counts = np.unique(strata[rest], return_inverse=True, return_counts=True)
    candidates = rest[counts[codes] > 1]
    if len(candidates) == 0:
        raise ValueError(
            f"`strata` must have a stratum with two cells outside the test cells of {name!r}, got none; "
            "pass more cells or coarser strata."
        )
    order = candidates[shuffle_by_stratum(strata[candidates], rng)]
    n_val = max(1, round(val_fraction * len(order)))
    steps = np.floor((np.arange(len(order) + 1) + rng.random()) * n_val / len(order))
    val = order[np.diff(steps) > 0]
    return Fold(name, Partition(np.setdiff1d(rest, val), val, np.flatnonzero(test)))


def shuffle_by_stratum(strata: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return positions stratum by stratum, in an order of chance within each.

    Parameters
    ----------
    strata
        (n,), names.
    rng
        Source of chance.
    """
    return np.lexsort((rng.permutation(len(strata)), strata))


def check_val_fraction(val_fraction: float) -> None:
    """Raise unless the share leaves most cells to training.

    Parameters
    ----------
    val_fraction
        Share of validation cells.

    Raises
    ------
    ValueError
        If it is not in (0, 0.5].
    """
    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"`val_fraction` must lie in (0, 0.5], got {val_fraction}; pass e.g. 0.1.")
