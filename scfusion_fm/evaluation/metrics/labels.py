"""Scores of predicted cell types.

Shapes: n cells.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)


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
