"""Cells with RNA and protein, and what is predicted of them.

Letters: n cells, T targets (measured proteins or genes of the panel).
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.model import ScFusionTTTFeatureExtractor

SOURCE_OF = {"adt": "rna", "rna": "adt"}


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
            self.measured = extractor.normalise_adt(aligned.adt[every], self.observed)[:, self.panel]
            self.observed = self.observed[:, self.panel]
        else:
            self.observed = aligned.rna_observed_in(every)[:, self.panel]
            counts = aligned.rna[:, self.panel].toarray()
            self.measured = extractor.normalise_rna(counts, aligned.rna_total_counts)

    def keep_paired(self, split: Partition) -> Partition:
        """
        Leave cells without one of the modalities out.

        Raises
        ------
        ValueError
            If a part has no others.
        """
        paired = self.aligned.rna_present & self.aligned.adt_present
        rule = "`data` must hold cells with RNA and protein in each part"
        return split.keep(paired, rule, "choose another file, or change `split`")

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

    def tabulate(
        self, rows: NDArray[np.int64], predictions: dict[str, NDArray]
    ) -> tuple[list[dict[str, Any]], pd.DataFrame]:
        """Score the predictions of several methods for the same rows: a line for each, and a table by target."""
        scores = {method: self.score(rows, values) for method, values in predictions.items()}
        lines = [{"method": method, **summary, "n_test": len(rows)} for method, (_, summary) in scores.items()]
        tables = [table.assign(method=method, protein=self.names) for method, (table, _) in scores.items()]
        return lines, pd.concat(tables)


def choose_genes(
    aligned: AlignedCells, extractor: ScFusionTTTFeatureExtractor, rows: NDArray[np.int64], number: int
) -> NDArray[np.int64]:
    """Give the places of the genes that vary most among some cells, in the order of the vocabulary."""
    genes = np.flatnonzero(aligned.rna_observed)
    values = extractor.normalise_rna(aligned.rna[rows][:, genes].toarray(), aligned.rna_total_counts[rows])
    return np.sort(genes[np.argsort(-values.var(0), kind="stable")[:number]])
