"""Cells with their labels."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.config.finetune import INPUTS
from scfusion_fm.data.schema import AlignedCells, read_categories
from scfusion_fm.model import ScFusionTTTFeatureExtractor


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
    readable
        (n,), whether a cell has something to show.
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
        self.readable = np.any([present[m] for m in self.modalities], axis=0)
        self.used = np.flatnonzero((self.labels != "") & self.readable)
        self.classes = sorted(set(self.labels[self.used]))
        if len(self.classes) < 2:
            raise ValueError(f"`labels_key` must give at least two classes of enough cells, got {self.classes}.")
        index = {c: i for i, c in enumerate(self.classes)}
        self.codes = np.array([index.get(x, -100) for x in self.labels])
        shown = {name: part for name, part in INPUTS.items() if set(part) <= set(self.modalities)}
        self.inputs = {k: v for k, v in shown.items() if all(present[m][self.used].any() for m in v)}

    def names_of(self, codes: NDArray) -> NDArray[np.str_]:
        """Turn class indices (n,) or logits (n, classes), alone or first of a tuple, into class names."""
        codes = codes[0] if isinstance(codes, tuple) else codes
        return np.array(self.classes)[codes.argmax(1) if codes.ndim == 2 else codes]


def read_labels(obs: pd.DataFrame, labels_key: str, unlabelled: list[str]) -> NDArray[np.str_]:
    """
    Give the labels of cells, '' for none: where the value is missing, or one of those that mean so.

    Raises
    ------
    ValueError
        If the column is missing.
    """
    if labels_key not in obs:
        raise ValueError(f"`labels_key` must be a column of obs, got {labels_key!r}; it has {list(obs.columns)}.")
    labels = read_categories(obs[labels_key])
    labels[pd.isna(labels)] = ""
    labels[np.isin(labels.astype(str), unlabelled)] = ""
    return labels.astype(str)


def drop_rare_classes(labels: NDArray[np.str_], min_cells: int) -> tuple[NDArray[np.str_], dict[str, int]]:
    """Give the labels without those of classes that have too few cells, and the number of cells of each such class."""
    counts = pd.Series(labels[labels != ""], dtype=object).value_counts()
    rare = counts[counts < min_cells]
    kept = labels.astype(object)
    kept[np.isin(labels, rare.index)] = ""
    return kept.astype(str), {str(k): int(v) for k, v in rare.items()}
