"""Kernel regression on principal components, as a part of a predictor of proteins.

Letters: n cells, m landmarks, T targets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve
from transformers import PreTrainedModel

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator
from scfusion_fm.tasks.starts.classifier import choose_cells
from scfusion_fm.training.components import SPREAD, prepare_parts, start_coordinates

READOUT_WIDTHS = (0.1, 0.3, 1.0)
READOUT_PENALTIES = (0.03, 0.1, 0.3, 1.0)
SHARES = np.linspace(0.0, 1.0, 11)
JITTER = 1e-6


@dataclass(frozen=True)
class KernelTargets:
    """What is predicted: values (n, T), where they were observed, and the places of the T targets in the vocabulary."""

    values: NDArray[np.float32]
    observed: NDArray[np.bool_]
    panel: NDArray[np.int64]


@dataclass(frozen=True)
class KernelChoice:
    """
    What validation cells chose for a kernel regression.

    Attributes
    ----------
    width
        Of the kernel, as its inverse relative to the spread of the coordinates.
    penalty
        On the weights of landmarks.
    share
        Of the regression in the targets.
    """

    width: float
    penalty: float
    share: float


def size_kernel(optim: FinetuneOptimConfig, target: str, num_train: int) -> dict[str, Any]:
    """Give the settings of a model for a kernel regression on some training cells; none where there is no such part."""
    if target != "adt" or not optim.num_landmarks or not optim.num_coordinates:
        return {}
    return {"num_coordinates": optim.num_coordinates, "num_landmarks": min(optim.num_landmarks, num_train)}


def fit_kernel(
    model: PreTrainedModel,
    collator: CellCollator,
    targets: KernelTargets,
    partition: Partition,
    seed: int,
    taken: KernelChoice | None = None,
) -> tuple[float, float]:
    """
    Fit the kernel regression of a model, in place; width and penalty are those that do best on the validation cells.

    Parameters
    ----------
    model
        Model with `rna_coordinates` and `kernel_readout`.
    collator
        How to prepare cells, whole and without random choices.
    targets
        Of all cells.
    partition
        Which cells train, and which choose.
    seed
        Of components and landmarks.
    taken
        What another regression chose, to take its width and penalty over where there are no validation cells.

    Returns
    -------
    Width and penalty.

    Notes
    -----
    With fewer landmarks than cells: regularised least squares over the functions of the landmarks (Nystrom; Rudi,
    Camoriano and Rosasco 2015), which is kernel ridge regression where all cells are landmarks. The penalty does not
    grow with the number of cells.
    """
    readout, train, val = model.kernel_readout, choose_cells(partition.train, seed), partition.val
    start_coordinates(model, prepare_parts(collator, train), seed)
    x = _find_coordinates(model, collator, train)
    x_val = None if taken is not None else _find_coordinates(model, collator, val)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[: len(readout.landmarks)])
    readout.landmarks.copy_(x[chosen])
    values, observed = targets.values[train].astype(np.float64), targets.observed[train]
    best, best_score = None, -np.inf
    for width in READOUT_WIDTHS if taken is None else (taken.width,):
        readout.inverse_width.fill_(width / (2 * SPREAD**2))
        kernel, between = (readout.kernel(rows).double().numpy() for rows in (x, readout.landmarks))
        kernel_val = None if x_val is None else readout.kernel(x_val).double().numpy()
        for penalty in READOUT_PENALTIES if taken is None else (taken.penalty,):
            weight, bias = _solve(kernel, between, values, observed, penalty)
            score = 0.0 if kernel_val is None else _score(kernel_val @ weight + bias, targets, val)
            if score > best_score:
                best, best_score = (width, penalty, weight, bias), score
    readout.inverse_width.fill_(best[0] / (2 * SPREAD**2))
    readout.weight.zero_()
    readout.weight[:, targets.panel] = torch.from_numpy(best[2]).to(readout.weight)
    readout.bias[targets.panel] = torch.from_numpy(best[3]).to(readout.bias)
    return best[:2]


def choose_share(
    model: PreTrainedModel,
    panel: NDArray[np.int64],
    predict: Callable[[], NDArray[np.float32]],
    score: Callable[[NDArray], float],
) -> float:
    """
    Let the kernel regression have the share in the targets that scores best, in place; give the smallest of equals.

    Parameters
    ----------
    model
        Model with `kernel_readout`.
    panel
        Places of the targets.
    predict
        Gives the predictions of the model for validation cells, as it is then.
    score
        Scores such predictions.
    """
    ends = []
    for share in (0.0, 1.0):
        model.kernel_readout.share[panel] = share
        ends.append(predict())
    scores = [score(ends[0] + share * (ends[1] - ends[0])) for share in SHARES]
    share = float(SHARES[int(np.argmax(scores))])
    model.kernel_readout.share[panel] = share
    return share


def _score(predicted: NDArray[np.float64], targets: KernelTargets, rows: NDArray[np.int64]) -> float:
    """Score predictions for some cells as the whole model is scored; -1 where there is no correlation."""
    summary = protein_scores(targets.values[rows], predicted, targets.observed[rows])[1]
    return float(np.nan_to_num(summary["pearson_per_protein"], nan=-1.0))


def _find_coordinates(model: PreTrainedModel, collator: CellCollator, rows: NDArray[np.int64]) -> torch.Tensor:
    device = model.device
    with torch.inference_mode():
        parts = [
            model.rna_coordinates(batch["rna_values"].to(device), batch["rna_observed"].to(device))
            for batch in prepare_parts(collator, rows)
        ]
    return torch.cat(parts)


def _solve(
    kernel: NDArray[np.float64],
    between: NDArray[np.float64],
    values: NDArray[np.float64],
    observed: NDArray[np.bool_],
    penalty: float,
) -> tuple[NDArray, NDArray]:
    """Solve for weights (m, T) and biases (T,); each target on the cells in which it was observed."""
    weight, bias = np.zeros((kernel.shape[1], values.shape[1])), np.zeros(values.shape[1])
    patterns, group = np.unique(observed.T, axis=0, return_inverse=True)
    for number, seen in enumerate(patterns):
        if not seen.any():
            continue
        columns, k = group.reshape(-1) == number, kernel[seen]
        part = values[np.ix_(seen, columns)]
        bias[columns] = part.mean(0)
        system = k.T @ k + penalty * between + JITTER * np.eye(len(between))
        weight[:, columns] = solve(system, k.T @ (part - bias[columns]), assume_a="pos")
    return weight, bias
