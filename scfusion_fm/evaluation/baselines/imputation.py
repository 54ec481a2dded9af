"""Baselines and scores of imputation: values of some genes in some cells are hidden and guessed from the rest.

Shapes: n cells, G genes, C components.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from scfusion_fm.evaluation.baselines.classifiers import NEIGHBOUR_COUNTS
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.partition import Partition

IMPUTATION_METHODS = ("gene mean", "PCA reconstruction", "kNN smoothing")
COMPONENT_COUNTS = (5, 10, 20, 50)
MAX_ROUNDS = 20

logger = logging.getLogger(__name__)


@dataclass
class ImputationTask:
    """Values to impute.

    Attributes
    ----------
    x
        (n, G), normalised expression (or abundance); dense or CSR. Hidden values of validation cells are read to choose
        settings, those of test cells never.
    hidden
        (n, G), bool: values that are hidden from the method. Training cells are used whole.
    partition
        What the cells are for.
    seed
        Seed of principal components.
    """

    x: NDArray | sparse.csr_matrix | sparse.csr_array
    hidden: NDArray[np.bool_]
    partition: Partition
    seed: int = 0


def fit_imputation_baselines(task: ImputationTask) -> dict[str, NDArray[np.float64]]:
    """Guess the hidden values of the test cells by baselines.

    Parameters
    ----------
    task
        Values, what is hidden, and partition.

    Returns
    -------
    (n_test, G) by method, what was not hidden as it is. "gene mean" of the training cells; "PCA reconstruction", hidden
    values start at the mean and are replaced by the reconstruction until that is stable; "kNN smoothing", the mean of
    the training cells that are nearest by the components so found.

    Raises
    ------
    ValueError
        If a part has no cells, shapes differ, `hidden` is not bool or hides nothing in validation or test cells, or a
        value is not finite.

    Notes
    -----
    Numbers of components and neighbours minimise the squared error of the validation cells' hidden values. Values that
    were normalised by the total of a cell tell a little of what was hidden: normalise after hiding.
    """
    part = task.partition
    part.check()
    part.check_arrays({"x": task.x})
    check_hidden(task)
    x_train, x_val, x_test = (take_rows(task.x, rows) for rows in (part.train, part.val, part.test))
    hidden_val, hidden_test = task.hidden[part.val], task.hidden[part.test]
    mean = x_train.mean(axis=0)
    imputed = {"gene mean": np.where(hidden_test, mean, x_test)}

    def error(guess: NDArray) -> float:
        return float(np.square(guess - x_val)[hidden_val].mean())

    full = min(max(COMPONENT_COUNTS), len(x_train) - 1, x_train.shape[1] - 1)
    pca = PCA(n_components=full, svd_solver="arpack", random_state=task.seed).fit(x_train)
    counts = sorted({min(count, full) for count in COMPONENT_COUNTS})
    guesses = ((count, reconstruct(x_val, hidden_val, pca, count)) for count in counts)
    n_components = choose(((count, error(guess)) for count, guess in guesses), "components")
    reconstructed = {
        name: reconstruct(x, hidden, pca, n_components)
        for name, x, hidden in (("val", x_val, hidden_val), ("test", x_test, hidden_test))
    }
    imputed["PCA reconstruction"] = reconstructed["test"]

    project = pca.components_[:n_components].T
    index = NearestNeighbors().fit(x_train @ project)
    nearest_val, nearest_test = (
        index.kneighbors(reconstructed[name] @ project, min(max(NEIGHBOUR_COUNTS), len(x_train)), return_distance=False)
        for name in ("val", "test")
    )
    counts = sorted({min(count, len(x_train)) for count in NEIGHBOUR_COUNTS})
    smoothed = ((count, error(smooth(x_train, nearest_val, count))) for count in counts)
    n_neighbors = choose(smoothed, "neighbours")
    imputed["kNN smoothing"] = np.where(hidden_test, smooth(x_train, nearest_test, n_neighbors), x_test)
    return imputed


def reconstruct(x: NDArray, hidden: NDArray[np.bool_], pca: PCA, n_components: int) -> NDArray[np.float64]:
    """Replace hidden values by what the components say, again and again.

    Parameters
    ----------
    x
        (n, G), values; those that are hidden are not read.
    hidden
        (n, G), bool.
    pca
        Components of the training cells.
    n_components
        How many of them to use.
    """
    components = pca.components_[:n_components]
    filled = np.where(hidden, pca.mean_, x)
    for _ in range(MAX_ROUNDS):
        guess = pca.mean_ + (filled - pca.mean_) @ components.T @ components
        change = np.abs(guess - filled)[hidden].max(initial=0.0)
        filled = np.where(hidden, guess, x)
        if change < 1e-4:
            break
    return filled


def smooth(x_train: NDArray, nearest: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Average the nearest training cells.

    Parameters
    ----------
    x_train
        (n_train, G), values.
    nearest
        (n, k), positions of the nearest training cells, the nearest first.
    count
        How many of them to use.
    """
    rows = np.repeat(np.arange(len(nearest)), count)
    shape = (len(nearest), len(x_train))
    weights = sparse.csr_matrix((np.full(len(rows), 1 / count), (rows, nearest[:, :count].ravel())), shape=shape)
    return weights @ x_train


