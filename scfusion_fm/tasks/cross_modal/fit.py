"""A predictor of one modality from the other, fine-tuned on paired cells.

Letters: n cells, T targets (measured proteins or genes of the panel).
"""

import dataclasses
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCrossModalPrediction
from scfusion_fm.tasks.cross_modal.cells import SOURCE_OF, PairedCells
from scfusion_fm.tasks.dropout import InputDropout
from scfusion_fm.tasks.epochs import Objective
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.starts.kernel import KernelChoice, KernelTargets, choose_share, fit_kernel, size_kernel
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights

LEAST_VARIANCE = 0.05


class TargetCollator(CellCollator):
    """
    Prepare paired cells whose targets are learned.

    Parameters
    ----------
    data
        All cells.
    offsets
        (n, T), what is taken from the targets of each cell.
    """

    def __init__(self, data: PairedCells, offsets: NDArray[np.float32]):
        super().__init__(data.aligned, data.extractor)
        self.panel, self.offsets = data.panel, offsets

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Give the arguments of the model."""
        batch = super().__call__(rows)
        offsets = self.offsets[np.asarray(rows)]
        if offsets.any():
            batch["adt_values"][:, self.panel] -= torch.from_numpy(offsets)
        return batch


@dataclass(frozen=True)
class FittedCrossModal:
    """
    A fitted predictor of the panel, at the level that batches share.

    Attributes
    ----------
    model
        The model.
    data
        The cells that it was made for.
    num_trained
        How many parameters were trained.
    epochs, kernel
        What validation cells chose; without a kernel regression None.
    """

    model: PreTrainedModel
    data: PairedCells
    num_trained: int
    epochs: float = 0.0
    kernel: KernelChoice | None = None

    @property
    def extractor(self) -> ScFusionTTTFeatureExtractor:
        """Vocabulary and normaliser."""
        return self.data.extractor

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predict the targets of some cells from their other modality alone, (len(rows), T)."""
        collator = CellCollator(self.data.aligned, self.data.extractor)
        shown = (SOURCE_OF[self.data.target],)
        return _columns(self.data, predict_rows(self.model, collator, rows, modalities=shown))


def fit_cross_modal(
    weights: Weights,
    data: PairedCells,
    partition: Partition,
    settings: FitSettings,
    tested: FittedCrossModal | None = None,
) -> FittedCrossModal:
    """
    Fine-tune the pretraining pass with the target hidden; the epoch with the best validation correlation is kept.

    Proteins count by the inverse of their variance, as correlations do, and are mixed with a kernel regression in the
    share that is best on the validation cells. Where batches have levels of their own, what is learned is the level
    they share.

    Parameters
    ----------
    weights
        Where the weights come from.
    data
        All cells.
    partition
        Which cells train, and which choose.
    settings
        How to train.
    tested
        A fit whose choices are taken over where no cells choose.
    """
    settings.use_threads()
    train, val = partition.train, partition.val
    levelled, offsets = data.level(train)
    model = weights.build(
        ScFusionTTTForCrossModalPrediction,
        settings.seed,
        target_modality=data.target,
        predicted_features=data.names,
        **size_kernel(settings.optim, data.target, len(train)),
    )
    if data.target == "adt":
        model.weigh_targets(_weigh_targets(levelled, train))
    collator = TargetCollator(data, offsets)

    def score(logits: NDArray[np.float32]) -> dict[str, float]:
        guess = _columns(data, logits)
        return {"score": mean_correlation(levelled, val, guess), **levelled.score(val, guess)[1]}

    dropout = InputDropout(settings.seed, 0.0, settings.optim.token_dropout, spared=f"{data.target}_observed")
    objective, epochs = Objective(score, None, dropout), None if tested is None else tested.epochs
    trained = train_best(model, partition, collator, objective, weights.suit(settings), epochs)
    fitted = FittedCrossModal(model, data, *trained)
    if not model.config.num_landmarks:
        return fitted
    targets = KernelTargets(levelled.measured, levelled.observed, levelled.panel)
    taken = None if tested is None else tested.kernel
    found = fit_kernel(model, collator, targets, partition, settings.seed, taken)
    if taken is not None:
        model.kernel_readout.share[data.panel] = taken.share
        return dataclasses.replace(fitted, kernel=taken)
    share = choose_share(
        model, data.panel, lambda: fitted.predict(val), lambda guess: mean_correlation(levelled, val, guess)
    )
    return dataclasses.replace(fitted, kernel=KernelChoice(*found, share))


def mean_correlation(data: PairedCells, rows: NDArray[np.int64], predicted: NDArray[np.float32]) -> float:
    """Give the mean correlation per target over some cells; -1 where there is none."""
    return float(np.nan_to_num(data.score(rows, predicted)[1]["pearson_per_protein"], nan=-1.0))


def _weigh_targets(data: PairedCells, rows: NDArray[np.int64]) -> torch.Tensor:
    """Weigh each protein by the inverse of its variance over some cells, with a mean weight of 1 over the panel."""
    values = np.where(data.observed[rows], data.measured[rows], np.nan)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a protein that no training cell measured
        variance = np.nanvar(values, axis=0)
    usual = np.nanmedian(variance)
    inverse = 1 / np.maximum(np.nan_to_num(variance, nan=usual), LEAST_VARIANCE * usual)
    weight = torch.ones(data.extractor.num_proteins)
    weight[data.panel] = torch.from_numpy(inverse / inverse.mean()).float()
    return weight


def _columns(data: PairedCells, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Select the panel from predictions over the whole vocabulary."""
    return (logits if data.target == "adt" else data.extractor.merge_patches(logits))[:, data.panel]
