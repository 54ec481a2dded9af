"""Logistic regressions on genes that are standardised within data sets: strong for types of a new laboratory.

Letters: n cells, G genes, S studies, M landmarks.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import eigh
from sklearn.linear_model import LogisticRegression

from scfusion_fm.evaluation.baselines.classifiers import KnownLabels
from scfusion_fm.evaluation.baselines.studies import (
    average_studies,
    choose_varying_genes,
    find_measured,
    scale_within,
)

INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1)
ITERATIONS = 300
MAX_LANDMARKS = 1000


def fit_plain(cells: KnownLabels) -> Iterable[LogisticRegression]:
    """Yield logistic regressions in which every cell weighs the same, from the strongest penalty to the weakest."""
    for inverse in INVERSE_PENALTIES:
        yield LogisticRegression(C=inverse, max_iter=ITERATIONS).fit(cells.x, cells.labels)


def fit_balanced(cells: KnownLabels) -> Iterable[LogisticRegression]:
    """Yield logistic regressions in which every class weighs the same, from the strongest penalty to the weakest."""
    for inverse in INVERSE_PENALTIES:
        yield LogisticRegression(C=inverse, class_weight="balanced", max_iter=ITERATIONS).fit(cells.x, cells.labels)


GENE_METHODS: dict[str, tuple[Callable[[KnownLabels], Iterable[LogisticRegression]], bool]] = {
    "genes + logistic regression": (fit_plain, False),
    "genes + balanced logistic regression": (fit_balanced, False),
    "all genes + logistic regression": (fit_plain, True),
}
"""Fit and whether on all genes, as CellTypist does (Dominguez Conde et al. 2022), or on those that vary most."""


def show_standardised(
    values: sparse.csr_matrix, study: NDArray[np.int64], fit: NDArray[np.int64], all_genes: bool, seed: int
) -> NDArray[np.float64]:
    """
    Give features (n, M) in which a linear model is one on standardised genes.

    Parameters
    ----------
    values
        (n, G) normalised expression; 0 where not measured.
    study
        (n,) numbers of the studies, from 0, within which genes are standardised; those of new cells by these alone.
    fit
        Rows that genes and features are found on.
    all_genes
        Whether to take all genes that the new studies have, not those that vary most.
    seed
        Of the landmarks.

    Notes
    -----
    The weights of a penalised linear model are a sum of training cells, so that products with these say all there is.
    With more than `MAX_LANDMARKS` training cells, with a sample of them, and the dense matrix of genes is never made.
    """
    allowed = find_measured(values, ~np.isin(study, study[fit]))
    genes = np.flatnonzero(allowed) if all_genes else choose_varying_genes(values[fit], study[fit], allowed)
    scaled = scale_within(values[:, genes], study)
    means = average_studies(scaled, np.broadcast_to(True, scaled.shape), study)[0]  # (S, G)
    landmarks = fit
    if len(fit) > MAX_LANDMARKS:
        landmarks = np.sort(np.random.default_rng(seed).choice(fit, MAX_LANDMARKS, replace=False))
    chosen = scaled[landmarks].toarray() - means[study[landmarks]]  # (M, G)
    products = scaled @ chosen.T - (means @ chosen.T)[study]
    spread, vectors = eigh(products[landmarks])
    kept = spread > spread.max() * 1e-9
    return products @ (vectors[:, kept] / np.sqrt(spread[kept]))
