"""Simple methods that predict proteins from RNA, with targets that were not measured in every cell."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from scfusion_fm.evaluation.baselines.classifiers import NEIGHBOUR_COUNTS
from scfusion_fm.evaluation.baselines.features import (
    SPLITS,
    check_length,
    check_split,
    project_rna,
)

logger = logging.getLogger(__name__)

RIDGE_PENALTIES = tuple(10.0**exponent for exponent in range(-2, 6))


Predictor = Callable[[np.ndarray], np.ndarray]


@dataclass
class Targets:
    """The training cells' proteins, ready to be fitted.

    Attributes
    ----------
    centred
        (n_train, P), abundance less the mean; 0 where not observed.
    observed
        (n_train, P), bool.
    mean
        (P,), mean over the observed training cells.
    variance
        (P,), likewise; 1 where the protein does not vary.
    """

    centred: np.ndarray
    observed: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def from_training(cls, adt: np.ndarray, observed: np.ndarray) -> "Targets":
        """Centre the training cells' proteins.

        Parameters
        ----------
        adt
            (n_train, P), normalised abundance.
        observed
            (n_train, P), bool.

        Raises
        ------
        ValueError
            If nothing is observed.
        """
        if not observed.any():
            raise ValueError(
                "`adt_observed` must hold a measured value in the training cells, got none; pass another split."
            )
        masked = np.ma.MaskedArray(np.asarray(adt, np.float64), mask=~observed)
        mean = masked.mean(axis=0).filled(masked.mean())
        variance = masked.var(axis=0).filled(0.0)
        return cls((masked - mean).filled(0.0), observed, mean, np.where(variance > 1e-12, variance, 1.0))

    def tune(
        self,
        candidates: Iterable[tuple[str, Predictor]],
        x: np.ndarray,
        adt: np.ndarray,
        observed: np.ndarray,
    ) -> Predictor:
        """Return the candidate with the smallest relative squared error on the validation cells.

        Parameters
        ----------
        candidates
            Names and fitted predictors, the simplest first.
        x
            (n_val, F), features.
        adt
            (n_val, P), normalised abundance.
        observed
            (n_val, P), bool.
        """
        named = list(candidates)
        counts = np.maximum(observed.sum(axis=0), 1)
        errors = []
        for _, predict in named:
            squared = np.where(observed, np.square(adt - predict(x)), 0.0).sum(axis=0) / counts
            errors.append((squared / self.variance).mean())
        best = int(np.argmin(errors))
        logger.info("chose %s: relative squared error %.3f on validation cells", named[best][0], errors[best])
        return named[best][1]


def predict_protein_baselines(
    rna: np.ndarray | sparse.csr_matrix,
    adt: np.ndarray,
    adt_observed: np.ndarray,
    own_gene_columns: list[int | None],
    split: np.ndarray,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Predict the proteins of the test cells from their RNA with every baseline.

    Parameters
    ----------
    rna
        (n, G), normalised expression; dense or CSR.
    adt
        (n, P), normalised abundance; read only where observed, and never in test cells.
    adt_observed
        (n, P) or (P,), bool: where the protein was measured.
    own_gene_columns
        For each protein the column of its coding gene in `rna`, or `None`.
    split
        (n,), "train", "val" or "test".
    seed
        Seed of the principal components' solver.

    Returns
    -------
    (n_test, P) by method: "mean"; "own gene RNA", a line through the coding gene's expression (the mean
    where there is no gene); "PCA + kNN"; "PCA + ridge".

    Raises
    ------
    ValueError
        If shapes do not fit, a split is unknown or empty, no training cell has a measured value, or an
        observed value of a training or validation cell is not finite.

    Notes
    -----
    Number of neighbours and penalty, one for all proteins, minimise the mean over proteins of the squared
    error on validation cells relative to the protein's variance in training. A protein that no training
    cell has gets the mean of all training values.
    """
    check_split(split, len(adt))
    check_length("rna", rna, len(adt))
    observed = check_observed(adt, adt_observed, np.asarray(split) != "test")
    check_own_genes(own_gene_columns, adt.shape[1])
    fit, select, test = (np.flatnonzero(np.asarray(split) == name) for name in SPLITS)
    components = project_rna(rna, np.asarray(split) == "train", seed)
    targets = Targets.from_training(adt[fit], observed[fit])
    val = (components[select], adt[select], observed[select])
    knn = targets.tune(fit_neighbours(components[fit], targets), *val)
    ridge = targets.tune(fit_ridges(components[fit], targets), *val)
    return {
        "mean": np.tile(targets.mean, (len(test), 1)),
        "own gene RNA": predict_from_own_gene(rna, own_gene_columns, fit, test, targets),
        "PCA + kNN": knn(components[test]),
        "PCA + ridge": ridge(components[test]),
    }


