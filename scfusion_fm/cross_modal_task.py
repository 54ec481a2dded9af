"""Predicting one modality from the other: paired cells, a model fitted on some, baselines fitted on the same ones.

Letters: n cells, T targets (measured proteins or genes of the panel).
"""

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scfusion_fm.annotation_task import join_rows
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.evaluation.baselines import predict_protein_baselines
from scfusion_fm.evaluation.metrics import protein_scores
from scfusion_fm.evaluation.prediction_baselines import PredictionTask
from scfusion_fm.finetuning import CellCollator, FitSettings, Source, predict_rows
from scfusion_fm.kernel_head import KernelTargets, choose_share, fit_kernel, size_kernel
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCrossModalPrediction
from scfusion_fm.trainer import train_best

SOURCE_OF = {"adt": "rna", "rna": "adt"}
LEAST_VARIANCE = 0.05


@dataclass
class PairedCells:
    """
    Cells with RNA and protein, and what is predicted of them.

    Attributes
    ----------
    aligned
        The cells.
    extractor
        Vocabulary and normaliser.
    target
        Modality that is predicted, `adt` or `rna`.
    panel
        (T,), places of the targets in the vocabulary; all that were measured when None is given.
    batches
        (n,), groups of cells in which proteins have levels of their own, such as a staining; None where they have not.
    paired
        Rows with both modalities.
    names
        (T,), names of the targets.
    measured, observed
        (n, T), normalised values, and where they were measured.
    """

    aligned: AlignedCells
    extractor: ScFusionTTTFeatureExtractor
    target: str = "adt"
    panel: NDArray[np.int64] | None = None
    batches: NDArray[np.object_] | None = None

    def __post_init__(self):
        aligned, extractor = self.aligned, self.extractor
        self.paired = np.flatnonzero(aligned.rna_present & aligned.adt_present)
        if len(self.paired) == 0:
            raise ValueError("`data` must hold cells with RNA and protein, got none; choose a paired file.")
        missing = 0 if self.batches is None else int(pd.isna(self.batches[self.paired]).sum())
        if missing:
            raise ValueError(f"`background_key` must name the group of every paired cell, got {missing} without one.")
        if self.panel is None:
            self.panel = np.flatnonzero(aligned.adt_observed if self.target == "adt" else aligned.rna_observed)
        every = np.arange(len(aligned.obs))
        names = extractor.protein_names if self.target == "adt" else extractor.gene_symbols
        self.names = [names[i] for i in self.panel]
        if self.target == "adt":
            self.observed = aligned.adt_observed_in(every)
            self.measured = extractor.normalise_adt(aligned.adt, self.observed)[:, self.panel]
            self.observed = self.observed[:, self.panel]
        else:
            self.observed = aligned.rna_observed_in(every)[:, self.panel]
            counts = aligned.rna[:, self.panel].toarray()
            self.measured = extractor.normalise_rna(counts, aligned.rna_total_counts)

    def level(self, rows: NDArray[np.int64]) -> tuple["PairedCells", NDArray[np.float32]]:
        """
        Bring the targets of all batches to one level, the mean over batches of their means over some cells.

        Returns
        -------
        The cells with such values, and what was taken from each, (n, T): 0 in batches that none of the rows is of, and
        without batches.

        Notes
        -----
        How much of an antibody sticks to any cell differs between laboratories by more than between cells, and RNA that
        differs, too, would be learned as the reason. Differences in the composition of batches are lost.
        """
        offsets = np.zeros(self.measured.shape, np.float32)
        if self.batches is None:
            return self, offsets
        names, codes = np.unique(self.batches.astype(str), return_inverse=True)
        means = np.full((len(names), len(self.panel)), np.nan)
        for code in np.unique(codes[rows]):
            own = rows[codes[rows] == code]
            number = self.observed[own].sum(0)
            total = np.where(self.observed[own], self.measured[own], 0.0).sum(0, dtype=np.float64)
            means[code] = np.divide(total, number, out=np.full(len(self.panel), np.nan), where=number > 0)
        known = np.isfinite(means)
        shared = np.where(known, means, 0.0).sum(0) / np.maximum(known.sum(0), 1)
        offsets = np.where(known, means - shared, 0.0)[codes].astype(np.float32)
        levelled = copy.copy(self)
        levelled.measured = self.measured - offsets
        return levelled, offsets

    def score(self, rows: NDArray[np.int64], predicted: NDArray) -> tuple[pd.DataFrame, dict[str, float]]:
        """Score predictions for some rows, (len(rows), T): a table per target, and a summary."""
        return protein_scores(self.measured[rows], predicted, self.observed[rows])


