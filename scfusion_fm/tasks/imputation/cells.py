"""Cells of studies whose panels of proteins differ, and which of their proteins are hidden on purpose.

Letters: n cells, P proteins of the vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.model import ScFusionTTTFeatureExtractor


@dataclass
class PanelCells:
    """
    Cells of studies whose panels of proteins differ.

    Attributes
    ----------
    aligned
        The cells.
    extractor
        Vocabulary and normaliser.
    studies
        (n,), files or batches in which proteins have levels of their own.
    logs
        (n, P), log1p of the counts.
    observed
        (n, P), where a protein was measured.
    """

    aligned: AlignedCells
    extractor: ScFusionTTTFeatureExtractor
    studies: NDArray[np.str_]

    def __post_init__(self):
        every = np.arange(len(self.aligned.obs))
        self.observed = self.aligned.adt_observed_in(every)
        if not self.observed.any():
            raise ValueError("`data` must hold cells with proteins, got none; choose other files.")
        self.logs = np.where(self.observed, np.log1p(self.aligned.adt[every], dtype=np.float32), np.float32(0))

    @property
    def has_proteins(self) -> NDArray[np.bool_]:
        """(n,), which cells have at least two proteins: one to see and one to hide."""
        return self.observed.sum(1) >= 2

    def centre(
        self, rows: NDArray[np.int64], hidden: NDArray[np.bool_], offsets: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """
        Give the logarithms of some cells less the mean of what is visible, (len(rows), P); 0 where not measured.

        That is the centred log ratio over the proteins that are not hidden, and can be had without the hidden ones.
        Where all are hidden, it is over all. `offsets`, (len(rows), P), are taken off before.
        """
        observed, logs = self.observed[rows], self.logs[rows]
        return centre_visible(logs if offsets is None else logs - offsets, observed, observed & ~hidden)

    def find_offsets(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """
        Give what the levels of each cell's study differ by from the mean over studies, (n, P); found in some rows.

        0 for studies that none of the rows is of: what would be known of a new study.
        """
        offsets = np.zeros(self.logs.shape, np.float32)
        names, codes = np.unique(self.studies, return_inverse=True)
        means = np.full((len(names), self.logs.shape[1]), np.nan)
        for code in np.unique(codes[rows]):
            own = rows[codes[rows] == code]
            number = self.observed[own].sum(0)
            total = np.where(self.observed[own], self.logs[own], 0.0).sum(0, dtype=np.float64)
            means[code] = np.divide(total, number, out=np.full(len(number), np.nan), where=number > 0)
        known = np.isfinite(means)
        shared = np.where(known, means, 0.0).sum(0) / np.maximum(known.sum(0), 1)
        offsets[:] = np.where(known, means - shared, 0.0)[codes]
        return offsets

    def hide_in_turn(self, folds: int, seed: int) -> list[NDArray[np.bool_]]:
        """
        Divide the proteins of every panel into as many sets; where each of them is hidden, (n, P) each.

        Cells of one study with one panel lose the same proteins, as if they had never been in the panel; every protein
        that was measured is hidden once.
        """
        hidden = [np.zeros(self.observed.shape, dtype=bool) for _ in range(folds)]
        _, study = np.unique(self.studies, return_inverse=True)
        panels, panel = np.unique(self.observed, axis=0, return_inverse=True)
        for number, (one, other) in enumerate(np.unique(np.stack([study, panel.reshape(-1)]), axis=1).T):
            rows, places = (study == one) & (panel.reshape(-1) == other), np.flatnonzero(panels[other])
            order = np.random.default_rng([seed, number]).permutation(places)
            for fold, mask in enumerate(hidden):
                mask[np.ix_(rows, order[fold::folds])] = True
        return hidden


def centre_visible(
    logs: NDArray[np.float32], observed: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Take the mean of what is visible, or else of what was observed, off each row; 0 where not observed."""
    among = np.where(visible.any(1, keepdims=True), visible, observed)
    mean = np.where(among, logs, 0.0).sum(1, keepdims=True) / np.maximum(among.sum(1, keepdims=True), 1)
    return np.where(observed, logs - mean, 0.0).astype(np.float32)


@dataclass
class Hidden:
    """
    What was hidden of some cells, turn by turn, and what was predicted of it.

    Attributes
    ----------
    studies
        (n,) studies of the cells.
    measured, predicted
        (n, P) of each turn, in centred log ratios over what was visible then.
    scored
        (n, P) of each turn: what was hidden, and is scored.
    """

    studies: NDArray[np.str_]
    measured: list[NDArray[np.floating]] = field(default_factory=list)
    predicted: list[NDArray[np.floating]] = field(default_factory=list)
    scored: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(self, measured: NDArray, predicted: NDArray, scored: NDArray[np.bool_]) -> None:
        """Add a turn."""
        self.measured.append(measured)
        self.predicted.append(predicted)
        self.scored.append(scored)

    def join(self) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
        """Put the turns together, (n, P) each: every protein from the turn in which it was hidden."""
        places = np.stack(self.scored).argmax(0)[None]
        arrays = (np.take_along_axis(np.stack(x), places, 0)[0] for x in (self.measured, self.predicted))
        return (*arrays, np.any(self.scored, axis=0))

    def score(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """
        Score study by study: a line for each protein of a study, and the means over the lines.

        Correlations are within studies: levels of a new one, which no method can know, do not count for them.
        """
        lines, per_cell = [], []
        for turn in zip(self.measured, self.predicted, self.scored, strict=True):
            for study in np.unique(self.studies):
                rows = self.studies == study
                places = np.flatnonzero(turn[2][rows].any(0))
                if len(places):
                    table, summary = protein_scores(*(x[np.ix_(rows, places)] for x in turn))
                    per_cell.append(summary["pearson_per_cell"])
                    columns = table.assign(study=str(study), place=places)
                    lines += columns.to_dict("records")
        values = {name: np.array([line[name] for line in lines]) for name in ("pearson", "rmse", "n")}
        total = values["n"].sum() if lines else 0
        squared = float((np.square(values["rmse"]) * values["n"]).sum() / total) if total else float("nan")
        return lines, {
            "pearson_per_protein": _mean(values["pearson"]),
            "pearson_per_cell": _mean(np.array(per_cell)),
            "rmse": float(np.sqrt(squared)),
        }


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
