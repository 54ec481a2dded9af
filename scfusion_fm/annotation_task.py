"""Cell-type annotation: labelled cells, a model fitted on some of them, and baselines fitted on the same ones.

Letters: n cells, P proteins.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scfusion_fm.config import AnnotationConfig, UnimodalTransferConfig
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.evaluation.annotation_baselines import AnnotationTask
from scfusion_fm.evaluation.baselines import Features, annotate_baselines
from scfusion_fm.evaluation.metrics import annotation_scores
from scfusion_fm.finetuning import (
    CellCollator,
    FitSettings,
    Source,
    check_modality_dropout,
    describe_provenance,
    predict_rows,
    rows_by_split,
    set_apart_calibration,
    split_cells,
)
from scfusion_fm.head_start import start_classifier
from scfusion_fm.inference import read_aligned, softmax
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation
from scfusion_fm.trainer import BalancedCrossEntropy, train_best

INPUTS = {"rna": ("rna",), "adt": ("adt",), "rna+adt": ("rna", "adt")}


@dataclass
class LabelledCells:
    """
    Cells with their labels.

    Attributes
    ----------
    aligned
        The cells.
    extractor
        Vocabulary and normaliser.
    labels
        (n,), cell types; '' for none.
    modalities
        What may be shown of the cells.
    used
        Rows with a label and something to show.
    classes
        Cell types of these rows, sorted.
    codes
        (n,), class index; -100 for none.
    inputs
        Modalities by the name of each input that the cells allow.
    """

    aligned: AlignedCells
    extractor: ScFusionTTTFeatureExtractor
    labels: NDArray[np.str_]
    modalities: tuple[str, ...] = ("rna", "adt")

    def __post_init__(self):
        present = {"rna": self.aligned.rna_present, "adt": self.aligned.adt_present}
        readable = np.any([present[m] for m in self.modalities], axis=0)
        self.used = np.flatnonzero((self.labels != "") & readable)
        self.classes = sorted(set(self.labels[self.used]))
        if len(self.classes) < 2:
            raise ValueError(f"`label_key` must give at least two classes of enough cells, got {self.classes}.")
        index = {c: i for i, c in enumerate(self.classes)}
        self.codes = np.array([index.get(x, -100) for x in self.labels])
        shown = {name: part for name, part in INPUTS.items() if set(part) <= set(self.modalities)}
        self.inputs = {k: v for k, v in shown.items() if all(present[m][self.used].any() for m in v)}

    def names_of(self, codes: NDArray) -> NDArray[np.str_]:
        """Turn class indices (n,) or logits (n, classes), alone or first of a tuple, into class names."""
        codes = codes[0] if isinstance(codes, tuple) else codes
        return np.array(self.classes)[codes.argmax(1) if codes.ndim == 2 else codes]


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
    """

    balance_classes: bool = True
    modality_dropout: float = 0.0
    modalities: tuple[str, ...] = ("rna", "adt")
    projected: list[int] | None = None
    trained: tuple[str, ...] | None = None

    def __post_init__(self):
        check_modality_dropout(self.modality_dropout)
        if self.trained is not None and self.optim.lora_rank:
            raise ValueError(
                "`optim.lora_rank` must be 0 where parts of the model stay as they are, got "
                f"{self.optim.lora_rank}; adapters would change them."
            )


@dataclass(frozen=True)
class FittedAnnotation:
    """A fitted classifier, with the number of parameters that were trained."""

    model: PreTrainedModel
    extractor: ScFusionTTTFeatureExtractor
    classes: list[str]
    modalities: tuple[str, ...]
    num_trained: int

    def predict(
        self, aligned: AlignedCells, rows: NDArray[np.int64], modalities: tuple[str, ...] = ("rna", "adt")
    ) -> NDArray[np.float32]:
        """Give the logits of some cells, of which the given modalities are shown, (len(rows), classes)."""
        return self._run(aligned, rows, modalities, "logits")

    def embed(
        self, aligned: AlignedCells, rows: NDArray[np.int64], modalities: tuple[str, ...] = ("rna", "adt")
    ) -> NDArray[np.float32]:
        """Give the embedding of some cells, of which the given modalities are shown, (len(rows), D)."""
        return self._run(aligned, rows, modalities, "pooler_output")

    def _run(
        self, aligned: AlignedCells, rows: NDArray[np.int64], modalities: tuple[str, ...], output: str
    ) -> NDArray[np.float32]:
        shown = tuple(m for m in self.modalities if m in modalities)
        return predict_rows(self.model, CellCollator(aligned, self.extractor), rows, output, shown)


