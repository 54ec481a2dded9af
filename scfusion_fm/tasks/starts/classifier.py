"""Let the head of a model start as what a linear or kernel method makes of its training cells.

Fine-tuning from there changes the model less than fine-tuning from a random head (Kumar et al. 2022), and few labels
suffice. Letters: n cells, F features that a head reads, K coordinates.
"""

import threading
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight
from transformers import PreTrainedModel

from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, run_batches, show_modalities
from scfusion_fm.training.components import prepare_parts, start_coordinates

START_PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LOG_SHARPNESS = (-3.0, 5.0)
PROTEIN_SCALES = (0.5, 1.0, 2.0)
MOST_CELLS = 10_000
POOLED_SPREAD = 5.0
ABSENT = 50.0


@dataclass(frozen=True)
class ClassifierStart:
    """
    What validation cells chose for the regression that a classifier starts as.

    Attributes
    ----------
    penalty
        Inverse strength of the penalty on weights, `C` of scikit-learn.
    protein_scale
        How much the coordinates of proteins count.
    sharpness
        What logits are multiplied by.
    """

    penalty: float
    protein_scale: float
    sharpness: float


def choose_cells(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Choose some rows, where there are more than a start needs."""
    if len(rows) <= MOST_CELLS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, MOST_CELLS, replace=False))


def start_classifier(
    model: PreTrainedModel,
    collator: CellCollator,
    codes: NDArray[np.int64],
    partition: Partition,
    inputs: dict[str, tuple[str, ...]],
    balanced: bool,
    seed: int,
    taken: ClassifierStart | None = None,
) -> ClassifierStart | None:
    """
    Let the classifier of a model start as a logistic regression on what it reads, in place.

    Parameters
    ----------
    model
        A classifier of cell types, of which the rest is as it will be at the start of training.
    collator
        How to prepare cells, whole and without random choices.
    codes
        Class index of every cell.
    partition
        Training cells to fit it, and validation cells to choose the penalty and how much proteins count, by the
        likelihood at the best temperature.
    inputs
        Modalities of each input; the one classifier is fitted for all of them.
    balanced
        Whether all classes weigh the same.
    seed
        Of the principal components, and of the choice among very many cells.
    taken
        What another start chose, to take over where there are no validation cells.

    Returns
    -------
    What was chosen; None where there is nothing to tell apart or to choose by, and the classifier stays as it is.

    Notes
    -----
    A class without training cells starts as far less likely than all others. Of few cells with many features, strong
    penalties are right most often, and far too unsure: without a temperature, the likelihood would choose weak ones
    (docs/experiments.md). The classifier gets the temperature, too.
    """
    train, val = choose_cells(partition.train, seed), partition.val
    if model.config.num_coordinates:
        start_coordinates(model, prepare_parts(collator, train), seed)
    if len(np.unique(codes[train])) < 2 or (taken is None and not len(val)):
        return None
    x = np.concatenate([_read_features(model, collator, train, shown) for shown in inputs.values()])
    means, truth = x.mean(0), np.tile(codes[train], len(inputs))
    weights = "balanced" if balanced else None

    def fit(protein_scale: float, penalty: float) -> tuple[LogisticRegression, NDArray[np.float64]]:
        scale = _scale_features(model, x, protein_scale)
        fitted = LogisticRegression(C=penalty, class_weight=weights, max_iter=2000)
        return fitted.fit((x - means) * scale, truth), scale

    if taken is not None:
        _copy_regression(model, *fit(taken.protein_scale, taken.penalty), taken.sharpness, means)
        return taken
    x_val = np.concatenate([_read_features(model, collator, val, shown) for shown in inputs.values()])
    scales = PROTEIN_SCALES if x[:, x.shape[1] - model.config.num_coordinates :].any() else (1.0,)
    best, best_loss = None, np.inf
    for protein_scale, penalty in product(scales, START_PENALTIES):
        fitted, scale = fit(protein_scale, penalty)
        logits = _complete_logits(fitted.decision_function((x_val - means) * scale))
        loss, sharpness = _measure_loss(logits, fitted.classes_, np.tile(codes[val], len(inputs)), weights)
        if loss < best_loss:
            best, best_loss = (fitted, scale, ClassifierStart(penalty, protein_scale, sharpness)), loss
    fitted, scale, chosen = best
    _copy_regression(model, fitted, scale, chosen.sharpness, means)
    return chosen


def _scale_features(model: PreTrainedModel, x: NDArray[np.float64], protein_scale: float) -> NDArray[np.float64]:
    """Give the scales (F,) of what the classifier reads, of which x (n, F) are examples."""
    number = model.config.num_coordinates
    pooled = slice(0, x.shape[1] - 2 * number)
    scale = np.ones(x.shape[1])
    scale[pooled] = POOLED_SPREAD / max(np.sqrt(x[:, pooled].var(0).sum()), 1e-12)
    scale[x.shape[1] - number :] = protein_scale
    return scale


def _complete_logits(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give logits of all classes; of two classes scikit-learn gives those of the second against the first, (n,)."""
    return found if found.ndim == 2 else np.stack((-found, found), axis=1) / 2


def _measure_loss(
    logits: NDArray[np.float64], classes: NDArray[np.int64], codes: NDArray[np.int64], weights: str | None
) -> tuple[float, float]:
    """
    Give the least mean negative log-likelihood of the known classes over temperatures, and what logits are times there.

    One cell more counts as of every class alike: of few cells that are all right, none makes sure.
    """
    known = np.isin(codes, classes)
    if not known.any():
        return np.finfo(float).max, 1.0
    weight, own = compute_sample_weight(weights, codes[known]), np.searchsorted(classes, codes[known])
    share = 1 / (len(own) + 1)

    def loss(log_sharpness: float) -> float:
        surprise = -log_softmax(np.exp(log_sharpness) * logits[known], axis=1)
        of_cells = np.average(surprise[np.arange(len(own)), own], weights=weight)
        return float((1 - share) * of_cells + share * surprise.mean())

    found = minimize_scalar(loss, bounds=LOG_SHARPNESS, method="bounded")
    return float(found.fun), float(np.exp(found.x))


def _read_features(
    model: PreTrainedModel, collator: CellCollator, rows: NDArray[np.int64], shown: tuple[str, ...]
) -> NDArray[np.float64]:
    """Give what the classifier reads of some cells, of which the given modalities are shown, (n, F)."""
    own = threading.local()  # batches are calculated side by side, and one must not get what another one's head reads
    hook = model.classifier.register_forward_pre_hook(lambda _, given: setattr(own, "read", given[0]))

    def forward(**inputs: Any) -> torch.Tensor:
        model(**inputs)
        return own.read.float().cpu()

    model.eval()
    try:
        batches = run_batches(forward, show_modalities(collator, shown), rows, model.device)
        return torch.cat([read for _, read in batches]).double().numpy()
    finally:
        hook.remove()


def _copy_regression(
    model: PreTrainedModel,
    fitted: LogisticRegression,
    scale: NDArray[np.float64],
    sharpness: float,
    means: NDArray[np.float64],
) -> None:
    """Write a regression on scaled features into the classifier, which reads them as they are."""
    weight, bias = fitted.coef_ * sharpness, fitted.intercept_ * sharpness
    if len(fitted.classes_) == 2:  # one row, for the second class against the first
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    weight = weight * scale
    bias = bias - weight @ means
    classifier, places = model.classifier, torch.from_numpy(fitted.classes_)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.fill_(float((weight @ means + bias).min()) - ABSENT)
        classifier.weight[places] = torch.from_numpy(weight).to(classifier.weight)
        classifier.bias[places] = torch.from_numpy(bias).to(classifier.bias)
