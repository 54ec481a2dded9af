"""Intervals around predicted proteins, as a model serves them.

Letters: n calibration cells, m cells to predict, P proteins, A levels.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scfusion_fm.evaluation.calibration.conformal import rows_by_group

LEVELS = (0.5, 0.8, 0.9, 0.95)
MIN_PEARSON = 0.2
SHOWN_FACTS = ("n", "pearson", "pearson_low", "pearson_high", "r2")  # of each protein


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
class RelativeWidths:
    """
    Intervals of deviations from the mean of a file, for files of new groups.

    Attributes
    ----------
    deviations
        (P,) of measured values in a group, on average; NaN for a protein that varied in none.
    half_widths
        (A, P), in shares of `FileScale.rest`; infinite for a protein of fewer than two groups.
    """

    deviations: NDArray[np.float64]
    half_widths: NDArray[np.float64]


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
        (A, P) in the unit of the values; infinite where the calibration cells are too few for the level.
    group_half_widths
        (A, P) of each group of cells; NaN where the pooled ones hold.
    num_left_out
        How many groups were left out of the fit in turn, so that the intervals are for cells of a new group; 0 where
        they are for cells like those of the calibration.
    relative
        Intervals of deviations from the mean of a file, where groups were left out.

    Notes
    -----
    The half width is the ceil((n + 1) level)-th smallest absolute error of n calibration cells. If a new cell and the
    calibration cells are exchangeable, and the calibration cells took no part in the fit, its interval holds what was
    measured with at least this probability, whatever the model is: on average over cells and calibrations, for each
    protein alone, not for every kind of cell and not for all proteins at once. Cells of a new donor or laboratory are
    not exchangeable with the calibration cells; `coverage_by` tells what that costs, and `fit_left_out_intervals` is
    for them. With groups, the same holds within each group that is large enough (Mondrian; Vovk 2012, arXiv 1209.2673).
    Guarded by tests/evaluation/calibration/test_intervals.py.
    """

    names: list[str]
    rule: IntervalRule
    table: pd.DataFrame
    half_widths: NDArray[np.float64]
    group_half_widths: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    num_left_out: int = 0
    relative: "RelativeWidths | None" = None

    @property
    def undetermined(self) -> NDArray[np.bool_]:
        """(P,) proteins of which the calibration cells do not show that RNA determines them."""
        return ~(self.table["pearson_low"].to_numpy() >= self.rule.min_pearson)

    def widths(self, level: float, num_cells: int, groups: ArrayLike | None = None) -> NDArray[np.float64]:
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

        Returns
        -------
        (m, P); infinite where no interval can be promised.

        Raises
        ------
        ValueError
            If the level was not calibrated, or there is not one group per cell.
        """
        place = self._place(level)
        widths = np.repeat(self.half_widths[place][None], num_cells, axis=0)
        for name, rows in {} if groups is None else rows_by_group(groups, num_cells).items():
            own = self.group_half_widths.get(name)
            if own is not None:
                widths[rows] = np.where(np.isnan(own[place]), widths[rows], own[place])
        return widths

    def relative_widths(self, level: float, rest: NDArray[np.float64]) -> NDArray[np.float64]:
        """
        Give half widths (P,) in deviations, for cells of a file.

        Parameters
        ----------
        level
            One of the calibrated levels.
        rest
            (P,) `FileScale.rest` of the file.

        Raises
        ------
        ValueError
            If the level was not calibrated.
        """
        return self.relative.half_widths[self._place(level)] * rest

    @property
    def level_unknown(self) -> NDArray[np.bool_]:
        """(P,) proteins of which RNA was not shown to tell the level in a new group, whatever it tells within one."""
        return ~(self.table["r2"].to_numpy() > 0) & (self.num_left_out > 0)

    def _place(self, level: float) -> int:
        near = [i for i, known in enumerate(self.rule.levels) if np.isclose(known, level)]
        if not near:
            raise ValueError(f"`level` must be one of the calibrated {list(self.rule.levels)}, got {level}.")
        return near[0]

    def without_interval(self, level: float, relative: bool = False) -> NDArray[np.bool_]:
        """(P,) proteins with too few calibration cells for an interval of this level, or of deviations."""
        return np.isinf((self.relative if relative else self).half_widths[self._place(level)])