def fit_annotation(
    source: Source, data: LabelledCells, rows: dict[str, NDArray[np.int64]], settings: AnnotationSettings
) -> FittedAnnotation:
    """
    Fine-tune a classifier that starts as a logistic regression; what did best on the validation cells is kept.

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
    model = source.build(
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
    cells = (data.aligned, data.extractor, data.codes)
    collators = {
        "train": CellCollator(
            *cells,
            settings.modality_dropout,
            settings.seed,
            settings.modalities,
            token_dropout=settings.optim.token_dropout,
        ),
        "val": CellCollator(*cells, modalities=settings.modalities),
    }

    def score(prediction) -> dict[str, float]:
        scores = annotation_scores(data.names_of(prediction.label_ids), data.names_of(prediction.predictions))
        return {"score": scores["macro_f1"], **scores}

    start_classifier(model, collators["val"], data.codes, rows, data.inputs, settings.balance_classes, settings.seed)
    codes = data.codes[rows["train"]]
    loss = BalancedCrossEntropy(codes, len(data.classes)) if settings.balance_classes else None
    num_trained = train_best(model, rows, collators, score, source.suit(settings), loss)
    return FittedAnnotation(model, data.extractor, data.classes, settings.modalities, num_trained)


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


def build_features(data: LabelledCells, rows: NDArray[np.int64]) -> Features:
    """Give the baselines what the model gets of some cells: RNA with 0, proteins with NaN where not measured."""
    aligned, extractor = data.aligned, data.extractor
    shown = {modality for part in data.inputs.values() for modality in part}
    rna = adt = None
    if "rna" in shown:
        counts = aligned.rna[rows][:, aligned.rna_observed].toarray()
        rna = extractor.normalise_rna(counts, aligned.rna_total_counts[rows])
    if "adt" in shown:
        panel = aligned.adt_observed
        observed = aligned.adt_observed_in(rows)[:, panel]
        adt = np.where(observed, extractor.normalise_adt(aligned.adt[rows][:, panel], observed), np.nan)
    return Features(rna=rna, adt=adt)


def build_baseline_task(data: LabelledCells, rows: dict[str, NDArray[np.int64]], seed: int = 0) -> AnnotationTask:
    """Give the baselines the cells and features that the model gets."""
    used, split = join_rows(rows)
    return AnnotationTask(build_features(data, used), data.labels[used], split, seed)


def fit_annotation_baselines(
    data: LabelledCells, rows: dict[str, NDArray[np.int64]], seed: int = 0
) -> dict[tuple[str, str], NDArray[np.str_]]:
    """Fit the quick baselines; names for `test` by method and inputs."""
    task = build_baseline_task(data, rows, seed)
    return annotate_baselines(task.features, task.labels, task.split, seed)


def join_rows(rows: dict[str, NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Put the rows of train, val and test into one list, and say of each which it is."""
    names = ("train", "val", "test")
    return np.concatenate([rows[n] for n in names]), np.repeat(names, [len(rows[n]) for n in names])


def clean_labels(
    obs: pd.DataFrame, label_key: str, unlabelled: list[str], min_cells: int
) -> tuple[NDArray[np.str_], dict[str, int]]:
    """
    Give the labels of cells, '' for none, and the cells of each class that has too few and is left out.

    Raises
    ------
    ValueError
        If the column is missing.
    """
    if label_key not in obs:
        raise ValueError(f"`label_key` must be a column of obs, got {label_key!r}; it has {list(obs.columns)}.")
    labels = obs[label_key].astype(str).to_numpy(dtype=object)
    labels[np.isin(labels, unlabelled)] = ""
    counts = pd.Series(labels[labels != ""]).value_counts()
    rare = counts[counts < min_cells]
    labels[np.isin(labels, rare.index)] = ""
    return labels.astype(str), {str(k): int(v) for k, v in rare.items()}


@dataclass
class LabelledFile:
    """One file with its labels, its split, and the files that a run on it leaves for the report."""

    config: AnnotationConfig | UnimodalTransferConfig
    cells: Cells
    data: LabelledCells
    left_out: dict[str, int]
    split: NDArray[np.str_]

    def __post_init__(self):
        rows = rows_by_split(self.data.used, self.split)
        self.rows = set_apart_calibration(rows, self.config.calibration_fraction, self.config.seed)
        self.counts = {name: len(rows) for name, rows in self.rows.items()}

    @classmethod
    def read(
        cls,
        config: AnnotationConfig | UnimodalTransferConfig,
        extractor: ScFusionTTTFeatureExtractor,
        modalities: tuple[str, ...] = ("rna", "adt"),
    ) -> "LabelledFile":
        """Read a file; classes with too few cells are left out and listed."""
        cells, aligned = read_aligned(Path(config.data), extractor)
        labels, left_out = clean_labels(cells.obs, config.label_key, config.unlabelled, config.min_cells_per_class)
        data = LabelledCells(aligned, extractor, labels, modalities)
        found = cls(config, cells, data, left_out, split_cells(cells.obs, config.split))
        print(f"{len(data.classes)} classes, cells: {found.counts}, classes with too few cells: {left_out}")
        return found

    def score(self, predicted: dict[tuple[str, str], NDArray[np.str_]]) -> list[dict[str, Any]]:
        """Score the predictions for the test cells by method and inputs."""
        truth = self.data.labels[self.rows["test"]]
        return [
            {"method": method, "inputs": inputs, **annotation_scores(truth, guess), "n_test": len(truth)}
            for (method, inputs), guess in predicted.items()
        ]

    def write_cells(self, output: Path, logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> None:
        """Write the predictions for test cells and the embedding of all used cells."""
        rows, used = self.rows["test"], self.data.used
        frame = pd.DataFrame(
            {
                "cell": self.cells.obs.index[rows],
                "label": self.data.labels[rows],
                "predicted": self.data.names_of(logits),
                "probability": softmax(logits).max(1),
            }
        )
        frame.to_csv(output / "test_predictions.csv", index=False)
        np.savez(output / "embedding.npz", embedding=embedding, labels=self.data.labels[used], split=self.split[used])

    def describe(self) -> dict[str, Any]:
        """Give what the results tell of the data."""
        return {
            "data": self.config.data,
            "label_key": self.config.label_key,
            "classes": self.data.classes,
            "dropped_classes": self.left_out,
            "cells": self.counts,
            "provenance": describe_provenance(self.cells.container),
            "split": dataclasses.asdict(self.config.split),
        }
