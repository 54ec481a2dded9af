"""Cells of batches that are to mix.

Letters: n cells, K coordinates.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import KMeans

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.evaluation.baselines.studies import StudyComponents, normalise_sparse
from scfusion_fm.model import ScFusionTTTFeatureExtractor

NUM_COMPONENTS = 50


@dataclass
class BatchedCells:
    """
    Cells of batches that are to mix.

    Attributes
    ----------
    aligned
        The cells.
    extractor
        Vocabulary and normaliser.
    batches
        (n,), their batches; None where a cell has none, which takes no part.
    labels
        (n,), their cell types, None where they have none; None for no labels at all.
    modalities
        What is shown of the cells.
    """

    aligned: AlignedCells
    extractor: ScFusionTTTFeatureExtractor
    batches: NDArray[np.object_]
    labels: NDArray[np.object_] | None = None
    modalities: tuple[str, ...] = ("rna", "adt")

    def __post_init__(self):
        known = sorted(set(self.batches[self.usable]))
        if len(known) < 2:
            raise ValueError(
                f"`batch_key` must tell at least two batches of cells with counts apart, got {known}; give another "
                "column, or more files."
            )

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n,), which cells have a batch and counts that are shown."""
        present = {"rna": self.aligned.rna_present, "adt": self.aligned.adt_present}
        return ~pd.isna(self.batches) & np.any([present[name] for name in self.modalities], axis=0)

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """(n,), numbers of the batches, -1 for none."""
        return number_groups(self.batches)

    @cached_property
    def types(self) -> NDArray[np.int64]:
        """(n,), numbers of the cell types, -1 for none."""
        return np.full(len(self.batches), -1) if self.labels is None else number_groups(self.labels)

    def find_coordinates(self, fit: NDArray[np.int64], rows: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        """
        Place cells, (n, K), by the principal components of some of them around the means of their batches.

        Cells that are not in `rows` get 0.
        """
        values, observed = self.read_features(rows)
        codes = np.unique(self.codes[rows], return_inverse=True)[1]
        inside = np.isin(rows, fit)
        own = np.unique(codes[inside], return_inverse=True)[1]
        components = StudyComponents.fit(values[inside], observed[inside], own, NUM_COMPONENTS, seed)
        found = np.zeros((len(self.batches), components.directions.shape[1]))
        found[rows] = components.read(values, observed, codes)
        return found

    def read_features(self, rows: NDArray[np.int64]) -> tuple[sparse.csr_matrix, NDArray[np.bool_]]:
        """Give the normalised RNA of some cells, or their proteins where there is no RNA, and where it was measured."""
        aligned, extractor = self.aligned, self.extractor
        if "rna" in self.modalities and aligned.rna_present[rows].any():
            values = normalise_sparse(aligned.rna[rows], aligned.rna_total_counts[rows], extractor.target_sum)
            return values, aligned.rna_observed_in(rows)
        observed = aligned.adt_observed_in(rows)
        return sparse.csr_matrix(extractor.normalise_adt(aligned.adt[rows], observed)), observed


def number_groups(names: NDArray[np.object_]) -> NDArray[np.int64]:
    """Give numbers to groups in the order of their names; -1 for cells without one."""
    known = ~pd.isna(names)
    codes = np.full(len(names), -1)
    codes[known] = np.unique(names[known].astype(str), return_inverse=True)[1]
    return codes


def cluster(coordinates: NDArray[np.float64], number: int, seed: int) -> NDArray[np.str_]:
    """Give clusters that stand for types where there are no labels, (n,)."""
    number = max(2, min(number, len(coordinates) // 10))
    return KMeans(number, random_state=seed, n_init=3).fit_predict(coordinates).astype(str)
