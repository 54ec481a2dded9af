"""Scores of the probabilities that come with predicted cell types.

Shapes: n cells, K classes.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

N_BINS = 15
TOLERANCE = 1e-3


def probability_scores(probabilities: ArrayLike, classes: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Score the probabilities of predicted cell types.

    Parameters
    ----------
    probabilities
        (n, K), rows add up to 1.
    classes
        (K,), names of the columns.
    labels
        (n,), true cell types. A type that no column has is an error with whatever probability.

    Returns
    -------
    `ece` (expected calibration error), `auroc`, `aurc` (area under the risk-coverage curve), `brier` and `log_loss`
    (probabilities below 1e-9 count as that). All but `auroc` are better when lower.

    Raises
    ------
    ValueError
        If shapes do not fit, there are no cells, or rows are no probabilities.
    """
    probabilities, codes = check_probabilities(probabilities, classes, labels)
    truth = np.arange(probabilities.shape[1]) == codes[:, None]
    unknown = codes < 0
    mine = np.where(unknown, 0.0, probabilities[np.arange(len(codes)), codes])
    return {
        "ece": expected_calibration_error(probabilities, classes, labels),
        "auroc": auroc(probabilities, classes, labels),
        "aurc": float(risk_coverage(probabilities, classes, labels)["risk"].mean()),
        "brier": float((np.square(probabilities - truth).sum(axis=1) + unknown).mean()),
        "log_loss": float(-np.log(np.maximum(mine, 1e-9)).mean()),
    }


def expected_calibration_error(
    probabilities: ArrayLike, classes: ArrayLike, labels: ArrayLike, n_bins: int = N_BINS
) -> float:
    """Return the mean gap between confidence and accuracy, over bins of confidence.

    Parameters
    ----------
    probabilities
        (n, K), rows add up to 1.
    classes
        (K,), names of the columns.
    labels
        (n,), true cell types.
    n_bins
        Number of bins of equal width between 0 and 1.

    Returns
    -------
    In [0, 1]: sum over bins of the share of cells times |accuracy - mean probability of the predicted type| (Guo et
    al. 2017).

    Raises
    ------
    ValueError
        If shapes do not fit, there are no cells, or rows are no probabilities.
    """
    probabilities, codes = check_probabilities(probabilities, classes, labels)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(codes))


def auroc(probabilities: ArrayLike, classes: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve of every class against the others, averaged over classes.

    Parameters
    ----------
    probabilities
        (n, K), rows add up to 1.
    classes
        (K,), names of the columns.
    labels
        (n,), true cell types.

    Returns
    -------
    Mean over the classes that some but not all cells have; 0.5 by chance, NaN if there is no such class.

    Raises
    ------
    ValueError
        If shapes do not fit, there are no cells, or rows are no probabilities.
    """
    probabilities, codes = check_probabilities(probabilities, classes, labels)
    counts = np.bincount(codes[codes >= 0], minlength=probabilities.shape[1])
    usable = np.flatnonzero((counts > 0) & (counts < len(codes)))
    scores = [roc_auc_score(codes == column, probabilities[:, column]) for column in usable]
    return float(np.mean(scores)) if scores else float("nan")


def risk_coverage(probabilities: ArrayLike, classes: ArrayLike, labels: ArrayLike) -> pd.DataFrame:
    """Tell how wrong the predictions are if only the most confident ones are given.

    Parameters
    ----------
    probabilities
        (n, K), rows add up to 1.
    classes
        (K,), names of the columns.
    labels
        (n,), true cell types.

    Returns
    -------
    n rows, from one cell to all: `coverage` (share of cells that get an answer), `risk` (share of wrong answers among
    them) and `threshold` (lowest probability among them). Cells of equal confidence share their errors evenly.

    Raises
    ------
    ValueError
        If shapes do not fit, there are no cells, or rows are no probabilities.
    """
    probabilities, codes = check_probabilities(probabilities, classes, labels)
    confidence, wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != codes
    levels, level, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean_wrong = np.bincount(level, weights=wrong) / counts
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(codes) + 1)
    return pd.DataFrame(
        {
            "coverage": answered / len(codes),
            "risk": np.cumsum(mean_wrong[level[order]]) / answered,
            "threshold": -levels[level[order]],
        }
    )


def check_probabilities(
    probabilities: ArrayLike, classes: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities and the column of every cell's true class, -1 where no column has it.

    Parameters
    ----------
    probabilities
        (n, K), rows add up to 1.
    classes
        (K,), names of the columns.
    labels
        (n,), true cell types.

    Raises
    ------
    ValueError
        If shapes do not fit, there are no cells, or rows are no probabilities.
    """
    probabilities = np.asarray(probabilities, np.float64)
    classes, labels = np.asarray(classes).astype(str), np.asarray(labels).astype(str)
    if probabilities.shape != (len(labels), len(classes)) or probabilities.size == 0:
        raise ValueError(
            f"`probabilities` must be (cells, classes), here ({len(labels)}, {len(classes)}), and not empty, got "
            f"{probabilities.shape}; select the same cells and classes."
        )
    sums = probabilities.sum(axis=1)
    if not (probabilities >= 0).all() or not np.allclose(sums, 1, atol=TOLERANCE):
        raise ValueError(
            f"`probabilities` must be at least 0 and add up to 1 in every row, got {probabilities.min():g} as the "
            f"smallest and sums from {sums.min():g} to {sums.max():g}; apply a softmax to logits first."
        )
    columns = {name: column for column, name in enumerate(classes.tolist())}
    return probabilities, np.array([columns.get(name, -1) for name in labels.tolist()], np.int64)
