"""Scores of predicted proteins, or of any values that were not measured in every cell.

Shapes: n cells, P proteins.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata


def protein_scores(
    measured: np.ndarray, predicted: np.ndarray, observed: np.ndarray
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Score predicted protein abundances, per protein and in summary.

    Parameters
    ----------
    measured
        (n, P), normalised abundance; what lies outside `observed` is ignored and may be NaN.
    predicted
        (n, P), in the same unit.
    observed
        (n, P), bool: where the protein was measured.

    Returns
    -------
    table
        One row per protein, indexed by its position: `pearson`, `spearman`, `rmse` and `n` (observed cells).
    summary
        `pearson_per_protein` and `pearson_per_cell` (plain means over proteins and over cells) and `rmse`
        over all observed values. A mean over nothing is NaN.

    Raises
    ------
    ValueError
        If shapes differ, `observed` is not bool, or an observed value is not finite.

    Notes
    -----
    A correlation with a constant is undefined. A constant *prediction* scores 0: it explains none of the
    variation, and leaving it out would reward it. A constant *measurement* (or fewer than two values) says
    nothing about the prediction: it is NaN in the table and left out of the means.
    """
    check_protein_arrays(measured, predicted, observed)
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    squared_error = np.where(observed, np.square(measured - predicted), 0.0)
    n = observed.sum(axis=0)
    columns = zip(measured.T, predicted.T, observed.T, strict=True)
    per_protein = [_column_correlations(*column) for column in columns]
    table = pd.DataFrame(per_protein, columns=["pearson", "spearman"])
    table["rmse"] = np.sqrt(_divide(squared_error.sum(axis=0), n))
    table["n"] = n
    per_cell = [_pearson(m[o], p[o]) for m, p, o in zip(measured, predicted, observed, strict=True)]
    summary = {
        "pearson_per_protein": float(table["pearson"].mean()),
        "pearson_per_cell": float(pd.Series(per_cell, dtype=float).mean()),
        "rmse": float(np.sqrt(_divide(squared_error.sum(), n.sum()))),
    }
    return table, summary


def check_protein_arrays(measured: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> None:
    """Raise unless the three arrays fit together and are finite where observed.

    Parameters
    ----------
    measured
        (n, P), measured abundance.
    predicted
        (n, P), predicted abundance.
    observed
        (n, P), bool.

    Raises
    ------
    ValueError
        If shapes differ, `observed` is not bool, or an observed value is not finite.
    """
    shapes = [np.shape(array) for array in (measured, predicted, observed)]
    if len(shapes[0]) != 2 or len(set(shapes)) != 1:
        raise ValueError(
            f"`measured`, `predicted` and `observed` must share one shape (cells, proteins), got {shapes}; "
            "select the same cells and proteins from all three."
        )
    if np.asarray(observed).dtype != bool:
        raise ValueError(f"`observed` must be bool, got {np.asarray(observed).dtype}; pass e.g. `counts_present == 1`.")
    for name, values in (("measured", measured), ("predicted", predicted)):
        n_bad = int((~np.isfinite(values) & observed).sum())
        if n_bad:
            raise ValueError(
                f"`{name}` must be finite wherever `observed` is true, got {n_bad} values that are not; "
                "mark missing measurements as not observed, and predict every observed protein."
            )


def _column_correlations(measured: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> tuple[float, float]:
    """Return Pearson and Spearman correlation of one protein over its observed cells."""
    measured, predicted = measured[observed], predicted[observed]
    return _pearson(measured, predicted), _pearson(rankdata(measured), rankdata(predicted))


def _pearson(measured: np.ndarray, predicted: np.ndarray) -> float:
    """Return the correlation; NaN for a constant measurement, 0 for a constant prediction."""
    if len(measured) < 2 or np.ptp(measured) == 0:
        return float("nan")
    if np.ptp(predicted) == 0:
        return 0.0
    measured, predicted = measured - measured.mean(), predicted - predicted.mean()
    return float(measured @ predicted / np.sqrt((measured @ measured) * (predicted @ predicted)))


def _divide(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the count is 0."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)
