"""Split conformal prediction: how large errors may get, by levels, and how often intervals hold what was measured.

Letters: n calibration cells, m cells to predict, P proteins, A levels.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


def conformal_quantiles(errors: ArrayLike, levels: tuple[float, ...]) -> NDArray[np.float64]:
    """Give the ceil((n + 1) level)-th smallest error of every column of (n, P), (A, P); NaN errors do not count."""
    ordered = np.sort(np.asarray(errors, np.float64), axis=0)  # NaN last
    n = np.isfinite(ordered).sum(0)
    ordered = np.concatenate([ordered, np.full((1, ordered.shape[1]), np.inf)])
    # The product is rounded first: 0.9 * 10 must not become 9.000000000000002.
    ranks = [np.ceil(np.round((n + 1) * level, 9)).astype(int) for level in levels]
    last = len(ordered) - 1
    return np.stack([ordered[np.where(k <= n, k - 1, last), np.arange(len(n))] for k in ranks])


def left_out_quantiles(parts: list[NDArray[np.float64]], levels: tuple[float, ...]) -> NDArray[np.float64]:
    """
    Give the quantiles of errors for cells of a group that none of some groups is, (A, P).

    Parameters
    ----------
    parts
        (n, P) absolute errors of each group when it was left out; NaN does not count.
    levels
        Nominal coverages.

    Returns
    -------
    Infinite for a protein that fewer than two groups measured.

    Notes
    -----
    Those of `pool_quantiles`, which hold the level with many groups, times sqrt(1 + 1/K) for few: errors of a new group
    are mostly an offset of its own, as those of the K, and the factor is that of a prediction interval for one more of
    K draws. It is no promise; that of hierarchical conformal prediction (Lee, Barber and Willett 2023, arXiv
    2306.06342) is infinite for K < level / (1 - level), nine groups at 0.9. docs/experiments.md has what it held over
    data sets.
    """
    found, number = pool_quantiles(parts, levels)
    return found * np.sqrt(1 + 1 / np.maximum(number, 1))


def pool_quantiles(
    parts: list[NDArray[np.float64]], levels: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """
    Give quantiles of errors when each group weighs the same (A, P), and how many groups measured a protein (P,).

    Parameters
    ----------
    parts, levels
        As of `left_out_quantiles`.

    Returns
    -------
    The smallest error that reaches the level; infinite for a protein that fewer than two groups measured.

    Notes
    -----
    Pooling of distributions; Dunn, Wasserman and Ramdas 2018, arXiv 1809.07441.
    """
    values = np.concatenate(parts)
    members = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    found, groups = np.full((len(levels), values.shape[1]), np.inf), np.zeros(values.shape[1], int)
    for place, column in enumerate(values.T):
        seen = np.isfinite(column)
        cells = np.bincount(members[seen], minlength=len(parts))
        groups[place] = number = int((cells > 0).sum())
        if number < 2:
            continue
        order = np.argsort(column[seen], kind="stable")
        reached = np.cumsum(1 / cells[members[seen][order]]) / number
        # Rounded, as a sum of many fractions is not exact.
        steps = np.searchsorted(np.round(reached, 9), np.round(levels, 9))
        found[:, place] = column[seen][order[np.minimum(steps, len(order) - 1)]]
    return found, groups


def coverage_by(
    measured: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    observed: NDArray[np.bool_],
    names: list[str],
    groups: ArrayLike | None = None,
) -> pd.DataFrame:
    """
    Count how often intervals hold what was measured, by protein and by group such as the donor.

    Parameters
    ----------
    measured, lower, upper
        (m, P) values and ends of the intervals; an infinite interval holds everything.
    observed
        (m, P) where the protein was measured.
    names
        The proteins.
    groups
        (m,) group of each cell; only the table over all cells when None.

    Returns
    -------
    One row per protein and group, `all` cells first: `protein`, `group`, `n`, `coverage` and `width` (mean).

    Raises
    ------
    ValueError
        If shapes differ.
    """
    measured, lower, upper = (np.asarray(x, np.float64) for x in (measured, lower, upper))
    shapes = {x.shape for x in (measured, lower, upper, np.asarray(observed))}
    if len(shapes) > 1 or measured.shape[1:] != (len(names),):
        raise ValueError(f"Values, intervals and `names` must fit one another, got {shapes} and {len(names)} names.")
    held = np.where(observed, (measured >= lower) & (measured <= upper), False)
    width = np.where(observed, upper - lower, 0.0)
    parts = {"all": np.arange(len(measured))}
    parts |= {} if groups is None else rows_by_group(groups, len(measured))
    rows = []
    for group, cells in parts.items():
        n = np.asarray(observed)[cells].sum(0)
        share = held[cells].sum(0) / np.maximum(n, 1)
        mean = width[cells].sum(0) / np.maximum(n, 1)
        rows.append(pd.DataFrame({"protein": names, "group": group, "n": n, "coverage": share, "width": mean}))
    table = pd.concat(rows, ignore_index=True)
    table.loc[table["n"] == 0, ["coverage", "width"]] = np.nan
    return table


def rows_by_group(groups: ArrayLike, num_cells: int) -> dict[str, NDArray[np.int64]]:
    """
    Give the rows of each group; cells without one, (None, NaN), are in none.

    Raises
    ------
    ValueError
        If there is not one group per cell.
    """
    groups = pd.Series(np.asarray(groups, dtype=object))
    if len(groups) != num_cells:
        raise ValueError(f"`groups` must give one group per cell, got {len(groups)} for {num_cells} cells.")
    known = groups[groups.notna()].astype(str)
    return {str(name): rows.to_numpy() for name, rows in known.index.to_series().groupby(known.to_numpy())}
