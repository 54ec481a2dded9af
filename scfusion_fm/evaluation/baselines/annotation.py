"""Baselines of cell type annotation: probabilities by simple methods that get the cells and labels of the model.

Shapes: n cells, F features, K cell types of the training cells.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import f1_score

from scfusion_fm.evaluation.baselines.classifiers import (
    KnownLabels,
    fit_ensembles,
    fit_logistic,
    fit_majority,
    fit_neighbour_votes,
)
from scfusion_fm.evaluation.baselines.features import Features, build_inputs, check_methods
from scfusion_fm.evaluation.baselines.gene_classifiers import GENE_METHODS, show_standardised
from scfusion_fm.evaluation.baselines.networks import MlpSettings
from scfusion_fm.evaluation.partition import Partition

LOGISTIC = "PCA + logistic regression"
ANNOTATION_METHODS: dict[str, Callable[[KnownLabels], Iterable[Any]]] = {
    "majority": fit_majority,
    LOGISTIC: fit_logistic,
    "PCA + kNN": fit_neighbour_votes,
    "PCA + MLP": fit_ensembles,
}
ALL_ANNOTATION_METHODS = (*ANNOTATION_METHODS, *GENE_METHODS)

logger = logging.getLogger(__name__)


@dataclass
class AnnotationTask:
    """Cells to annotate.

    Attributes
    ----------
    features
        The modalities of all n cells.
    labels
        (n,), cell types; those of the test cells are not read.
    partition
        What the cells are for.
    seed
        Seed of principal components and networks.
    mlp
        How the networks are trained.
    study
        (n,), numbers of the data sets, from 0, within which methods on genes standardise, the test cells' by these
        cells alone where they are of a data set of their own (transductive); None for one.
    """

    features: Features
    labels: NDArray[np.str_]
    partition: Partition
    seed: int = 0
    mlp: MlpSettings = field(default_factory=MlpSettings)
    study: NDArray[np.int64] | None = None


@dataclass
class Annotation:
    """What baselines say of the cells, by (method, inputs).

    Attributes
    ----------
    classes
        (K,), the training cells' types, sorted: the columns of the probabilities.
    test
        (n_test, K), probabilities of the test cells, in their order.
    val
        (n_val, K), likewise of the validation cells.
    """

    classes: NDArray[np.str_]
    test: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    val: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)

    def name_test_cells(self) -> dict[tuple[str, str], NDArray[np.str_]]:
        """Return the most probable types of the test cells, (n_test,), by (method, inputs)."""
        return {key: self.classes[probabilities.argmax(axis=1)] for key, probabilities in self.test.items()}


def fit_annotation_baselines(task: AnnotationTask, methods: Sequence[str] = ALL_ANNOTATION_METHODS) -> Annotation:
    """Give the test and validation cells' probabilities by baselines, for every available input.

    Parameters
    ----------
    task
        Cells, labels and partition.
    methods
        Names out of `ALL_ANNOTATION_METHODS`; those on genes are for RNA alone.

    Raises
    ------
    ValueError
        If a method is unknown, or the task does not hold what it needs: cells of every part, one row per cell, finite
        values, two cell types in the training cells.

    Notes
    -----
    Features and classifiers are fitted on the training cells; the setting with the best macro F1 on the validation
    cells is kept, the simplest of equals, and not refitted: the model, too, uses them only to choose. Networks also
    stop by the validation cells.
    """
    labels, part = np.asarray(task.labels).astype(str), task.partition
    check_methods(methods, ALL_ANNOTATION_METHODS)
    part.check()
    part.check_arrays(task.features.given | {"labels": labels})
    classes = np.unique(labels[part.train])
    if len(classes) < 2:
        raise ValueError(
            f"`labels` must hold at least two cell types in the training cells, got {classes.tolist()}; "
            "pass more cells or another partition."
        )
    result = Annotation(classes)
    for inputs, x in build_inputs(task.features, part.train, task.seed).items():
        for method in methods:
            if method in ANNOTATION_METHODS:
                add_annotation(result, task, (method, inputs), x, ANNOTATION_METHODS[method])
    genes: dict[bool, NDArray] = {}  # features by whether they are of all genes
    for method in methods:
        if method in GENE_METHODS and task.features.rna is not None:
            fit, all_genes = GENE_METHODS[method]
            if all_genes not in genes:
                study = np.zeros(len(labels), np.int64) if task.study is None else task.study
                values = sparse.csr_matrix(task.features.rna)
                genes[all_genes] = show_standardised(values, study, part.train, all_genes, task.seed)
            add_annotation(result, task, (method, "rna"), genes[all_genes], fit)
    return result


def add_annotation(
    result: Annotation,
    task: AnnotationTask,
    key: tuple[str, str],
    x: NDArray,
    fit: Callable[[KnownLabels], Iterable[Any]],
) -> None:
    """Add the probabilities of one method, a (method, inputs), that reads the features x (n, F)."""
    labels, part = np.asarray(task.labels).astype(str), task.partition
    cells = KnownLabels(x[part.train], labels[part.train], x[part.val], labels[part.val], task.seed, task.mlp)
    best = choose_classifier(fit(cells), cells.x_val, cells.labels_val)
    result.test[key] = best.predict_proba(x[part.test])
    result.val[key] = best.predict_proba(x[part.val])


def choose_classifier(candidates: Iterable[Any], x_val: NDArray, y_val: NDArray) -> Any:
    """Keep the first of the fitted classifiers with the best macro F1 on the validation cells.

    Parameters
    ----------
    candidates
        Fitted classifiers, the simplest first.
    x_val
        (n_val, F), features.
    y_val
        (n_val,), cell types.
    """
    best, best_score = None, -1.0
    for candidate in candidates:
        predicted = candidate.classes_[candidate.predict_proba(x_val).argmax(axis=1)]
        score = f1_score(y_val, predicted, labels=np.unique(y_val), average="macro", zero_division=0)
        if score > best_score:
            best, best_score = candidate, score
    logger.info("chose %s: macro F1 %.3f on %d validation cells", best, best_score, len(y_val))
    return best
