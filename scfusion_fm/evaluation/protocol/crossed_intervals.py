"""How often intervals of predicted proteins hold, over the folds of an evaluation.

Letters: n cells, P proteins.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.evaluation.calibration.conformal import conformal_quantiles, coverage_by, left_out_quantiles
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
    `coverage` and `width`.

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
        errors = [other.errors for other in folds if other is not fold]
        found = (
            left_out_quantiles(errors, LEVELS) if new_groups else conformal_quantiles(np.concatenate(errors), LEVELS)
        )
        for level, width in zip(LEVELS, found, strict=True):
            observed = np.isfinite(fold.measured) & np.isfinite(width)
            measured = np.where(observed, fold.measured, 0.0)
            width = np.where(np.isfinite(width), width, 0.0)
            ends = (fold.predicted - width, fold.predicted + width)
            table = coverage_by(measured, *ends, observed, names).drop(columns="group")
            tables.append(table[table["n"] > 0].assign(fold=fold.name, level=level))
    return pd.concat(tables, ignore_index=True)
