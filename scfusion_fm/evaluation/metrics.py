"""Scores of predicted cell types, predicted proteins and embeddings.

Shapes: n cells, P proteins, D embedding width. Everything here takes arrays and fits nothing.
"""

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors

MAX_SILHOUETTE_CELLS = 10_000


def annotation_scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Score predicted cell types against the true ones.

    Parameters
    ----------
    labels
        (n,), true cell types.
    predicted
        (n,), predicted cell types. Classes that `labels` lacks are allowed; such a prediction is an error.

    Returns
    -------
    `accuracy`, `balanced_accuracy` (mean recall) and `macro_f1`, each in [0, 1]. The last two average
    over the classes that are present in `labels`, every class with the same weight.

    Raises
    ------
    ValueError
        If the arrays are empty or differ in length.
    """
    labels, predicted = check_label_pair(labels, predicted)
    average_over_present = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "balanced_accuracy": float(recall_score(labels, predicted, **average_over_present)),
        "macro_f1": float(f1_score(labels, predicted, **average_over_present)),
    }


def class_scores(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Score every cell type that is present in the labels.

    Parameters
    ----------
    labels
        (n,), true cell types.
    predicted
        (n,), predicted cell types.

    Returns
    -------
    One row per class: `n` (cells of it), `recall`, `precision` (0 where it is never predicted) and `f1`.

    Raises
    ------
    ValueError
        If the arrays are empty or differ in length.
    """
    labels, predicted = check_label_pair(labels, predicted)
    present = np.unique(labels)
    precision, recall, f1, n = precision_recall_fscore_support(labels, predicted, labels=present, zero_division=0)
    return pd.DataFrame({"n": n, "recall": recall, "precision": precision, "f1": f1}, index=present)


def confusion_table(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Count the test cells for every pair of true and predicted cell type.

    Parameters
    ----------
    labels
        (n,), true cell types: the rows.
    predicted
        (n,), predicted cell types: the columns.

    Returns
    -------
    Square table of counts; rows and columns are the sorted union of both arrays' classes.

    Raises
    ------
    ValueError
        If the arrays are empty or differ in length.
    """
    labels, predicted = check_label_pair(labels, predicted)
    classes = np.union1d(labels, predicted)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(classes, labels), np.searchsorted(classes, predicted)), 1)
    return pd.DataFrame(counts, index=pd.Index(classes, name="label"), columns=pd.Index(classes, name="predicted"))


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


def clustering_scores(
    embedding: np.ndarray, labels: np.ndarray, n_neighbors: int = 15, seed: int = 0
) -> dict[str, float]:
    """Score how well cell types separate in an embedding, by Euclidean distance in all its dimensions.

    Parameters
    ----------
    embedding
        (n, D), one row per cell; the embedding itself, never its UMAP.
    labels
        (n,), cell types.
    n_neighbors
        Neighbours per cell, the cell itself not counted; at most n - 1 are used.
    seed
        Seed of the sample of cells behind the silhouette where there are more than 10,000.

    Returns
    -------
    `silhouette` in [-1, 1], the mean over cells, and `knn_purity` in [0, 1], the mean share of a cell's
    nearest neighbours that have its label.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or the number of classes is not in [2, n - 1].
    """
    embedding, labels = np.asarray(embedding), np.asarray(labels)
    if embedding.ndim != 2 or labels.shape != embedding.shape[:1]:
        raise ValueError(
            f"`embedding` must be (cells, width) with one of `labels` per cell, got {embedding.shape} "
            f"and {labels.shape}; select the same cells from both."
        )
    if not np.isfinite(embedding).all():
        raise ValueError("`embedding` must be finite, got NaN or infinity; drop such cells.")
    n_classes = len(np.unique(labels))
    if not 2 <= n_classes < len(labels):
        raise ValueError(
            f"`labels` must hold between 2 classes and one fewer than cells, got {n_classes} classes "
            f"in {len(labels)} cells; pass more cells or another label."
        )
    n_neighbors = min(n_neighbors, len(labels) - 1)
    # Without an argument, kneighbors leaves each cell out of its own neighbours.
    neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(embedding).kneighbors(return_distance=False)
    sample_size = MAX_SILHOUETTE_CELLS if len(labels) > MAX_SILHOUETTE_CELLS else None
    silhouette = silhouette_score(embedding, labels, sample_size=sample_size, random_state=seed)
    return {
        "silhouette": float(silhouette),
        "knn_purity": float((labels[neighbours] == labels[:, None]).mean()),
    }


def check_label_pair(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both label arrays as strings, or raise if they are empty or not of the same length.

    Parameters
    ----------
    labels
        (n,), true cell types.
    predicted
        (n,), predicted cell types.

    Raises
    ------
    ValueError
        If the arrays are empty, not one-dimensional or differ in length.
    """
    labels, predicted = np.asarray(labels).astype(str), np.asarray(predicted).astype(str)
    if labels.ndim != 1 or labels.shape != predicted.shape or labels.size == 0:
        raise ValueError(
            f"`labels` and `predicted` must be non-empty and of one length, got shapes {labels.shape} "
            f"and {predicted.shape}; pass both for the same cells."
        )
    return labels, predicted


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
