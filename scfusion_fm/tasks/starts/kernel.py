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
) -> None:
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

    Notes
    -----
    With fewer landmarks than cells: regularised least squares over the functions of the landmarks (Nystrom; Rudi,
    Camoriano and Rosasco 2015), which is kernel ridge regression where all cells are landmarks. The penalty does not
    grow with the number of cells.
    """
    readout, train, val = model.kernel_readout, choose_cells(partition.train, seed), partition.val
    start_coordinates(model, prepare_parts(collator, train), seed)
    found = {"train": _find_coordinates(model, collator, train), "val": _find_coordinates(model, collator, val)}
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[: len(readout.landmarks)])
    readout.landmarks.copy_(found["train"][chosen])
    values, observed = targets.values[train].astype(np.float64), targets.observed[train]
    best, best_score = None, -np.inf
    for width in READOUT_WIDTHS:
        readout.inverse_width.fill_(width / (2 * SPREAD**2))
        kernels = {part: readout.kernel(x).double().numpy() for part, x in found.items()}
        between = readout.kernel(readout.landmarks).double().numpy()
        for penalty in READOUT_PENALTIES:
            weight, bias = _solve(kernels["train"], between, values, observed, penalty)
            predicted = kernels["val"] @ weight + bias
            summary = protein_scores(targets.values[val], predicted, targets.observed[val])[1]
            score = np.nan_to_num(summary["pearson_per_protein"], nan=-1.0)
            if score > best_score:
                best, best_score = (float(readout.inverse_width), weight, bias), score
    readout.inverse_width.fill_(best[0])
    readout.weight.zero_()
    readout.weight[:, targets.panel] = torch.from_numpy(best[1]).to(readout.weight)
    readout.bias[targets.panel] = torch.from_numpy(best[2]).to(readout.bias)


def choose_share(
    model: PreTrainedModel,
    panel: NDArray[np.int64],
    predict: Callable[[], NDArray[np.float32]],
    score: Callable[[NDArray], float],
) -> None:
    """
    Let the kernel regression have the share in the targets that scores best, in place; the smallest of equals.

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
    model.kernel_readout.share[panel] = float(SHARES[int(np.argmax(scores))])


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
