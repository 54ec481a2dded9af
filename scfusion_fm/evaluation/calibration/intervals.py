"""Intervals around predicted proteins that hold what was measured as often as they say (split conformal prediction).

Letters: n calibration cells, m cells to predict, P proteins, A levels.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from scfusion_fm.evaluation.metrics.proteins import check_protein_arrays, protein_scores

PROTEIN_INTERVALS = "protein_intervals.json"
LEVELS = (0.5, 0.8, 0.9, 0.95)
MIN_PEARSON = 0.2


@dataclass(frozen=True)
class IntervalRule:
    """
    How intervals are calibrated.

    Parameters
    ----------
    levels
        Nominal coverages, each in (0, 1).
    min_pearson
        A protein is `undetermined` unless the lower end of the 95 % confidence interval of its Pearson correlation
        on the calibration cells reaches this.
    min_group_cells
        Measured cells of a protein that a group needs for intervals of its own; the others get the pooled ones.

    Raises
    ------
    ValueError
        If a level or the bound is out of range, or the number of cells is below 1.
    """

    levels: tuple[float, ...] = LEVELS
    min_pearson: float = MIN_PEARSON
    min_group_cells: int = 30

    def __post_init__(self):
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise ValueError(f"`levels` must lie in (0, 1), at least one, got {self.levels}.")
        if not -1 <= self.min_pearson <= 1:
            raise ValueError(f"`min_pearson` must lie in [-1, 1], got {self.min_pearson}.")
        if self.min_group_cells < 1:
            raise ValueError(f"`min_group_cells` must be at least 1, got {self.min_group_cells}.")


@dataclass(frozen=True)
class ProteinIntervals:
    """
    Half widths of the intervals of each protein, and how well RNA determined it.

    Attributes
    ----------
    names
        The proteins.
    rule
        How they were calibrated.
    table
        One row per protein: `n` calibration cells, `pearson` with `pearson_low` and `pearson_high`, `r2`.
    half_widths
        (A, P) in the unit of the values, or in units of the difficulty if `scaled`; infinite where the calibration
        cells are too few for the level.
    group_half_widths
        (A, P) of each group of cells; NaN where the pooled ones hold.
    scaled
        Whether half widths are to be multiplied by the difficulty of a cell.
    num_left_out
        How many groups were left out of the fit in turn, so that the intervals are for cells of a new group; 0 where
        they are for cells like those of the calibration.

    Notes
    -----
    The half width is the ceil((n + 1) level)-th smallest absolute error of n calibration cells. If a new cell and the
    calibration cells are exchangeable, and the calibration cells took no part in the fit, its interval holds what was
    measured with at least this probability, whatever the model is: on average over cells and calibrations, for each
    protein alone, not for every kind of cell and not for all proteins at once. Cells of a new donor or laboratory are
    not exchangeable with the calibration cells; `coverage_by` tells what that costs, and `calibrate_left_out` is for
    them. With groups, the same holds within each group that is large enough (Mondrian; Vovk 2012, arXiv 1209.2673).
    Guarded by tests/evaluation/calibration/test_intervals.py.
    """

    names: list[str]
    rule: IntervalRule
    table: pd.DataFrame
    half_widths: NDArray[np.float64]
    group_half_widths: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    scaled: bool = False
    num_left_out: int = 0

    @classmethod
    def calibrate(
        cls,
        measured: ArrayLike,
        predicted: ArrayLike,
        observed: NDArray[np.bool_],
        names: list[str],
        groups: ArrayLike | None = None,
        difficulty: ArrayLike | None = None,
        rule: IntervalRule | None = None,
    ) -> "ProteinIntervals":
        """
        Calibrate on held-out cells.

        Parameters
        ----------
        measured, predicted
            (n, P) in one unit.
        observed
            (n, P) where the protein was measured.
        names
            The proteins.
        groups
            (n,) group of each cell, known for new cells too, such as a predicted cell type; none when None.
        difficulty
            (n,) or (n, P) positive: how large errors are expected to be, such as the spread of predictions from
            several masks. Intervals are then narrow where it is small. It must not be computed from `measured`.
        rule
            Levels and bounds.

        Raises
        ------
        ValueError
            If shapes do not fit, a measured value is not finite, or a difficulty is not positive.
        """
        rule = rule or IntervalRule()
        measured, predicted, errors = _find_errors(measured, predicted, observed, names)
        if difficulty is not None:
            errors = errors / _check_difficulty(difficulty, errors.shape)
        kinds = {} if groups is None else _rows_by_group(groups, len(errors))
        return cls(
            names=list(names),
            rule=rule,
            table=_describe_proteins(measured, predicted, observed, names),
            half_widths=conformal_quantiles(errors, rule.levels),
            group_half_widths={k: _group_quantiles(errors[rows], rule) for k, rows in kinds.items()},
            scaled=difficulty is not None,
        )

    @classmethod
    def calibrate_left_out(
        cls,
        measured: ArrayLike,
        predicted: ArrayLike,
        observed: NDArray[np.bool_],
        names: list[str],
        left_out: ArrayLike,
        rule: IntervalRule | None = None,
    ) -> "ProteinIntervals":
        """
        Calibrate for cells of a new group, such as a donor or a laboratory, on groups that were left out in turn.

        Parameters
        ----------
        measured, predicted
            (n, P) in one unit; each cell predicted by a model that was fitted without its group.
        observed
            (n, P) where the protein was measured.
        names
            The proteins.
        left_out
            (n,) group of each cell.
        rule
            Levels and bounds.

        Raises
        ------
        ValueError
            If shapes do not fit, a measured value is not finite, or a cell has no group.

        Notes
        -----
        See `left_out_quantiles`. Whether RNA determines a protein is told by the correlation within groups.
        """
        rule = rule or IntervalRule()
        measured, predicted, errors = _find_errors(measured, predicted, observed, names)
        groups = _rows_by_group(left_out, len(errors))
        if sum(map(len, groups.values())) < len(errors):
            raise ValueError("`left_out` must give the group of every cell, got cells without; leave them out.")
        centred = [_centre_by_group(x, observed, groups) for x in (measured, predicted)]
        table = _describe_proteins(*centred, observed, names)
        table["r2"] = _describe_proteins(measured, predicted, observed, names)["r2"]
        widths = left_out_quantiles([errors[rows] for rows in groups.values()], rule.levels)
        return cls(list(names), rule, table, widths, num_left_out=len(groups))

    @property
    def undetermined(self) -> NDArray[np.bool_]:
        """(P,) proteins of which the calibration cells do not show that RNA determines them."""
        return ~(self.table["pearson_low"].to_numpy() >= self.rule.min_pearson)

    def widths(
        self, level: float, num_cells: int, groups: ArrayLike | None = None, difficulty: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """
        Give half widths for new cells.

        Parameters
        ----------
        level
            One of the calibrated levels.
        num_cells
            How many cells (m).
        groups
            (m,) group of each cell; unknown and missing ones get the pooled half widths.
        difficulty
            (m,) or (m, P), as in the calibration.

        Returns
        -------
        (m, P); infinite where no interval can be promised.

        Raises
        ------
        ValueError
            If the level was not calibrated, lengths differ, or a difficulty is missing, not positive or of no use.
        """
        place = self._place(level)
        widths = np.repeat(self.half_widths[place][None], num_cells, axis=0)
        for name, rows in {} if groups is None else _rows_by_group(groups, num_cells).items():
            own = self.group_half_widths.get(name)
            if own is not None:
                widths[rows] = np.where(np.isnan(own[place]), widths[rows], own[place])
        if self.scaled != (difficulty is not None):
            raise ValueError(
                f"`difficulty` must {'' if self.scaled else 'not '}be given for these intervals, as in the calibration."
            )
        return widths if difficulty is None else widths * _check_difficulty(difficulty, widths.shape)

    def _place(self, level: float) -> int:
        near = [i for i, known in enumerate(self.rule.levels) if np.isclose(known, level)]
        if not near:
            raise ValueError(f"`level` must be one of the calibrated {list(self.rule.levels)}, got {level}.")
        return near[0]

    def without_interval(self, level: float) -> NDArray[np.bool_]:
        """(P,) proteins with too few calibration cells for an interval of this level."""
        return np.isinf(self.half_widths[self._place(level)])

    def to_json(self) -> str:
        """Give the file as text; infinite and undefined numbers are null."""
        content = {
            "levels": list(self.rule.levels),
            "min_pearson": self.rule.min_pearson,
            "min_group_cells": self.rule.min_group_cells,
            "scaled": self.scaled,
            "num_left_out": self.num_left_out,
            "proteins": self.names,
            "table": {k: _to_list(v) for k, v in self.table.items()},
            "half_widths": [_to_list(row) for row in self.half_widths],
            "groups": {k: [_to_list(row) for row in v] for k, v in self.group_half_widths.items()},
        }
        return json.dumps(content, allow_nan=False, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> "ProteinIntervals":
        """
        Read what `to_json` gave.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        try:
            content = json.loads(path.read_text())
            rule = IntervalRule(tuple(content["levels"]), content["min_pearson"], content["min_group_cells"])
            names = list(content["proteins"])
            table = pd.DataFrame({k: _from_list(v, np.nan) for k, v in content["table"].items()}, index=names)
            shape = (len(rule.levels), len(names))
            pooled = _matrix(content["half_widths"], shape, np.inf)
            groups = {k: _matrix(v, shape, np.nan) for k, v in content["groups"].items()}
            table["n"] = table["n"].astype(int)
            kind = bool(content["scaled"]), int(content.get("num_left_out", 0))
            return cls(names, rule, table.loc[:, list(TABLE)], pooled, groups, *kind)
        except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"`{path.name}` must be a file that fine-tuning wrote, got a damaged one in {str(path.parent)!r} "
                f"({error}); copy the model directory anew."
            ) from error


