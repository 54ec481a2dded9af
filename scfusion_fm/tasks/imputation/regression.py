"""The regression that imputes proteins of any panel, fitted on cells of panels that differ.

Letters: n cells, K coordinates of their RNA, P proteins.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.studies import StudyComponents, normalise_sparse
from scfusion_fm.inference.panel_regression import PanelRegression
from scfusion_fm.tasks.imputation.cells import PanelCells

ITERATIONS = 10
PRIOR = 0.02  # weight of what the proteins vary by alone, as a share of the cells
JITTER = 1e-4
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)


def fit_regression(data: PanelCells, rows: NDArray[np.int64], num_coordinates: int, seed: int) -> PanelRegression:
    """
    Fit how RNA and proteins vary together within studies, from cells that lack some of the proteins each.

    Notes
    -----
    Expectation and maximisation for a normal distribution with missing values (Dempster, Laird and Rubin 1977). RNA
    and proteins are centred within each study, since laboratories differ in both by more than cells do.
    """
    aligned, extractor = data.aligned, data.extractor
    values = normalise_sparse(aligned.rna[rows], aligned.rna_total_counts[rows], extractor.target_sum)
    _, study = np.unique(data.studies[rows], return_inverse=True)
    cells = (values, aligned.rna_observed_in(rows), study)
    components = StudyComponents.fit(*cells, num_coordinates, seed)
    coordinates = components.read(*cells)
    rna_means = components.means.sum(0) / np.maximum(components.measured.sum(0), 1)

    offsets = data.find_offsets(rows)[rows]
    seen = data.observed[rows]
    levelled = np.where(seen, data.logs[rows] - offsets, 0.0)
    levels = levelled.sum(0) / np.maximum(seen.sum(0), 1)
    covariance = estimate_covariance(coordinates, np.where(seen, levelled - levels, 0.0), seen)
    return PanelRegression(
        rna_means.astype(np.float32),
        components.directions.astype(np.float32),
        levels.astype(np.float32),
        covariance,
        seen.any(0),
    )


def choose_penalty(
    regression: PanelRegression, data: PanelCells, rows: NDArray[np.int64], hidden: list[NDArray[np.bool_]]
) -> PanelRegression:
    """Take the penalty under which the hidden proteins of some cells are predicted best."""
    errors = []
    for penalty in PENALTIES:
        own = dataclasses.replace(regression, penalty=penalty)
        errors.append(np.mean([_relative_error(own, data, rows, mask[rows]) for mask in hidden]))
    return dataclasses.replace(regression, penalty=PENALTIES[int(np.argmin(errors))])


def estimate_covariance(
    coordinates: NDArray[np.float64], values: NDArray[np.float64], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Estimate the covariance (K + P, K + P) of coordinates (n, K) and centred values (n, P) seen in some cells."""
    known = np.hstack([np.ones(coordinates.shape, dtype=bool), seen])
    joined = np.hstack([coordinates, values]).astype(np.float64)
    variance = np.square(joined).sum(0) / np.maximum(known.sum(0), 1)
    variance = np.where(variance > 0, variance, 1.0)
    found, count = np.diag(variance), len(joined)
    patterns, group = np.unique(known, axis=0, return_inverse=True)
    for _ in range(ITERATIONS):
        moments = PRIOR * count * np.diag(variance)
        for number, pattern in enumerate(patterns):
            own = joined[group.reshape(-1) == number]
            if not pattern.all():
                inner, outer = np.ix_(pattern, pattern), np.ix_(pattern, ~pattern)
                weights = np.linalg.solve(found[inner] + JITTER * np.diag(variance[pattern]), found[outer])
                own[:, ~pattern] = own[:, pattern] @ weights
                left = found[np.ix_(~pattern, ~pattern)] - found[outer].T @ weights
                moments[np.ix_(~pattern, ~pattern)] += len(own) * left
            moments += own.T @ own
        found = (moments + moments.T) / (2 * count * (1 + PRIOR))
    return found


def _relative_error(
    regression: PanelRegression, data: PanelCells, rows: NDArray[np.int64], hidden: NDArray[np.bool_]
) -> float:
    """Give the mean over proteins and studies of the squared error, levels aside, relative to the variance."""
    scored = hidden & data.observed[rows] & regression.known
    measured, predicted = (
        data.centre(rows, hidden),
        regression.predict_cells(data.aligned, rows, data.extractor, hidden),
    )
    errors = []
    for study in np.unique(data.studies[rows]):
        own = data.studies[rows] == study
        for place in np.flatnonzero(scored[own].any(0)):
            cells = own & scored[:, place]
            variance = measured[cells, place].var()
            if variance > 0:
                errors.append((measured[cells, place] - predicted[cells, place]).var() / variance)
    return float(np.mean(errors)) if errors else float("inf")
