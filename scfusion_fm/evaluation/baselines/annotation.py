"""Baselines of cell type annotation that give probabilities and say which cells they were fitted on.

Shapes: n cells, F features, K cell types of the training cells.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score
from sklearn.neural_network import MLPClassifier

from scfusion_fm.evaluation.baselines.classifiers import build_knn_candidates, build_logistic_candidates
from scfusion_fm.evaluation.baselines.features import Features, build_inputs, check_length, check_split
from scfusion_fm.evaluation.baselines.networks import MlpSettings, train_until_worse

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
    split
        (n,), "train", "val", "test", or "" where the cell is not used.
    seed
        Seed of principal components and networks.
    mlp
        How the networks are trained.
    """

    features: Features
    labels: NDArray[np.str_]
    split: NDArray[np.str_]
    seed: int = 0
    mlp: MlpSettings = field(default_factory=MlpSettings)


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
    chosen
        The setting that the validation cells chose.
    fitted_on
        Rows that each fitted object was fitted on, by a name such as "PCA + kNN (rna)".
    tuned_on
        Rows on which settings were chosen.
    """

    classes: NDArray[np.str_]
    test: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    val: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    chosen: dict[tuple[str, str], str] = field(default_factory=dict)
    fitted_on: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    tuned_on: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def labels(self, method: str, inputs: str) -> NDArray[np.str_]:
        """Return the most probable types of the test cells.

        Parameters
        ----------
        method
            Name of the baseline.
        inputs
            "rna", "adt" or "rna+adt".
        """
        return self.classes[self.test[method, inputs].argmax(axis=1)]


class MlpEnsemble:
    """Small networks that differ in their seed; their probabilities are averaged.

    Attributes
    ----------
    classes_
        (K,), cell types.
    members
        The fitted networks.
    """

    def __init__(self, settings: MlpSettings, alpha: float, balanced: bool, seed: int) -> None:
        self.settings, self.alpha, self.balanced, self.seed = settings, alpha, balanced, seed
        self.classes_: NDArray[np.str_] = np.empty(0, str)
        self.members: list[MLPClassifier] = []

    def __repr__(self) -> str:
        return f"{len(self.members)} networks, alpha={self.alpha:g}, balanced={self.balanced}"

    def fit(self, x: NDArray, y: NDArray, x_val: NDArray, y_val: NDArray) -> "MlpEnsemble":
        """Train every network until the validation cells' log loss stops falling, and keep its best state.

        Parameters
        ----------
        x
            (n_train, F), features.
        y
            (n_train,), cell types.
        x_val
            (n_val, F), features.
        y_val
            (n_val,), cell types; those that training lacks do not count.
        """
        self.classes_, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
        shares = 1 / counts[codes] / len(counts)
        known = np.isin(y_val, self.classes_)
        targets = np.searchsorted(self.classes_, y_val[known])
        for member in range(self.settings.n_members):
            rng = np.random.default_rng([self.seed, member])
            network = MLPClassifier(
                **self.settings.to_sklearn(len(x)), alpha=self.alpha, random_state=self.seed + member
            )

            def step(network=network, rng=rng) -> None:
                rows = rng.choice(len(x), len(x), p=shares) if self.balanced else slice(None)
                network.partial_fit(x[rows], y[rows], classes=self.classes_)

            def loss(network=network) -> float:
                if not len(targets):
                    return 0.0
                probability = network.predict_proba(x_val[known])[np.arange(len(targets)), targets]
                return float(-np.log(np.maximum(probability, 1e-9)).mean())

            self.members.append(train_until_worse(network, step, loss, self.settings))
        return self

    def predict_proba(self, x: NDArray) -> NDArray[np.float64]:
        """Average the networks' probabilities.

        Parameters
        ----------
        x
            (n, F), features.
        """
        return np.mean([network.predict_proba(x) for network in self.members], axis=0)


Fit = Callable[[NDArray, NDArray, NDArray, NDArray, AnnotationTask], Iterable]


def fit_majority(x: NDArray, y: NDArray, x_val: NDArray, y_val: NDArray, task: AnnotationTask) -> Iterable:
    """Yield the classifier that always gives the training cells' shares."""
    yield DummyClassifier(strategy="prior").fit(x, y)