TABLE = ("n", "pearson", "pearson_low", "pearson_high", "r2")


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
    The smallest error that reaches the level when each of the K groups weighs the same (pooling of distributions; Dunn,
    Wasserman and Ramdas 2018, arXiv 1809.07441), which holds the level with many groups, times sqrt(1 + 1/K) for few:
    errors of a new group are mostly an offset of its own, as those of the K, and the factor is that of a prediction
    interval for one more of K draws. It is no promise; that of hierarchical conformal prediction (Lee, Barber and
    Willett 2023, arXiv 2306.06342) is infinite for K < level / (1 - level), nine groups at 0.9. docs/experiments.md has
    what it held over data sets.
    """
    values = np.concatenate(parts)
    members = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    found = np.full((len(levels), values.shape[1]), np.inf)
    for place, column in enumerate(values.T):
        seen = np.isfinite(column)
        cells = np.bincount(members[seen], minlength=len(parts))
        number = int((cells > 0).sum())
        if number < 2:
            continue
        order = np.argsort(column[seen], kind="stable")
        reached = np.cumsum(1 / cells[members[seen][order]]) / number
        # Rounded, as a sum of many fractions is not exact.
        steps = np.searchsorted(np.round(reached, 9), np.round(levels, 9))
        found[:, place] = column[seen][order[np.minimum(steps, len(order) - 1)]] * np.sqrt(1 + 1 / number)
    return found


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
    parts |= {} if groups is None else _rows_by_group(groups, len(measured))
    rows = []
    for group, cells in parts.items():
        n = np.asarray(observed)[cells].sum(0)
        share = held[cells].sum(0) / np.maximum(n, 1)
        mean = width[cells].sum(0) / np.maximum(n, 1)
        rows.append(pd.DataFrame({"protein": names, "group": group, "n": n, "coverage": share, "width": mean}))
    table = pd.concat(rows, ignore_index=True)
    table.loc[table["n"] == 0, ["coverage", "width"]] = np.nan
    return table


def pearson_interval(pearson: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[NDArray, NDArray]:
    """Give the confidence interval of a correlation by Fisher's z; [-1, 1] with fewer than 4 values."""
    pearson, n = np.asarray(pearson, np.float64), np.asarray(n, np.float64)
    z = np.arctanh(np.clip(pearson, -1 + 1e-12, 1 - 1e-12))
    reach = norm.ppf(0.5 + level / 2) / np.sqrt(np.where(n > 3, n - 3, np.nan))
    low, high = np.tanh(z - reach), np.tanh(z + reach)
    few = ~(n > 3) & np.isfinite(pearson)
    return np.where(few, -1.0, low), np.where(few, 1.0, high)


