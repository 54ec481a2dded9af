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
SHARE_OF_ANCHORS = 0.5  # of the batches: an anchor was measured in more
LEAST_ANCHORS = 3  # in a cell; over fewer, its centre is mostly noise
LEAST_DEVIATION = 1e-6


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

    def level(self, rows: NDArray[np.int64]) -> tuple["PairedCells", NDArray[np.float32], NDArray[np.float32]]:
        """
        Bring the targets of all batches into the same units: one level and one deviation of each protein.

        Each protein of a batch gets the mean and the deviation that batches have on average. Before that, the centre of
        a cell is taken over the anchors, the proteins that most batches measured: centred over its own panel, the same
        cell would have other values in another panel.

        Parameters
        ----------
        rows
            Cells that means and deviations are taken from. Other batches than theirs are centred alone.

        Returns
        -------
        The cells, and mean and deviation of each target, (T,); both 0 for one that does not vary in any batch.

        Notes
        -----
        How much of an antibody sticks to any cell, and how strongly it is stained, differs between laboratories by more
        than between cells, and RNA that differs, too, would be learned as the reason. Differences in the composition
        of batches are lost.
        """
        names, codes = np.unique(self.batches.astype(str), return_inverse=True)
        values = self._centre_over_anchors(rows, codes)
        means, deviations = (np.full((len(names), len(self.panel)), np.nan) for _ in range(2))
        for code in np.unique(codes[rows]):
            own = rows[codes[rows] == code]
            seen = np.ma.MaskedArray(values[own], mask=~self.observed[own])
            means[code], deviations[code] = (x.filled(np.nan) for x in (seen.mean(0), seen.std(0)))
        varies = np.nan_to_num(deviations) > LEAST_DEVIATION
        level, deviation = (_mean_over_batches(np.where(varies, x, np.nan)) for x in (means, deviations))
        scaled = (values - means[codes]) / np.where(varies, deviations, 1.0)[codes] * deviation + level
        levelled = copy.copy(self)
        levelled.measured = np.where(varies[codes], scaled, values).astype(np.float32)
        return levelled, level.astype(np.float32), deviation.astype(np.float32)

    def _centre_over_anchors(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Take the mean over the proteins that most batches measured from each cell that measured enough of them."""
        measuring = np.stack([self.observed[rows[codes[rows] == code]].any(0) for code in np.unique(codes[rows])])
        anchors = self.observed & (measuring.mean(0) > SHARE_OF_ANCHORS)
        number = anchors.sum(1, keepdims=True)
        centre = np.where(anchors, self.measured, 0.0).sum(1, keepdims=True) / np.maximum(number, 1)
        return self.measured - np.where(number >= LEAST_ANCHORS, centre, 0.0)

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


def _mean_over_batches(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average (S, T) over the batches that have a value; 0 where none has."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(0) / np.maximum(known.sum(0), 1)