class TargetCollator(CellCollator):
    """
    Prepare paired cells whose targets are learned.

    Parameters
    ----------
    data
        All cells.
    offsets
        (n, T), what is taken from the targets of each cell.
    seed
        Seed of the random choices.
    token_dropout
        Largest share of its tokens that a cell loses, in [0, 1); targets lose none.
    """

    def __init__(self, data: PairedCells, offsets: NDArray[np.float32], seed: int = 0, token_dropout: float = 0.0):
        super().__init__(data.aligned, data.extractor, seed=seed, target=data.target, token_dropout=token_dropout)
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
    """A fitted predictor of the panel, at the level that batches share, with the number of trained parameters."""

    model: PreTrainedModel
    data: PairedCells
    num_trained: int

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predict the targets of some cells from their other modality alone, (len(rows), T)."""
        collator = CellCollator(self.data.aligned, self.data.extractor)
        shown = (SOURCE_OF[self.data.target],)
        return _columns(self.data, predict_rows(self.model, collator, rows, modalities=shown))


def fit_cross_modal(
    source: Source, data: PairedCells, rows: dict[str, NDArray[np.int64]], settings: FitSettings
) -> FittedCrossModal:
    """
    Fine-tune the pretraining pass with the target hidden; the epoch with the best validation correlation is kept.

    Proteins count by the inverse of their variance, as correlations do, and are mixed with a kernel regression in the
    share that is best on the validation cells. Where batches have levels of their own, what is learned is the level
    they share.

    Parameters
    ----------
    source
        Where the weights come from.
    data
        All cells.
    rows
        Rows of `train` and `val`.
    settings
        How to train.
    """
    levelled, offsets = data.level(rows["train"])
    model = source.build(
        ScFusionTTTForCrossModalPrediction,
        settings.seed,
        target_modality=data.target,
        predicted_features=data.names,
        **size_kernel(settings.optim, data.target, len(rows["train"])),
    )
    if data.target == "adt":
        model.target_weight = _weigh_targets(levelled, rows["train"])
    collators = {
        name: TargetCollator(data, offsets, settings.seed, token_dropout)
        for name, token_dropout in (("train", settings.optim.token_dropout), ("val", 0.0))
    }

    def score(prediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        guess = _columns(data, logits)
        return {"score": mean_correlation(levelled, rows["val"], guess), **levelled.score(rows["val"], guess)[1]}

    num_trained = train_best(model, rows, collators, score, source.suit(settings))
    fitted = FittedCrossModal(model, data, num_trained)
    if model.config.num_landmarks:
        targets = KernelTargets(levelled.measured, levelled.observed, levelled.panel)
        fit_kernel(model, collators["val"], targets, rows, settings.seed)
        val = rows["val"]
        choose_share(
            model, data.panel, lambda: fitted.predict(val), lambda guess: mean_correlation(levelled, val, guess)
        )
    return fitted


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


def choose_genes(
    aligned: AlignedCells, extractor: ScFusionTTTFeatureExtractor, rows: NDArray[np.int64], number: int
) -> NDArray[np.int64]:
    """Give the places of the genes that vary most among some cells, in the order of the vocabulary."""
    genes = np.flatnonzero(aligned.rna_observed)
    values = extractor.normalise_rna(aligned.rna[rows][:, genes].toarray(), aligned.rna_total_counts[rows])
    return np.sort(genes[np.argsort(-values.var(0), kind="stable")[:number]])


def build_baseline_task(data: PairedCells, rows: dict[str, NDArray[np.int64]], seed: int = 0) -> PredictionTask:
    """Give the baselines the cells and features that the model gets."""
    used, split = join_rows(rows)
    aligned, extractor = data.aligned, data.extractor
    if data.target == "adt":
        shown = np.flatnonzero(aligned.rna_observed)
        x = extractor.normalise_rna(aligned.rna[used][:, shown].toarray(), aligned.rna_total_counts[used])
        own, wanted = extractor.gene_ids, extractor.protein_gene_ids
    else:
        shown = np.flatnonzero(aligned.adt_observed)
        observed = aligned.adt_observed_in(used)
        x = np.where(observed, extractor.normalise_adt(aligned.adt[used], observed), np.nan)[:, shown]
        own, wanted = extractor.protein_gene_ids, extractor.gene_ids
    column = {own[place]: i for i, place in reversed(list(enumerate(shown)))}
    return PredictionTask(
        x=x,
        y=data.measured[used],
        observed=data.observed[used],
        split=split,
        inputs=SOURCE_OF[data.target],
        own_columns=[column.get(wanted[i]) for i in data.panel],
        seed=seed,
    )


def fit_protein_baselines(
    data: PairedCells, rows: dict[str, NDArray[np.int64]], seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Fit the quick baselines that predict proteins; predictions for `test` by method."""
    task = build_baseline_task(data, rows, seed)
    return predict_protein_baselines(task.x, task.y, task.observed, task.own_columns, task.split, seed)