def fit_neighbours(x: np.ndarray, targets: Targets) -> Iterable[tuple[str, Predictor]]:
    """Yield predictors that average the nearest training cells in which the protein was observed.

    Parameters
    ----------
    x
        (n_train, F), features.
    targets
        Proteins of the same cells.
    """
    index = NearestNeighbors().fit(x)

    def predict(query: np.ndarray, n_neighbors: int) -> np.ndarray:
        nearest = index.kneighbors(query, n_neighbors, return_distance=False)  # (n, k)
        counts = np.maximum(targets.observed[nearest].sum(axis=1), 1)  # (n, P)
        return targets.mean + targets.centred[nearest].sum(axis=1) / counts

    for count in sorted({min(count, len(x)) for count in NEIGHBOUR_COUNTS}, reverse=True):
        yield f"k={count}", partial(predict, n_neighbors=count)


def fit_ridges(x: np.ndarray, targets: Targets) -> Iterable[tuple[str, Predictor]]:
    """Yield ridge regressions, each protein fitted on the training cells in which it was observed.

    Parameters
    ----------
    x
        (n_train, F), features.
    targets
        Proteins of the same cells.
    """
    patterns, pattern_of_protein = np.unique(targets.observed, axis=1, return_inverse=True)
    groups = [(cells, pattern_of_protein == i) for i, cells in enumerate(patterns.T) if cells.any()]

    def predict(query: np.ndarray, coefficients: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
        return query @ coefficients + intercepts

    for alpha in sorted(RIDGE_PENALTIES, reverse=True):
        coefficients = np.zeros((x.shape[1], len(targets.mean)))
        intercepts = targets.mean.copy()
        for cells, proteins in groups:
            ridge = Ridge(alpha=alpha).fit(x[cells], targets.centred[np.ix_(cells, proteins)])
            coefficients[:, proteins] = ridge.coef_.reshape(-1, x.shape[1]).T
            intercepts[proteins] += ridge.intercept_
        yield f"alpha={alpha:g}", partial(predict, coefficients=coefficients, intercepts=intercepts)


def predict_from_own_gene(
    rna: np.ndarray | sparse.csr_matrix,
    own_gene_columns: list[int | None],
    fit: np.ndarray,
    test: np.ndarray,
    targets: Targets,
) -> np.ndarray:
    """Predict every protein by least squares from the expression of its coding gene.

    Parameters
    ----------
    rna
        (n, G), normalised expression.
    own_gene_columns
        (P,), columns of `rna` or `None`.
    fit
        (n_train,), positions of the training cells.
    test
        (n_test,), positions of the test cells.
    targets
        Proteins of the training cells.

    Returns
    -------
    (n_test, P); the mean where there is no gene or the gene does not vary.
    """
    predicted = np.tile(targets.mean, (len(test), 1))
    for protein, column in enumerate(own_gene_columns):
        if column is None:
            continue
        gene = rna[:, [column]]
        gene = np.asarray(gene.todense() if sparse.issparse(gene) else gene, np.float64).ravel()
        cells = targets.observed[:, protein]
        x, y = gene[fit][cells], targets.centred[cells, protein]
        if len(x) < 2 or np.ptp(x) == 0:
            continue
        slope = (x - x.mean()) @ y / np.square(x - x.mean()).sum()
        predicted[:, protein] += slope * (gene[test] - x.mean())
    return predicted


def check_observed(adt: np.ndarray, observed: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the mask of observed values for every cell, or raise if a value that is fitted is not finite.

    Parameters
    ----------
    adt
        (n, P), normalised abundance.
    observed
        (n, P) or (P,), bool.
    seen
        (n,), bool: the cells that are fitted or tuned on.

    Raises
    ------
    ValueError
        If `observed` does not fit `adt`, or an observed value of those cells is not finite.
    """
    observed = np.asarray(observed)
    if observed.dtype != bool or observed.shape not in (adt.shape, adt.shape[1:]):
        raise ValueError(
            f"`adt_observed` must be bool of shape {adt.shape} or {adt.shape[1:]}, got {observed.dtype} of "
            f"shape {observed.shape}; pass the presence mask of `adt`."
        )
    observed = np.broadcast_to(observed, adt.shape)
    n_bad = int((observed & ~np.isfinite(adt))[seen].sum())
    if n_bad:
        raise ValueError(
            f"`adt` must be finite wherever `adt_observed` is true, got {n_bad} values that are not; "
            "mark missing measurements as not observed."
        )
    return observed


def check_own_genes(own_gene_columns: list[int | None], n_proteins: int) -> None:
    """Raise unless every protein has an entry.

    Parameters
    ----------
    own_gene_columns
        (P,), columns of the expression matrix or `None`.
    n_proteins
        Number of proteins.

    Raises
    ------
    ValueError
        If the number of entries differs.
    """
    if len(own_gene_columns) != n_proteins:
        raise ValueError(
            f"`own_gene_columns` must have one entry per protein, got {len(own_gene_columns)} for "
            f"{n_proteins} proteins; use None where the gene is absent."
        )
