"""Proteins in deviations from their mean in a file, which RNA tells of a new study better than their level.

Letters: n cells, P proteins, A levels, K groups such as studies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.calibration.conformal import pool_quantiles

LEAST_REST = 0.2  # share of the variance of a protein that no prediction is trusted to leave less of
# Intervals lie around this share of a predicted deviation: in another study the same RNA told 0.6 to 1.4 times as much
# (docs/experiments.md). Around the whole of it they would be narrower, and hold less evenly from study to study.
SHARE = 0.5


@dataclass(frozen=True)
class FileScale:
    """
    How predictions of the cells of one file become deviations.

    Attributes
    ----------
    means
        (P,) of the predictions over the cells of the file.
    deviations
        (P,) of a protein over the cells of a study, as usual; NaN for one that was never seen to vary.
    rest
        (P,) deviation that `SHARE` of the predictions leaves, of a measured deviation of 1.
    """

    means: NDArray[np.float64]
    deviations: NDArray[np.float64]
    rest: NDArray[np.float64]

    @classmethod
    def of(
        cls, means: NDArray[np.float64], variances: NDArray[np.float64], deviations: NDArray[np.float64]
    ) -> "FileScale":
        """
        Find the scale from mean and variance of predictions over a file, (P,) each.

        Notes
        -----
        Of a prediction that is an expectation, the variance is what it explains, and the rest is 1 less that of
        predictions in deviations; a share a of it explains 2a - a^2 of that. So intervals grow where RNA of a file
        tells little, as it does of few counts or of cells of one type.
        """
        explained = (2 * SHARE - SHARE**2) * variances / np.square(deviations)
        return cls(means, deviations, np.sqrt(np.maximum(1 - explained, LEAST_REST)))

    def apply(self, predicted: NDArray[np.floating]) -> NDArray[np.float64]:
        """Give predictions (n, P) in deviations from the mean of the file."""
        return (predicted - self.means) / self.deviations


def measure_deviations(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """
    Average the deviation of measured values over groups in which a protein varies.

    Parameters
    ----------
    parts
        Measured values (n, P) of each group; NaN where not measured.

    Returns
    -------
    (P,), NaN for a protein that varies in no group.
    """
    found = np.stack([_mean_and_variance(measured)[1] for measured in parts])
    varies = found > 0
    with np.errstate(invalid="ignore"):
        return np.where(varies, np.sqrt(np.maximum(found, 0)), 0.0).sum(0) / np.where(varies, 1.0, 0.0).sum(0)


def find_ends(
    deviations: NDArray[np.floating], half_widths: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the ends of intervals for predicted deviations (n, P), which always hold the prediction itself."""
    centre = SHARE * deviations
    return np.minimum(centre - half_widths, deviations), np.maximum(centre + half_widths, deviations)


def standardise_group(
    measured: NDArray[np.float64], predicted: NDArray[np.float64], deviations: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """
    Bring measured and predicted values of a group into deviations.

    Parameters
    ----------
    measured, predicted
        (n, P) of the cells of a group; NaN where not measured.
    deviations
        (P,), what predictions are divided by: as other groups deviate.

    Returns
    -------
    Measured values in their own deviations (n, P), NaN where they do not vary; predictions (n, P) in the usual ones;
    `FileScale.rest` (P,).
    """
    mean, variance = _mean_and_variance(measured)
    scale = FileScale.of(*_mean_and_variance(np.where(np.isfinite(measured), predicted, np.nan)), deviations)
    truth = (measured - mean) / np.sqrt(np.where(variance > 0, variance, np.nan))
    return truth, scale.apply(predicted), scale.rest


def relative_quantiles(
    parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
    levels: tuple[float, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Calibrate intervals in deviations on groups that were left out in turn.

    Parameters
    ----------
    parts
        Measured and predicted values (n, P) of each group, by a model that was fitted without it; NaN where not
        measured.
    levels
        Nominal coverages.

    Returns
    -------
    Quantiles of the errors (A, P), in shares of `FileScale.rest`, and the usual deviations (P,). Infinite for a protein
    that fewer than two groups measured. Errors of each group are in units of the others.
    """
    errors, measured = [], [part[0] for part in parts]
    for number, part in enumerate(parts):
        others = measured[:number] + measured[number + 1 :] or measured
        truth, guess, rest = standardise_group(*part, measure_deviations(others))
        errors.append(np.abs(truth - SHARE * guess) / rest)
    return pool_quantiles(errors, levels)[0], measure_deviations(measured)


def _mean_and_variance(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give mean and variance (P,) of what is not NaN; NaN for a column without values."""
    seen = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(seen, values, 0.0).sum(0) / np.where(seen, 1.0, 0.0).sum(0)
        return mean, np.where(seen, np.square(values - mean), 0.0).sum(0) / np.where(seen, 1.0, 0.0).sum(0)