def choose(errors: Iterable[tuple[int, float]], what: str) -> int:
    """Return the number with the smallest error.

    Parameters
    ----------
    errors
        Numbers and their errors.
    what
        What is counted, for the log.
    """
    best, error = min(errors, key=lambda pair: pair[1])
    logger.info("chose %d %s: squared error %.4g of hidden validation values", best, what, error)
    return best


def imputation_scores(
    measured: ArrayLike, imputed: ArrayLike, hidden: ArrayLike, gene_mean: ArrayLike
) -> dict[str, float]:
    """Score imputed values where they were hidden.

    Parameters
    ----------
    measured
        (n, G), true values.
    imputed
        (n, G), guesses in the same unit.
    hidden
        (n, G), bool: the values to score.
    gene_mean
        (G,), mean of each gene in the training cells.

    Returns
    -------
    `pearson_per_gene` and `pearson_per_cell` (means; a constant guess counts 0, a constant truth is left out), `rmse`
    over all hidden values, and `rmse_vs_mean`: that divided by the RMSE of the gene means, 1 for a guess that is no
    better, 0 for a perfect one.

    Raises
    ------
    ValueError
        If shapes differ, `hidden` is not bool, or a value to score is not finite.

    Notes
    -----
    Genes differ in their means, so that the gene means alone correlate highly within a cell: read `pearson_per_cell`
    beside theirs.
    """
    measured, hidden = np.asarray(measured, np.float64), np.asarray(hidden)
    _, summary = protein_scores(measured, np.asarray(imputed, np.float64), hidden)
    plain = np.sqrt(np.square(measured - np.asarray(gene_mean))[hidden].mean()) if hidden.any() else np.nan
    return {
        "pearson_per_gene": summary["pearson_per_protein"],
        "pearson_per_cell": summary["pearson_per_cell"],
        "rmse": summary["rmse"],
        "rmse_vs_mean": float(summary["rmse"] / plain) if plain > 0 else float("nan"),
    }


def take_rows(x: NDArray | sparse.csr_matrix, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return some cells as a dense array.

    Parameters
    ----------
    x
        (n, G), dense or CSR.
    rows
        Positions of the cells.
    """
    part = x[rows]
    return np.asarray(part.todense() if sparse.issparse(part) else part, np.float64)


def check_hidden(task: ImputationTask) -> None:
    """Raise unless the mask and the values can be used.

    Parameters
    ----------
    task
        Values and mask.

    Raises
    ------
    ValueError
        If `hidden` is not bool, has another shape, or hides nothing in validation or test cells, or a value is not
        finite. Hidden values of test cells are not looked at.
    """
    hidden = np.asarray(task.hidden)
    if hidden.dtype != bool or hidden.shape != task.x.shape:
        raise ValueError(
            f"`hidden` must be bool of shape {task.x.shape}, got {hidden.dtype} of shape {hidden.shape}; "
            "mark the values to impute."
        )
    val, test = task.partition.val, task.partition.test
    if not (hidden[val].any() and hidden[test].any()):
        raise ValueError("`hidden` must hide a value in validation and in test cells, got none; hide some in both.")
    visible = np.where(hidden[test], 0.0, take_rows(task.x, test))
    n_bad = int((~np.isfinite(take_rows(task.x, task.partition.known))).sum() + (~np.isfinite(visible)).sum())
    if n_bad:
        raise ValueError(f"`x` must be finite, got {n_bad} values that are not; fill or drop such genes first.")
