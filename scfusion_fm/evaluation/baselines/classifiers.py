"""Classifiers of cell types, each in the settings that validation cells choose from.

Shapes: n cells, F features, K cell types of the training cells.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from scfusion_fm.evaluation.baselines.networks import MlpSettings, train_until_worse

LOGISTIC_PENALTIES = tuple(10.0**exponent for exponent in range(-1, 5))
NEIGHBOUR_COUNTS = (3, 5, 10, 15, 30, 50)


@dataclass
class KnownLabels:
    """What a classifier may see: training and validation cells, never test cells.

    Attributes
    ----------
    x
        (n_train, F), features.
    labels
        (n_train,), cell types.
    x_val
        (n_val, F), features.
    labels_val
        (n_val,), cell types.
    seed
        Seed of networks.
    mlp
        How networks are trained.
    """

    x: NDArray[np.float64]
    labels: NDArray[np.str_]
    x_val: NDArray[np.float64]
    labels_val: NDArray[np.str_]
    seed: int = 0
    mlp: MlpSettings = field(default_factory=MlpSettings)


def fit_majority(cells: KnownLabels) -> Iterable[DummyClassifier]:
    """Yield the classifier that always gives the training cells' shares."""
    yield DummyClassifier(strategy="prior").fit(cells.x, cells.labels)


def fit_logistic(cells: KnownLabels) -> Iterable[LogisticRegression]:
    """Yield logistic regressions that weigh all classes alike, from the strongest penalty to the weakest."""
    for inverse in LOGISTIC_PENALTIES:
        yield LogisticRegression(C=inverse, class_weight="balanced", max_iter=5000).fit(cells.x, cells.labels)


def fit_neighbour_votes(cells: KnownLabels) -> Iterable[KNeighborsClassifier]:
    """Yield nearest-neighbour classifiers that the number of training cells allows, from few neighbours to many."""
    counts = [count for count in NEIGHBOUR_COUNTS if count <= len(cells.x)] or [len(cells.x)]
    yield from (KNeighborsClassifier(n_neighbors=count).fit(cells.x, cells.labels) for count in counts)


def fit_ensembles(cells: KnownLabels) -> Iterable["Scaled"]:
    """Yield ensembles of networks on features of variance 1 in all, scaled up so that a network can read them."""
    scale = np.sqrt(cells.x.shape[1])
    x, x_val = cells.x * scale, cells.x_val * scale
    for alpha in sorted(cells.mlp.alphas, reverse=True):
        for balanced in (False, True):
            ensemble = MlpEnsemble(cells.mlp, alpha, balanced, cells.seed)
            yield Scaled(ensemble.fit(x, cells.labels, x_val, cells.labels_val), scale)


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
