"""RNA and proteins read within studies, for laboratories differ more than cells do.

Letters: n cells, G genes, P proteins, K components, S studies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

OVERSAMPLING, POWER_ITERATIONS = 20, 4
VARYING_GENES = 2000
LARGEST_DEVIATION = 10.0
MIN_ANCHORS = 3


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


def measure_genes(
    values: sparse.csr_matrix, study: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give means and standard deviations of every gene over the cells of each study, (S, G)."""
    codes = range(int(study.max()) + 1)
    squares = values.multiply(values).tocsr()
    number = np.maximum(np.bincount(study), 1)[:, None]
    means, powers = (
        np.stack([np.asarray(part[study == code].sum(0)).ravel() for code in codes]) / number
        for part in (values, squares)
    )
    return means, np.sqrt(np.maximum(powers - np.square(means), 0))


def choose_varying_genes(
    values: sparse.csr_matrix, study: NDArray[np.int64], allowed: NDArray[np.bool_], number: int = VARYING_GENES
) -> NDArray[np.int64]:
    """
    Give the places of the allowed genes that vary most within studies, a gene of more studies before one of fewer.

    Notes
    -----
    Of each study the genes are ranked by their variance, from 1 for the first down to 0 for the one after the last of
    `number`; the sum over studies decides. So deep studies and those that measured few genes count alike.
    """
    _, spreads = measure_genes(values, study)
    points = np.zeros(values.shape[1])
    for spread in spreads:
        order = np.argsort(-np.where(allowed, spread, 0.0), kind="stable")[:number]
        points[order] += np.where(allowed[order] & (spread[order] > 0), 1 - np.arange(len(order)) / number, 0.0)
    chosen = np.argsort(-points, kind="stable")[:number]
    return np.sort(chosen[points[chosen] > 0])


def find_measured(values: sparse.csr_matrix, new: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which genes cells of new studies have, (G,); those that any cell has where there are none with genes."""
    found = np.bincount(values[new].indices, minlength=values.shape[1]) > 0
    return found if found.any() else np.ones(values.shape[1], bool)


def scale_within(values: sparse.csr_matrix, study: NDArray[np.int64]) -> sparse.csr_matrix:
    """
    Divide each gene by its standard deviation within the study of the cell, without making zeros dense.

    What lies more than 10 standard deviations above the mean is brought down to there. Genes that do not vary in a
    study are 0 in it. Less the means of the studies, these are standardised values, 0 where a gene was not measured.
    """
    means, spreads = measure_genes(values, study)
    values = values.tocsr()
    rows = np.repeat(study, np.diff(values.indptr))
    mean, spread = means[rows, values.indices], spreads[rows, values.indices]
    usable = spread > 1e-8
    largest = mean + LARGEST_DEVIATION * spread
    scaled = np.where(usable, np.minimum(values.data, largest) / np.where(usable, spread, 1.0), 0.0)
    return sparse.csr_matrix((scaled, values.indices, values.indptr), values.shape)


def project_within(
    values: sparse.csr_matrix, study: NDArray[np.int64], fit: NDArray[np.int64], number: int, seed: int
) -> NDArray[np.float64]:
    """
    Project cells on principal components of genes that are standardised within studies.

    Parameters
    ----------
    values
        (n, G) normalised expression; 0 where not measured.
    study
        (n,) numbers of the studies, from 0. Cells of a new study are standardised by one another: transductive.
    fit
        Rows that genes and components are found on.
    number
        Components.
    seed
        Of the search.
    """
    genes = choose_varying_genes(values[fit], study[fit], find_measured(values, ~np.isin(study, study[fit])))
    scaled = scale_within(values[:, genes], study)
    everywhere = np.broadcast_to(True, scaled.shape)
    components = StudyComponents.fit(scaled[fit], everywhere[fit], study[fit], number, seed)
    return components.read(scaled, everywhere, study)


def choose_anchors(panels: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """
    Choose the proteins around whose mean those of each study are centred, (S, P).

    Parameters
    ----------
    panels
        (S, P) what each study measured.
    known
        (S,) the studies that are trained on.

    Notes
    -----
    The proteins that all training studies measured. Where they are fewer than `MIN_ANCHORS`, those of a study that at
    least half of the training studies measured; where a study has fewer of these, all that it measured.
    """
    share = panels[known].mean(axis=0)
    common = panels & (share == 1)
    if common[known].any(axis=0).sum() < MIN_ANCHORS:
        common = panels & (share >= 0.5)
    enough = common.sum(axis=1, keepdims=True) >= MIN_ANCHORS
    return np.where(enough, common, panels)


def centre_within(
    values: NDArray[np.floating], observed: NDArray[np.bool_], anchors: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Take the mean over the anchors (n, P) of each cell from its values (n, P); 0 where not observed."""
    used = observed & anchors
    centre = np.where(used, values, 0.0).sum(1, keepdims=True) / np.maximum(used.sum(1, keepdims=True), 1)
    return np.where(observed, values - centre, 0.0)


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
