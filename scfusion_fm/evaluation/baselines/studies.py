"""RNA read within studies: principal components around the mean of each, for laboratories differ more than cells do.

Letters: n cells, G genes, K components, S studies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

OVERSAMPLING, POWER_ITERATIONS = 20, 4


@dataclass(frozen=True)
class StudyComponents:
    """
    Principal components of cells around the means of their studies.

    Attributes
    ----------
    directions
        (G, K); the variances of the coordinates have a mean of 1.
    means
        (S, G) mean expression of each study; 0 where it did not measure the gene.
    measured
        (S, G) which genes a study measured.
    """

    directions: NDArray[np.float64]
    means: NDArray[np.float64]
    measured: NDArray[np.bool_]

    @classmethod
    def fit(
        cls, values: sparse.csr_matrix, observed: NDArray[np.bool_], study: NDArray[np.int64], number: int, seed: int
    ) -> "StudyComponents":
        """
        Find the directions of largest variance of values (n, G).

        Parameters
        ----------
        values
            (n, G) normalised expression; 0 where not measured.
        observed
            (n, G) where it was.
        study
            (n,) numbers of the studies, from 0.
        number
            Components; there are fewer where there are fewer cells or genes.
        seed
            Of the search.

        Notes
        -----
        Randomised subspace iteration (Halko, Martinsson and Tropp 2011); the centred values are never made.
        """
        means, measured = average_studies(values, observed, study)
        members = sparse.csr_matrix((np.ones(len(study)), (study, np.arange(len(study)))))

        def times(x: NDArray) -> NDArray:
            return values @ x - (means @ x)[study]

        width = min(number + OVERSAMPLING, *values.shape)
        basis = np.random.default_rng(seed).normal(size=(values.shape[1], width))
        for _ in range(POWER_ITERATIONS):
            y = np.linalg.qr(times(basis))[0]
            basis = np.linalg.qr(values.T @ y - means.T @ (members @ y))[0]
        rotation = np.linalg.svd(times(basis), full_matrices=False)[2]
        directions = (basis @ rotation.T)[:, : min(number, width)]
        spread = np.sqrt(times(directions).var(0).mean())
        return cls(directions / max(spread, 1e-12), means, measured)

    def read(
        self, values: sparse.csr_matrix, observed: NDArray[np.bool_], study: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Give the coordinates (n, K) of any cells around the means of their own studies."""
        means, _ = average_studies(values, observed, study)
        return values @ self.directions - (means @ self.directions)[study]


def average_studies(
    values: sparse.csr_matrix, observed: NDArray[np.bool_], study: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Give the mean of every gene over the cells of each study in which it was measured, and where there are any."""
    codes = range(int(study.max()) + 1)
    number = np.stack([observed[study == code].sum(0) for code in codes])
    total = np.stack([np.asarray(values[study == code].sum(0)).ravel() for code in codes])
    return total / np.maximum(number, 1), number > 0


def normalise_sparse(counts: sparse.csr_matrix, totals: NDArray[np.floating], target_sum: float) -> sparse.csr_matrix:
    """Give log1p of counts scaled to a library size, without making zeros dense."""
    scale = np.divide(target_sum, totals, out=np.zeros(len(totals)), where=totals > 0)
    scaled = sparse.csr_matrix(sparse.diags(scale) @ counts)
    scaled.data = np.log1p(scaled.data)
    return scaled


def standardise_within(
    values: NDArray[np.floating], observed: NDArray[np.bool_], study: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """
    Centre and scale each column within each study; what was not observed becomes 0.

    Returns
    -------
    The values (n, F), and means and standard deviations of each study (S, F); NaN where it observed nothing.
    """
    masked = np.ma.MaskedArray(np.asarray(values, np.float64), mask=~observed)
    codes = range(int(study.max()) + 1)
    means = np.stack([masked[study == code].mean(0).filled(np.nan) for code in codes])
    spreads = np.stack([masked[study == code].std(0).filled(np.nan) for code in codes])
    usable = np.nan_to_num(spreads[study]) > 1e-8
    scaled = np.where(usable, (masked.data - means[study]) / np.where(usable, spreads[study], 1.0), 0.0)
    return np.where(observed, scaled, 0.0), means, spreads
