"""Intervals of imputed proteins, from cells of which proteins were hidden on purpose."""

import numpy as np
import pandas as pd

from scfusion_fm.evaluation.calibration.conformal import coverage_by
from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals
from scfusion_fm.evaluation.calibration.intervals import ProteinIntervals
from scfusion_fm.tasks.imputation.cells import Hidden


def calibrate_imputation(hidden: Hidden, names: list[str], places: np.ndarray) -> ProteinIntervals:
    """Make intervals of some proteins, at `places` in the vocabulary, from cells that the model did not learn from."""
    measured, predicted, scored = (x[:, places] for x in hidden.join())
    return fit_intervals(measured, predicted, scored, names)


def measure_imputation_coverage(hidden: Hidden, intervals: ProteinIntervals, places: np.ndarray) -> pd.DataFrame:
    """Count at every level how often the intervals hold what was hidden, over all cells and by study."""
    measured, predicted, scored = (x[:, places] for x in hidden.join())
    tables = []
    for level in intervals.rule.levels:
        width = intervals.widths(level, len(measured))
        ends = (predicted - width, predicted + width)
        table = coverage_by(measured, *ends, scored, intervals.names, hidden.studies.astype(object))
        tables.append(table.assign(level=level))
    return pd.concat(tables, ignore_index=True)
