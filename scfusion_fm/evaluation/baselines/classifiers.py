"""Simple methods that see the same cells and labels as the model.

Whatever is fitted (means, scales, principal components, coefficients) is fitted on the cells with
`split == "train"`; hyper-parameters are chosen on `"val"`; the cells of `"test"` are only predicted.

Shapes: n cells, G genes, P proteins, F features.
"""

import logging
from collections.abc import Iterable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from scfusion_fm.evaluation.baselines.features import (
    SPLITS,
    Features,
    build_inputs,
    check_split,
)

INVERSE_PENALTIES = tuple(10.0**exponent for exponent in range(-1, 5))
NEIGHBOUR_COUNTS = (3, 5, 10, 15, 30, 50)

logger = logging.getLogger(__name__)


def annotate_baselines(
    features: Features, labels: np.ndarray, split: np.ndarray, seed: int = 0
) -> dict[tuple[str, str], np.ndarray]:
    """Predict the cell types of the test cells with every baseline and every available input.

    Parameters
    ----------
    features
        The modalities of all n cells.
    labels
        (n,), cell types; those of the test cells are not read.
    split
        (n,), "train", "val" or "test".
    seed
        Seed of the principal components' solver.

    Returns
    -------
    Predicted labels of the test cells, in their order, by (method, inputs). Methods: "majority",
    "PCA + logistic regression", "PCA + kNN"; inputs: "rna", "adt", "rna+adt".

    Raises
    ------
    ValueError
        If no modality is given, lengths differ, a split is unknown or empty, a value is not finite, or the
        training cells have fewer than two cell types.

    Notes
    -----
    Penalty and number of neighbours maximise macro F1 on the validation cells. Nothing is refitted on them
    afterwards: the model, too, uses them only to choose a checkpoint.
    """
    labels = np.asarray(labels).astype(str)
    check_split(split, len(labels))
    fit, select, test = (np.flatnonzero(np.asarray(split) == name) for name in SPLITS)
    known, counts = np.unique(labels[fit], return_counts=True)
    if len(known) < 2:
        raise ValueError(
            f"`labels` must hold at least two cell types in the training cells, got {known.tolist()}; "
            "pass more cells or another split."
        )
    predictions = {}
    for inputs, x in build_inputs(features, split, seed).items():
        train_and_val = (x[fit], labels[fit], x[select], labels[select])
        predictions["majority", inputs] = np.full(len(test), known[counts.argmax()])
        for method, candidates in (
            ("PCA + logistic regression", build_logistic_candidates()),
            ("PCA + kNN", build_knn_candidates(len(fit))),
        ):
            predictions[method, inputs] = tune_classifier(candidates, *train_and_val).predict(x[test])
    return predictions


def build_logistic_candidates() -> Iterable[LogisticRegression]:
    """Yield logistic regressions that weigh all classes alike, from the strongest penalty to the weakest."""
    return (LogisticRegression(C=inverse, class_weight="balanced", max_iter=5000) for inverse in INVERSE_PENALTIES)


def build_knn_candidates(n_train: int) -> Iterable[KNeighborsClassifier]:
    """Yield nearest-neighbour classifiers that the number of training cells allows.

    Parameters
    ----------
    n_train
        Number of training cells.
    """
    counts = [count for count in NEIGHBOUR_COUNTS if count <= n_train] or [n_train]
    return (KNeighborsClassifier(n_neighbors=count) for count in counts)


def tune_classifier(
    candidates: Iterable, x_train: np.ndarray, y_train: np.ndarray, x_val: np.ndarray, y_val: np.ndarray
):
    """Fit every candidate on the training cells and keep the first with the best macro F1 on validation.

    Parameters
    ----------
    candidates
        scikit-learn classifiers, the simplest first.
    x_train
        (n_train, F), features.
    y_train
        (n_train,), cell types.
    x_val
        (n_val, F), features.
    y_val
        (n_val,), cell types.

    Returns
    -------
    The fitted classifier.
    """
    fitted = [candidate.fit(x_train, y_train) for candidate in candidates]
    present = np.unique(y_val)
    scores = [
        f1_score(y_val, classifier.predict(x_val), labels=present, average="macro", zero_division=0)
        for classifier in fitted
    ]
    best = int(np.argmax(scores))
    logger.info("chose %s: macro F1 %.3f on %d validation cells", fitted[best], scores[best], len(y_val))
    return fitted[best]
