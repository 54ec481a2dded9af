"""How often intervals of predicted proteins hold, over the folds of an evaluation.

Letters: n cells, P proteins.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.evaluation.calibration.conformal import conformal_quantiles, coverage_by, left_out_quantiles
from scfusion_fm.evaluation.calibration.deviations import find_ends, relative_quantiles, standardise_group
from scfusion_fm.evaluation.calibration.intervals import LEVELS


@dataclass(frozen=True)
class HeldOut:
    """
    Test cells of a fold.

    Attributes
    ----------
    name
        The fold; with groups left out, the group.
    measured
        (n, P) values; NaN where not measured.
    predicted
        (n, P) by a model that saw none of these cells.
    """

    name: str
    measured: NDArray[np.float32]
    predicted: NDArray[np.float32]

    @property
    def errors(self) -> NDArray[np.float64]:
        """(n, P) absolute errors; NaN where not measured."""
        return np.abs(self.measured.astype(np.float64) - self.predicted)


def cross_coverage(folds: list[HeldOut], names: list[str], new_groups: bool) -> pd.DataFrame:
    """
    Count how often the intervals of each fold hold, calibrated on the errors of all other folds.

    Parameters
    ----------
    folds
        The folds, at least two.
    names
        The proteins.
    new_groups
        Whether a fold is a group of its own kind, such as a laboratory: its cells are not exchangeable with others, and
        intervals are those of `left_out_quantiles`. Otherwise those of `conformal_quantiles`.

    Returns
    -------
    One row per fold, level and protein that was measured and can have an interval: `fold`, `level`, `protein`, `n`,
    `coverage` and `width`, in the `unit` `CLR`; for new groups also in `deviations` from the mean of a fold.

    Raises
    ------
    ValueError
        If there are fewer than two folds.

    Notes
    -----
    Cross-conformal prediction (Vovk 2015): every cell is predicted by a model that did not see it and calibrates the
    other folds, so that no cell is set apart for calibration alone. The models of the other folds have seen the test
    cells, which makes it an estimate and not a promise (Barber et al. 2021, arXiv 1905.02928).
    """
    if len(folds) < 2:
        raise ValueError(f"`folds` must be at least two, to calibrate on others, got {len(folds)}.")
    tables = []
    for fold in folds:
        others = [other for other in folds if other is not fold]
        errors = [other.errors for other in others]
        found = (
            left_out_quantiles(errors, LEVELS) if new_groups else conformal_quantiles(np.concatenate(errors), LEVELS)
        )
        ends = (fold.predicted - found[:, None], fold.predicted + found[:, None])
        tables.append(_count(fold.measured, *ends, names).assign(fold=fold.name, unit="CLR"))
        if new_groups:
            tables.append(_count_deviations(fold, others, names).assign(fold=fold.name, unit="deviations"))
    return pd.concat(tables, ignore_index=True)


def _count(
    measured: NDArray[np.floating], lower: NDArray[np.floating], upper: NDArray[np.floating], names: list[str]
) -> pd.DataFrame:
    """Count how often intervals hold what was measured, ends (A, n, P) of each level; those without ends are none."""
    tables = []
    for level, *ends in zip(LEVELS, lower, upper, strict=True):
        observed = np.isfinite(measured) & np.isfinite(ends).all(0)
        values = (np.where(observed, x, 0.0) for x in (measured, *ends))
        table = coverage_by(*values, observed, names).drop(columns="group")
        tables.append(table[table["n"] > 0].assign(level=level))
    return pd.concat(tables, ignore_index=True)


def _count_deviations(fold: HeldOut, others: list[HeldOut], names: list[str]) -> pd.DataFrame:
    """Count the same for deviations from the mean of a fold, in those of its own measured values."""
    parts = [(part.measured.astype(np.float64), part.predicted.astype(np.float64)) for part in others]
    quantiles, deviations = relative_quantiles(parts, LEVELS)
    truth, guess, rest = standardise_group(fold.measured.astype(np.float64), fold.predicted, deviations)
    return _count(truth, *find_ends(guess, (quantiles * rest)[:, None]), names)