def _find_errors(
    measured: ArrayLike, predicted: ArrayLike, observed: NDArray[np.bool_], names: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Check what to calibrate on; measured, predicted and the absolute errors, NaN where not observed."""
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    check_protein_arrays(measured, predicted, observed)
    if len(names) != measured.shape[1]:
        raise ValueError(f"`names` must name the {measured.shape[1]} proteins of `measured`, got {len(names)}.")
    return measured, predicted, np.where(observed, np.abs(measured - predicted), np.nan)


def _centre_by_group(
    values: NDArray[np.float64], observed: NDArray[np.bool_], groups: dict[str, NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Take the mean of each protein in each group from its observed values; 0 where not observed."""
    centred = np.where(observed, values, 0.0)
    for rows in groups.values():
        mean = centred[rows].sum(0) / np.maximum(observed[rows].sum(0), 1)
        centred[rows] = np.where(observed[rows], centred[rows] - mean, 0.0)
    return centred


def _describe_proteins(
    measured: NDArray[np.float64], predicted: NDArray[np.float64], observed: NDArray[np.bool_], names: list[str]
) -> pd.DataFrame:
    scores = protein_scores(measured, predicted, observed)[0]
    n, pearson = scores["n"].to_numpy(), scores["pearson"].to_numpy()
    low, high = pearson_interval(pearson, n)
    values = np.where(observed, measured, 0.0)
    mean = values.sum(0) / np.maximum(n, 1)
    spread = np.where(observed, np.square(values - mean), 0.0).sum(0)
    error = np.where(observed, np.square(values - np.where(observed, predicted, 0.0)), 0.0).sum(0)
    r2 = 1 - np.divide(error, spread, out=np.full(len(n), np.nan), where=spread > 0)
    return pd.DataFrame(dict(zip(TABLE, (n, pearson, low, high, r2), strict=True)), index=list(names))


def _group_quantiles(errors: NDArray[np.float64], rule: IntervalRule) -> NDArray[np.float64]:
    """Quantiles of one group; NaN where it is too small for its own."""
    widths = conformal_quantiles(errors, rule.levels)
    small = np.isfinite(errors).sum(0) < rule.min_group_cells
    return np.where(small | np.isinf(widths), np.nan, widths)


def _rows_by_group(groups: ArrayLike, num_cells: int) -> dict[str, NDArray[np.int64]]:
    groups = pd.Series(np.asarray(groups, dtype=object))
    if len(groups) != num_cells:
        raise ValueError(f"`groups` must give one group per cell, got {len(groups)} for {num_cells} cells.")
    known = groups[groups.notna()].astype(str)
    return {str(name): rows.to_numpy() for name, rows in known.index.to_series().groupby(known.to_numpy())}


def _check_difficulty(difficulty: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    difficulty = np.asarray(difficulty, np.float64)
    difficulty = difficulty[:, None] if difficulty.ndim == 1 else difficulty
    if len(difficulty) != shape[0] or difficulty.shape[1] not in (1, shape[1]) or not (difficulty > 0).all():
        raise ValueError(
            f"`difficulty` must be positive, one per cell or per cell and protein {shape}, got {difficulty.shape} "
            f"with a minimum of {difficulty.min() if difficulty.size else None}."
        )
    return difficulty


def _to_list(values: Any) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in values]


def _from_list(values: list[float | None], missing: float) -> list[float]:
    return [missing if x is None else float(x) for x in values]


def _matrix(rows: list[list[float | None]], shape: tuple[int, int], missing: float) -> NDArray[np.float64]:
    matrix = np.array([_from_list(row, missing) for row in rows], dtype=np.float64)
    if matrix.shape != shape:
        raise ValueError(f"half widths must have the shape {shape}, got {matrix.shape}")
    return matrix
