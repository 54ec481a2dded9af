"""Small networks for the baselines: how they are trained, and when training stops."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from sklearn.neural_network import MLPClassifier


@dataclass(frozen=True)
class MlpSettings:
    """How small networks are trained.

    Attributes
    ----------
    hidden_sizes
        Widths of the hidden layers.
    alphas
        L2 penalties to choose from on the validation cells.
    n_members
        Networks with different seeds whose predictions are averaged.
    batch_size
        Cells per step.
    learning_rate
        Step size of Adam.
    max_epochs
        Most passes over the training cells.
    patience
        Passes without progress on the validation cells after which training stops.
    """

    hidden_sizes: tuple[int, ...] = (128,)
    alphas: tuple[float, ...] = (0.01, 1.0)
    n_members: int = 3
    batch_size: int = 64
    learning_rate: float = 1e-3
    max_epochs: int = 200
    patience: int = 10

    def to_sklearn(self, n_train: int) -> dict:
        """Return the arguments of scikit-learn's networks.

        Parameters
        ----------
        n_train
            Number of training cells.
        """
        return {
            "hidden_layer_sizes": self.hidden_sizes,
            "batch_size": min(self.batch_size, n_train),
            "learning_rate_init": self.learning_rate,
        }


def train_until_worse(
    network: MLPClassifier, step: Callable[[], None], loss: Callable[[], float], settings: MlpSettings
) -> MLPClassifier:
    """Train a network pass by pass and give it the weights of its best pass.

    Parameters
    ----------
    network
        The network that `step` trains.
    step
        Trains for one pass over the training cells.
    loss
        Loss on the validation cells, lower is better.
    settings
        Most passes and patience.

    Notes
    -----
    scikit-learn's own early stopping would set training cells aside at random instead of using the validation cells.
    """
    best, best_loss, waited = None, np.inf, 0
    for _ in range(settings.max_epochs):
        step()
        now = loss()
        waited += 1
        if now < best_loss:
            best, best_loss, waited = deepcopy((network.coefs_, network.intercepts_)), now, 0
        if waited >= settings.patience:
            break
    if best is not None:
        network.coefs_, network.intercepts_ = best
    return network