def fit_logistic(x: NDArray, y: NDArray, x_val: NDArray, y_val: NDArray, task: AnnotationTask) -> Iterable:
    """Yield logistic regressions, from the strongest penalty to the weakest."""
    yield from (candidate.fit(x, y) for candidate in build_logistic_candidates())


def fit_knn(x: NDArray, y: NDArray, x_val: NDArray, y_val: NDArray, task: AnnotationTask) -> Iterable:
    """Yield nearest-neighbour classifiers, from few neighbours to many."""
    yield from (candidate.fit(x, y) for candidate in build_knn_candidates(len(x)))


def fit_mlp(x: NDArray, y: NDArray, x_val: NDArray, y_val: NDArray, task: AnnotationTask) -> Iterable:
    """Yield ensembles of networks on features of variance 1 in all, scaled up so that a network can read them."""
    scale = np.sqrt(x.shape[1])
    for alpha in sorted(task.mlp.alphas, reverse=True):
        for balanced in (False, True):
            ensemble = MlpEnsemble(task.mlp, alpha, balanced, task.seed).fit(x * scale, y, x_val * scale, y_val)
            yield Scaled(ensemble, scale)


@dataclass
class Scaled:
    """A classifier that reads its features times a number.

    Attributes
    ----------
    classifier
        The fitted classifier.
    scale
        The number.
    """

    classifier: MlpEnsemble
    scale: float

    def __repr__(self) -> str:
        return repr(self.classifier)

    @property
    def classes_(self) -> NDArray[np.str_]:
        """(K,), cell types."""
        return self.classifier.classes_

    def predict_proba(self, x: NDArray) -> NDArray[np.float64]:
        """Return the classifier's probabilities.

        Parameters
        ----------
        x
            (n, F), features.
        """
        return self.classifier.predict_proba(x * self.scale)


ANNOTATION_METHODS: dict[str, Fit] = {
    "majority": fit_majority,
    "PCA + logistic regression": fit_logistic,
    "PCA + kNN": fit_knn,
    "PCA + MLP": fit_mlp,
}


def fit_annotation(task: AnnotationTask, methods: Sequence[str] = tuple(ANNOTATION_METHODS)) -> Annotation:
    """Give the test and validation cells' probabilities by baselines, for every available input.

    Parameters
    ----------
    task
        Cells, labels and split.
    methods
        Names out of `ANNOTATION_METHODS`.

    Raises
    ------
    ValueError
        If a method is unknown, or the task does not hold what it needs: cells of every role, one row per cell, finite
        values, two cell types in the training cells.

    Notes
    -----
    Features and classifiers are fitted on the training cells; the setting with the best macro F1 on the validation
    cells is kept, the simplest of equals, and not refitted. Networks also stop by the validation cells.
    """
    split, labels = np.asarray(task.split).astype(str), np.asarray(task.labels).astype(str)
    check_methods(methods, ANNOTATION_METHODS)
    check_length("labels", labels, len(split))
    check_split(split[split != ""], int((split != "").sum()))
    fit, select, test = (np.flatnonzero(split == role) for role in ("train", "val", "test"))
    classes = np.unique(labels[fit])
    if len(classes) < 2:
        raise ValueError(
            f"`labels` must hold at least two cell types in the training cells, got {classes.tolist()}; "
            "pass more cells or another split."
        )
    result = Annotation(classes)
    for inputs, x in build_inputs(task.features, split, task.seed).items():
        result.fitted_on[f"features ({inputs})"] = fit
        for method in methods:
            candidates = ANNOTATION_METHODS[method](x[fit], labels[fit], x[select], labels[select], task)
            best = choose_classifier(candidates, x[select], labels[select])
            result.test[method, inputs] = best.predict_proba(x[test])
            result.val[method, inputs] = best.predict_proba(x[select])
            result.chosen[method, inputs] = repr(best)
            result.fitted_on[f"{method} ({inputs})"] = fit
            result.tuned_on[f"{method} ({inputs})"] = select
    return result


def choose_classifier(candidates: Iterable, x_val: NDArray, y_val: NDArray):
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


def check_methods(methods: Sequence[str], known: Iterable[str]) -> None:
    """Raise unless all methods are known.

    Parameters
    ----------
    methods
        Names asked for.
    known
        Names there are.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    unknown = sorted(set(methods) - set(known))
    if unknown:
        raise ValueError(f"`methods` must be among {sorted(known)}, got {unknown}; correct the names.")
