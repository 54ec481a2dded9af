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

from scfusion_fm.data.files.counts import READ_ROWS
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, choose_device, predict_rows
from scfusion_fm.inference.study_units import StudyUnits, measure_units
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCrossModalPrediction
from scfusion_fm.model.studies_scfusion_ttt import centre_over
from scfusion_fm.tasks.cross_modal.cells import SOURCE_OF, PairedCells
from scfusion_fm.tasks.dropout import InputDropout
from scfusion_fm.tasks.epochs import Objective
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.starts.kernel import KernelChoice, KernelTargets, choose_share, fit_kernel, size_kernel
from scfusion_fm.tasks.starts.studies import (
    HIDDEN_SIZES,
    NUM_MEMBERS,
    Studies,
    StudyTargets,
    choose_study_genes,
    fit_study_readout,
)
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights

LEAST_VARIANCE = 0.05


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
    studies
        Of each cell, where the model reads genes in units of the study.
    learned
        (T,) which targets training cells had; only read with such units.
    """

    model: PreTrainedModel
    data: PairedCells
    num_trained: int
    epochs: float = 0.0
    kernel: KernelChoice | None = None
    studies: Studies | None = None
    learned: NDArray[np.bool_] | None = None

    @property
    def extractor(self) -> ScFusionTTTFeatureExtractor:
        """Vocabulary and normaliser."""
        return self.data.extractor

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """
        Predict the targets of some cells from their other modality alone, (len(rows), T).

        Where the model has units of studies, cells are read in those of their own, and predictions are centred over the
        panel of each cell.
        """
        if self.studies is None:
            return self._predict(rows)
        predicted = np.zeros((len(rows), len(self.data.panel)), np.float32)
        names = self.studies.names[rows]
        for name in np.unique(names):
            with self.studies.units[name].hold(self.model):
                predicted[names == name] = self._predict(rows[names == name])
        panel = torch.from_numpy(self.data.observed[rows] & self.learned)
        return centre_over(torch.from_numpy(predicted), panel).numpy()

    def _predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
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
    share that is best on the validation cells. Where batches have units of their own, another readout is fitted, for
    batches that were not trained on: see `fit_study_readout`.

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
    if data.batches is not None:
        return _fit_in_study_units(weights, data, partition, settings, tested)
    train, val = partition.train, partition.val
    model = weights.build(
        ScFusionTTTForCrossModalPrediction,
        settings.seed,
        target_modality=data.target,
        predicted_features=data.names,
        **size_kernel(settings.optim, data.target, len(train)),
    )
    if data.target == "adt":
        model.weigh_targets(_weigh_targets(data, train))
    collator = CellCollator(data.aligned, data.extractor)

    def score(logits: NDArray[np.float32]) -> dict[str, float]:
        guess = _columns(data, logits)
        return {"score": mean_correlation(data, val, guess), **data.score(val, guess)[1]}

    dropout = InputDropout(settings.seed, 0.0, settings.optim.token_dropout, spared=f"{data.target}_observed")
    objective, epochs = Objective(score, None, dropout), None if tested is None else tested.epochs
    trained = train_best(model, partition, collator, objective, weights.suit(settings), epochs)
    fitted = FittedCrossModal(model, data, *trained)
    if not model.config.num_landmarks:
        return fitted
    targets = KernelTargets(data.measured, data.observed, data.panel)
    taken = None if tested is None else tested.kernel
    found = fit_kernel(model, collator, targets, partition, settings.seed, taken)
    if taken is not None:
        model.kernel_readout.share[data.panel] = taken.share
        return dataclasses.replace(fitted, kernel=taken)
    share = choose_share(
        model, data.panel, lambda: fitted.predict(val), lambda guess: mean_correlation(data, val, guess)
    )
    return dataclasses.replace(fitted, kernel=KernelChoice(*found, share))


def _fit_in_study_units(
    weights: Weights,
    data: PairedCells,
    partition: Partition,
    settings: FitSettings,
    tested: FittedCrossModal | None,
) -> FittedCrossModal:
    """Fit a predictor of proteins for batches that it was not trained on."""
    extractor, train, optim = data.extractor, partition.train, settings.optim
    if not optim.num_coordinates or optim.lora_rank or optim.deepspeed:
        raise ValueError(
            "`background_key` needs `optim.num_coordinates`, and neither `optim.lora_rank` nor `optim.deepspeed`, for "
            f"no weights of the pretrained model are trained; got {optim.num_coordinates}, {optim.lora_rank} and "
            f"{optim.deepspeed!r}. Leave them as they are by default."
        )
    levelled, *usual = data.level(train)
    studies = Studies(data.batches.astype(str), measure_studies(data))
    own = _find_own_genes(data)
    genes = choose_study_genes([studies.units[name] for name in np.unique(studies.names[train])], own)
    place = {gene: number for number, gene in enumerate(genes)}
    model = weights.build(
        ScFusionTTTForCrossModalPrediction,
        settings.seed,
        target_modality="adt",
        predicted_features=data.names,
        num_coordinates=max(1, min(optim.num_coordinates, len(genes), len(train) - 1)),
        study_genes=genes.tolist(),
        own_genes=[place.get(gene, -1) for gene in own],
        study_hidden_sizes=list(HIDDEN_SIZES),
        num_study_members=NUM_MEMBERS,
    ).to(choose_device())
    targets = [_widen(data, values) for values in (levelled.measured, levelled.observed, *usual)]
    collator = CellCollator(data.aligned, extractor)
    epochs = None if tested is None else tested.epochs
    found = fit_study_readout(model, collator, StudyTargets(*targets), partition, studies, settings.seed, epochs)
    number = sum(p.numel() for p in model.study_readout.parameters())
    return FittedCrossModal(model, data, number, found, studies=studies, learned=usual[1] > 0)


def _widen(data: PairedCells, values: NDArray) -> NDArray:
    """Put values of the panel where its proteins stand in the vocabulary, with zeros elsewhere."""
    wide = np.zeros((*values.shape[:-1], data.extractor.num_proteins), values.dtype)
    wide[..., data.panel] = values
    return wide


def _find_own_genes(data: PairedCells) -> NDArray[np.int64]:
    """Give the place of the gene that codes for each protein of the panel among the genes in patches, (P,); else -1."""
    extractor = data.extractor
    place = {gene: place for place, gene in enumerate(extractor.patch_genes().ravel())}
    number = {gene: place[i] for i, gene in enumerate(extractor.gene_ids)}
    own = np.full(extractor.num_proteins, -1)
    for protein in data.panel:
        own[protein] = number.get(extractor.protein_gene_ids[protein].split(";")[0], -1)
    return own


def measure_studies(data: PairedCells) -> dict[str, StudyUnits]:
    """Find the units of each batch from the RNA of all its cells: of test cells, too, but of no protein."""
    studies, units = data.batches.astype(str), {}
    for name in np.unique(studies[data.paired]):
        rows = np.flatnonzero((studies == name) & data.aligned.rna_present)
        parts = np.array_split(rows, -(-len(rows) // READ_ROWS))
        units[name] = measure_units(((data.aligned, part) for part in parts), data.extractor)
    return units


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
