"""A classifier of cell types, fine-tuned on labelled cells.

Letters: n cells, D width of the embedding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.evaluation.calibration.unknown import CellOutputs
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, predict_fields
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.annotation.study_types import StudyReadout
from scfusion_fm.tasks.dropout import InputDropout, check_modality_dropout
from scfusion_fm.tasks.epochs import Objective
from scfusion_fm.tasks.loss import BalancedCrossEntropy
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.starts.classifier import ClassifierStart, start_classifier
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights


@dataclass(frozen=True)
class AnnotationSettings(FitSettings):
    """
    How a classifier is fitted.

    Attributes
    ----------
    balance_classes
        Whether the loss gives every class the same weight.
    modality_dropout
        Probability that a paired training cell loses one of its modalities, in [0, 1].
    modalities
        What the model is shown.
    projected
        Places of the proteins whose latents are projected from RNA; None, unless the model is to read RNA alone.
    trained
        Parts of the model under the head that are trained; all when None.
    studies
        (n,) study of every cell, to learn types in units of studies; None to learn them as they are.
    """

    balance_classes: bool = True
    modality_dropout: float = 0.0
    modalities: tuple[str, ...] = ("rna", "adt")
    projected: list[int] | None = None
    trained: tuple[str, ...] | None = None
    studies: NDArray[np.str_] | None = None

    def __post_init__(self):
        check_modality_dropout(self.modality_dropout)
        if self.trained is not None and self.optim.lora_rank:
            raise ValueError(
                "`optim.lora_rank` must be 0 where parts of the model stay as they are, got "
                f"{self.optim.lora_rank}; adapters would change them."
            )


@dataclass(frozen=True)
class FittedAnnotation:
    """
    A fitted classifier, with the number of parameters that were trained, and what its validation cells chose.

    Cells of which RNA alone is shown are named by `readout`, where there is one.
    """

    model: PreTrainedModel
    extractor: ScFusionTTTFeatureExtractor
    modalities: tuple[str, ...]
    num_trained: int
    epochs: float = 0.0
    start: ClassifierStart | None = None
    readout: StudyReadout | None = None

    def predict(
        self, aligned: AlignedCells, rows: NDArray[np.int64], modalities: tuple[str, ...] = ("rna", "adt")
    ) -> NDArray[np.float32]:
        """Give the logits of some cells, of which the given modalities are shown, (len(rows), classes)."""
        return self.run(aligned, rows, modalities).logits

    def embed(
        self, aligned: AlignedCells, rows: NDArray[np.int64], modalities: tuple[str, ...] = ("rna", "adt")
    ) -> NDArray[np.float32]:
        """Give the embedding of some cells, of which the given modalities are shown, (len(rows), D)."""
        return self.run(aligned, rows, modalities).embedding

    def run(self, aligned: AlignedCells, rows: NDArray[np.int64], modalities: tuple[str, ...]) -> CellOutputs:
        """Give logits and embedding of some cells, of which the given modalities are shown."""
        shown = tuple(m for m in self.modalities if m in modalities)
        collator = CellCollator(aligned, self.extractor)
        found = CellOutputs(*predict_fields(self.model, collator, rows, ("logits", "pooler_output"), shown))
        if self.readout is None or shown != ("rna",):
            return found
        return CellOutputs(self.readout.logits(aligned, rows), found.embedding)


def fit_annotation(
    weights: Weights,
    data: LabelledCells,
    partition: Partition,
    settings: AnnotationSettings,
    tested: FittedAnnotation | None = None,
) -> FittedAnnotation:
    """
    Fine-tune a classifier that starts as a logistic regression; what did best on the validation cells is kept.

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
    model = weights.build(
        ScFusionTTTForCellTypeAnnotation,
        settings.seed,
        num_labels=len(data.classes),
        projected_proteins=settings.projected,
        num_coordinates=settings.optim.num_coordinates,
        id2label=dict(enumerate(data.classes)),
        label2id={c: i for i, c in enumerate(data.classes)},
    )
    if settings.trained is not None:
        model.model.requires_grad_(False)
        for part in settings.trained:
            getattr(model.model, part).requires_grad_(True)
    collator = CellCollator(data.aligned, data.extractor, data.codes, settings.modalities)

    def score(logits: NDArray[np.float32]) -> dict[str, float]:
        scores = annotation_scores(data.labels[partition.val], data.names_of(logits))
        return {"score": scores["macro_f1"], **scores}

    taken, epochs = (None, None) if tested is None else (tested.start, tested.epochs)
    shown, balanced = data.inputs, settings.balance_classes
    start = start_classifier(model, collator, data.codes, partition, shown, balanced, settings.seed, taken)
    codes = data.codes[partition.train]
    loss = BalancedCrossEntropy(codes, len(data.classes)) if balanced else None
    dropout = InputDropout(settings.seed, settings.modality_dropout, settings.optim.token_dropout)
    objective = Objective(score, loss, dropout)
    trained = train_best(model, partition, collator, objective, weights.suit(settings), epochs)
    readout = None if settings.studies is None else StudyReadout.fit(data, settings.studies, partition.train)
    return FittedAnnotation(model, data.extractor, settings.modalities, *trained, start, readout)


def choose_projected(data: LabelledCells, proteins: list[str] | None) -> list[int]:
    """
    Choose the proteins whose latents are projected from the RNA, by their places.

    Parameters
    ----------
    data
        The cells.
    proteins
        Names in the model; None takes what the cells' files measured, or all that the model knows where these have no
        proteins.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """
    measured = np.flatnonzero(data.aligned.adt_observed)
    if proteins is None:
        return measured.tolist() if len(measured) else list(range(data.extractor.num_proteins))
    places = data.extractor.index_proteins(proteins)
    unknown = [name for name, place in zip(proteins, places, strict=True) if place < 0]
    if unknown or not proteins:
        known = ", ".join(data.extractor.protein_names[:5])
        raise ValueError(f"`proteins` must name proteins that the model knows ({known}, ...), got {unknown or 'none'}.")
    return sorted(set(places.tolist()))
