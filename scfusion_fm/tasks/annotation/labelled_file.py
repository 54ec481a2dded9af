"""Labelled cells with their split, and what a run on them leaves for the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from scfusion_fm.config.finetune import LabelledConfig
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.notices import tell
from scfusion_fm.tasks.annotation.cells import LabelledCells, drop_rare_classes, read_labels
from scfusion_fm.tasks.given import GivenCells
from scfusion_fm.tasks.results import describe_split
from scfusion_fm.tasks.splits import divide_cells, limit_parts

MOST_SHOWN_CELLS = 20_000


@dataclass
class LabelledFile:
    """
    Labelled cells, their split, and the files that a run on them leaves for the report.

    Attributes
    ----------
    config
        What was asked for.
    cells
        All cells that were given.
    data
        The same with labels.
    left_out
        Cells of classes that are too small, by class.
    whole
        Which cells are for what; those that calibrate are among `val`.
    rule
        How they were divided.
    split
        The same without cells of very large parts that are not needed.
    partition
        The same with the cells that calibrate in a part of their own.
    """

    config: LabelledConfig
    cells: GivenCells
    data: LabelledCells
    left_out: dict[str, int]
    whole: Partition
    rule: str = ""

    def __post_init__(self):
        self.split = limit_parts(self.whole, self.config.split.seed)
        self.partition = self.split.set_apart_calibration(self.config.calibration_fraction, self.config.seed)

    @classmethod
    def divide(
        cls,
        config: LabelledConfig,
        cells: GivenCells,
        extractor: ScFusionTTTFeatureExtractor,
        modalities: tuple[str, ...] = ("rna", "adt"),
    ) -> "LabelledFile":
        """
        Divide the cells that have a label and something to show; classes with too few are left out and listed.

        Raises
        ------
        ValueError
            If a part is left without cells; the message names what took the last.
        """
        given = read_labels(cells.obs, config.labels_key, config.unlabelled)
        labels, left_out = drop_rare_classes(given, config.min_cells_per_class)
        data = LabelledCells(cells.aligned, extractor, labels, modalities)
        split, told = divide_cells(cells.obs, cells.own_names, config.split, config.batch_key)
        split = split.keep(given != "", "`labels_key` must label cells of each part", "take another column or `split`")
        advice = f"lower it from {config.min_cells_per_class}, or change `split`"
        split = split.keep(labels != "", "`min_cells_per_class` must leave cells of each part", advice)
        rule = f"`data` must hold {' or '.join(modalities)} of labelled cells in each part"
        split = split.keep(data.readable, rule, "choose another file, or change `split`")
        found = cls(config, cells, data, left_out, split, told)
        tell(
            f"{len(data.classes)} classes, cells: {found.partition.counts}, divided by {told}, "
            f"classes with too few cells: {left_out}"
        )
        return found

    @property
    def shown(self) -> NDArray[np.int64]:
        """Rows of the cells whose embedding is shown: all that are used, or as many of them as a picture needs."""
        used = self.data.used
        if len(used) <= MOST_SHOWN_CELLS:
            return used
        chosen = np.random.default_rng(self.config.seed).choice(used, MOST_SHOWN_CELLS, replace=False)
        return np.sort(chosen)

    def score(self, predicted: dict[tuple[str, str], NDArray[np.str_]]) -> list[dict[str, Any]]:
        """Score the predictions for the scored cells by method and inputs."""
        truth = self.data.labels[self.partition.scored]
        return [
            {"method": method, "inputs": inputs, **annotation_scores(truth, guess), "n_test": len(truth)}
            for (method, inputs), guess in predicted.items()
        ]

    def write_cells(self, output: Path, logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> None:
        """Write the predictions for the scored cells and the embedding of those that are shown."""
        rows, shown = self.partition.scored, self.shown
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
            labels=self.data.labels[shown],
            split=self.split.roles(len(self.data.labels))[shown],
        )

    def describe(self) -> dict[str, Any]:
        """Give what the results tell of the data."""
        return {
            "data": self.config.data_names,
            "labels_key": self.config.labels_key,
            "classes": self.data.classes,
            "dropped_classes": self.left_out,
            "provenance": self.cells.provenance,
            **describe_split(self.config, self.partition, self.rule),
        }
