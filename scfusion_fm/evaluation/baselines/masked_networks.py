"""Small networks for targets that were not measured in every cell: two layers, dropout, stopped by validation cells.

Letters: n cells, B cells of a step, C features, T targets.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkSettings:
    """How small networks are trained.

    Attributes
    ----------
    hidden_sizes
        Widths of the hidden layers.
    dropout
        Share of hidden units that are left out in each step.
    n_members
        Networks with different seeds whose predictions are averaged.
    batch_size
        Cells per step.
    learning_rate
        Step size of Adam.
    weight_decay
        Share of the step size by which weights shrink in each step.
    max_epochs
        Most passes over the training cells.
    patience
        Passes without progress on the validation cells after which training stops.
    """

    hidden_sizes: tuple[int, ...] = (128, 64)
    dropout: float = 0.2
    n_members: int = 3
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    max_epochs: int = 100
    patience: int = 5


def train_network(
    x: NDArray,
    y: NDArray,
    observed: NDArray[np.bool_],
    loss: Callable[[Callable[[NDArray], NDArray]], float],
    settings: NetworkSettings,
    seed: int,
) -> Callable[[NDArray], NDArray]:
    """Train a network on the targets that each cell has, and give its best state as a function of features.

    Parameters
    ----------
    x
        (n, C), features.
    y
        (n, T), targets of variance about 1; not read where not observed.
    observed
        (n, T), where they were.
    loss
        Gives the loss of a predictor on the validation cells, lower is better.
    settings
        Widths, steps and patience.
    seed
        Of weights, order and dropout.

    Notes
    -----
    The loss of a step is the mean squared error over the observed values of its cells.
    """
    inputs = torch.as_tensor(x, dtype=torch.float32)
    mask = torch.as_tensor(observed)
    targets = torch.as_tensor(np.where(observed, y, 0.0), dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(x.shape[1], y.shape[1], settings.hidden_sizes, settings.dropout)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

        def predict(query: NDArray) -> NDArray:
            network.eval()
            with torch.no_grad():
                return network(torch.as_tensor(query, dtype=torch.float32)).double().numpy()

        best, best_loss, waited = deepcopy(network.state_dict()), np.inf, 0
        for _ in range(settings.max_epochs):
            train_epoch(network, optimizer, (inputs, targets, mask), settings.batch_size)
            now = loss(predict)
            waited += 1
            if now < best_loss:
                best, best_loss, waited = deepcopy(network.state_dict()), now, 0
            if waited >= settings.patience:
                break
    network.load_state_dict(best)
    return predict


def build_network(num_inputs: int, num_targets: int, hidden_sizes: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Build layers of rectified units with dropout after each, and a linear layer."""
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [nn.Linear(num_inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        num_inputs = width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_targets))


def train_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, cells: tuple[Tensor, Tensor, Tensor], batch_size: int
) -> None:
    """Pass once over the cells, given as inputs (n, C), targets (n, T) and where they were observed."""
    network.train()
    for rows in torch.randperm(len(cells[0])).split(batch_size):
        inputs, targets, mask = (part[rows] for part in cells)
        error = torch.square(network(inputs) - targets) * mask
        optimizer.zero_grad()
        (error.sum() / mask.sum().clamp(min=1)).backward()
        optimizer.step()
