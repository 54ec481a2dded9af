"""Calibrate intervals around predicted proteins, for cells like those of the calibration or for cells of new groups.

Letters: n calibration cells, P proteins, A levels.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from scfusion_fm.evaluation.calibration.conformal import conformal_quantiles, left_out_quantiles, rows_by_group
from scfusion_fm.evaluation.calibration.deviations import relative_quantiles
from scfusion_fm.evaluation.calibration.intervals import (
    SHOWN_FACTS,
    IntervalRule,
    ProteinIntervals,
    RelativeWidths,
)
from scfusion_fm.evaluation.metrics.proteins import check_protein_arrays, protein_scores


def fit_intervals(
    measured: ArrayLike,
    predicted: ArrayLike,
    observed: NDArray[np.bool_],
    names: list[str],
    groups: ArrayLike | None = None,
) -> ProteinIntervals:
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

    Raises
    ------
    ValueError
        If shapes do not fit, or a measured value is not finite.
    """
    rule = IntervalRule()
    measured, predicted, errors = _find_errors(measured, predicted, observed, names)
    kinds = {} if groups is None else rows_by_group(groups, len(errors))
    return ProteinIntervals(
        names=list(names),
        rule=rule,
        table=_describe_proteins(measured, predicted, observed, names),
        half_widths=conformal_quantiles(errors, rule.levels),
        group_half_widths={k: _group_quantiles(errors[rows], rule) for k, rows in kinds.items()},
    )


def fit_left_out_intervals(
    measured: ArrayLike,
    predicted: ArrayLike,
    observed: NDArray[np.bool_],
    names: list[str],
    left_out: ArrayLike,
) -> ProteinIntervals:
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

    Raises
    ------
    ValueError
        If shapes do not fit, a measured value is not finite, or a cell has no group.

    Notes
    -----
    See `left_out_quantiles`, and `relative_quantiles` for deviations from the mean of a file. Whether RNA determines a
    protein is told by the correlation within groups.
    """
    rule = IntervalRule()
    measured, predicted, errors = _find_errors(measured, predicted, observed, names)
    groups = rows_by_group(left_out, len(errors))
    if sum(map(len, groups.values())) < len(errors):
        raise ValueError("`left_out` must give the group of every cell, got cells without; leave them out.")
    centred = [_centre_by_group(x, observed, groups) for x in (measured, predicted)]
    table = _describe_proteins(*centred, observed, names)
    table["r2"] = _describe_proteins(measured, predicted, observed, names)["r2"]
    widths = left_out_quantiles([errors[rows] for rows in groups.values()], rule.levels)
    parts = [
        tuple(np.where(observed[rows], x[rows], np.nan) for x in (measured, predicted)) for rows in groups.values()
    ]
    half_widths, deviations = relative_quantiles(parts, rule.levels)
    relative = RelativeWidths(deviations, half_widths)
    return ProteinIntervals(list(names), rule, table, widths, num_left_out=len(groups), relative=relative)


def pearson_interval(pearson: ArrayLike, n: ArrayLike) -> tuple[NDArray, NDArray]:
    """Give the 95 % confidence interval of a correlation by Fisher's z; [-1, 1] with fewer than 4 values."""
    pearson, n = np.asarray(pearson, np.float64), np.asarray(n, np.float64)
    z = np.arctanh(np.clip(pearson, -1 + 1e-12, 1 - 1e-12))
    reach = norm.ppf(0.975) / np.sqrt(np.where(n > 3, n - 3, np.nan))
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
    return pd.DataFrame(dict(zip(SHOWN_FACTS, (n, pearson, low, high, r2), strict=True)), index=list(names))


def _group_quantiles(errors: NDArray[np.float64], rule: IntervalRule) -> NDArray[np.float64]:
    """Quantiles of one group; NaN where it is too small for its own."""
    widths = conformal_quantiles(errors, rule.levels)
    small = np.isfinite(errors).sum(0) < rule.min_group_cells
    return np.where(small | np.isinf(widths), np.nan, widths)
