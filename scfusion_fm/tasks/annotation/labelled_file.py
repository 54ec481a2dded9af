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
from scfusion_fm.data.files.coverage import measure_panel
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.tasks.annotation.cells import LabelledCells, drop_rare_classes, read_labels
from scfusion_fm.tasks.results import describe_provenance
from scfusion_fm.tasks.splits import split_cells


@dataclass
class LabelledFile:
    """One file with its labels, its split, and the files that a run on it leaves for the report."""

    config: AnnotationConfig | UnimodalTransferConfig
    cells: Cells
    data: LabelledCells
    left_out: dict[str, int]
    split: Partition

    def __post_init__(self):
        self.partition = self.split.set_apart_calibration(self.config.calibration_fraction, self.config.seed)

    @classmethod
    def read(
        cls,
        config: AnnotationConfig | UnimodalTransferConfig,
        extractor: ScFusionTTTFeatureExtractor,
        modalities: tuple[str, ...] = ("rna", "adt"),
    ) -> "LabelledFile":
        """Read and divide a file; classes with too few cells are left out and listed."""
        cells, aligned = read_aligned(
            Path(config.data), extractor, batch_key=config.batch_key, min_coverage=config.min_coverage
        )
        print("; ".join(found.describe() for found in measure_panel(cells, aligned)))
        found = cls.divide(config, cells, aligned, extractor, modalities)
        print(
            f"{len(found.data.classes)} classes, cells: {found.partition.counts}, "
            f"classes with too few cells: {found.left_out}"
        )
        return found

    @classmethod
    def divide(
        cls,
        config: AnnotationConfig | UnimodalTransferConfig,
        cells: Cells,
        aligned: AlignedCells,
        extractor: ScFusionTTTFeatureExtractor,
        modalities: tuple[str, ...],
    ) -> "LabelledFile":
        """
        Divide the cells of a file that have a label and something to show.

        Raises
        ------
        ValueError
            If a part is left without cells; the message names what took the last.
        """
        given = read_labels(cells.obs, config.labels_key, config.unlabelled)
        labels, left_out = drop_rare_classes(given, config.min_cells_per_class)
        data = LabelledCells(aligned, extractor, labels, modalities)
        split = split_cells(cells.obs, config.split)
        split = split.keep(given != "", "`labels_key` must label cells of each part", "take another column or `split`")
        advice = f"lower it from {config.min_cells_per_class}, or change `split`"
        split = split.keep(labels != "", "`min_cells_per_class` must leave cells of each part", advice)
        rule = f"`data` must hold {' or '.join(modalities)} of labelled cells in each part"
        split = split.keep(data.readable, rule, "choose another file, or change `split`")
        return cls(config, cells, data, left_out, split)

    def score(self, predicted: dict[tuple[str, str], NDArray[np.str_]]) -> list[dict[str, Any]]:
        """Score the predictions for the test cells by method and inputs."""
        truth = self.data.labels[self.partition.test]
        return [
            {"method": method, "inputs": inputs, **annotation_scores(truth, guess), "n_test": len(truth)}
            for (method, inputs), guess in predicted.items()
        ]

    def write_cells(self, output: Path, logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> None:
        """Write the predictions for test cells and the embedding of all used cells."""
        rows, used = self.partition.test, self.data.used
        frame = pd.DataFrame(
            {
                "cell": self.cells.obs.index[rows],
                "label": self.data.labels[rows],
                "predicted": self.data.names_of(logits),
                "probability": softmax(logits, axis=1).max(1),
            }
        )
        frame.to_csv(output / "test_predictions.csv", index=False)
        np.savez(
            output / "embedding.npz",
            embedding=embedding,
            labels=self.data.labels[used],
            split=self.split.roles(len(self.data.labels))[used],
        )

    def describe(self) -> dict[str, Any]:
        """Give what the results tell of the data."""
        return {
            "data": self.config.data,
            "labels_key": self.config.labels_key,
            "classes": self.data.classes,
            "dropped_classes": self.left_out,
            "cells": self.partition.counts,
            "provenance": describe_provenance(self.cells.container),
            "split": dataclasses.asdict(self.config.split),
        }
