"""One file with its labels, its split, and what a run on it leaves for the report."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from scfusion_fm.config.finetune import AnnotationConfig, UnimodalTransferConfig
from scfusion_fm.data.schema import Cells
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.tasks.annotation.cells import LabelledCells, clean_labels
from scfusion_fm.tasks.results import describe_provenance
from scfusion_fm.tasks.splits import rows_by_split, set_apart_calibration, split_cells


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
                "probability": softmax(logits, axis=1).max(1),
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
