"""Learn how cell types differ in units of a study, from several studies.

Letters: n cells, G genes of the vocabulary, M genes that are read, K types, R factors, S studies.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from scfusion_fm.data.schema import AlignedCells, as_text
from scfusion_fm.evaluation.baselines.studies import normalise_sparse
from scfusion_fm.inference.study_types import LARGEST, MOST_CELLS, StudyTypes
from scfusion_fm.inference.study_units import LEAST_DEVIATION, average_where
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.starts.factors import StudyPart, fit_factors

MOST_GENES, FACTORS = 3000, 20
LEAST_STUDIES, LEAST_OF_TYPE = 2, 5  # that measured a gene; cells of a type in a study that tell its markers
ROUNDS = 3
FEW = 20  # cells of a type in a study that count half as much as very many
LEAST_NOISE = 0.1
COMPLETION_PENALTY = 0.1


@dataclass
class StudyCells:
    """
    Labelled cells of several studies.

    Attributes
    ----------
    values
        (n, G) log-normalised expression.
    study
        (n,) numbers of the studies, from 0.
    measured
        (S, G) which genes a study measured.
    codes
        (n,) types.
    num_types
        K.
    """

    values: sparse.csr_matrix
    study: NDArray[np.int64]
    measured: NDArray[np.bool_]
    codes: NDArray[np.int64]
    num_types: int

    @classmethod
    def read(
        cls,
        aligned: AlignedCells,
        extractor: ScFusionTTTFeatureExtractor,
        rows: NDArray[np.int64],
        studies: NDArray[np.str_],
        codes: NDArray[np.int64],
        num_types: int,
    ) -> "StudyCells":
        """Read some cells, of which `studies` and `codes` (all cells) tell study and type."""
        rows = limit_studies(rows, studies)
        names, study = np.unique(studies[rows], return_inverse=True)
        panels, panel = aligned.rna_panels_in(rows)
        measured = np.stack([panels[np.unique(panel[study == s])].any(0) for s in range(len(names))])
        counts = sparse.csr_matrix(aligned.rna[rows])
        values = normalise_sparse(counts, aligned.rna_total_counts[rows].astype(np.float64), extractor.target_sum)
        return cls(values, study, measured, codes[rows], num_types)

    @property
    def parts(self) -> list[NDArray[np.int64]]:
        """Rows of each study."""
        return [np.flatnonzero(self.study == s) for s in range(len(self.measured))]

    def shares_in(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give the shares (K,) of types among some cells."""
        return np.bincount(self.codes[rows], minlength=self.num_types) / len(rows)

    def take(self, genes: NDArray[np.int64]) -> "StudyCells":
        """Select genes."""
        return StudyCells(self.values[:, genes], self.study, self.measured[:, genes], self.codes, self.num_types)


def limit_studies(rows: NDArray[np.int64], studies: NDArray[np.str_]) -> NDArray[np.int64]:
    """Draw some of the rows of each study that has more than `MOST_CELLS`; ascending."""
    rng, names = np.random.default_rng(0), studies[rows]
    return np.sort(np.concatenate([rng.permutation(rows[names == s])[:MOST_CELLS] for s in np.unique(names)]))


def fit_study_types(cells: StudyCells) -> StudyTypes:
    """
    Learn from labelled cells how types differ, whatever the study.

    Notes
    -----
    Means of types, and the units of each study in which these means explain its cells with their shares of types, are
    found in turn. Of cells around the mean of their type the covariance is found as factors and noise of each gene: it
    holds how types differ between studies, too, so that such differences count less.
    """
    genes = choose_markers(cells)
    cells = cells.take(genes)
    raw = cells.values.toarray().astype(np.float32)
    moments = [(raw[rows].mean(0), raw[rows].std(0)) for rows in cells.parts]
    shifts = [(np.zeros(len(genes)), np.ones(len(genes)))] * len(moments)
    usual = cells.shares_in(np.arange(len(raw)))
    types = None
    for _ in range(ROUNDS + 1):
        x = np.zeros_like(raw)
        for s, rows in enumerate(cells.parts):
            (mean, deviation), (shift, scale) = moments[s], shifts[s]
            varies = cells.measured[s] & (deviation > LEAST_DEVIATION)
            plain = np.minimum((raw[rows] - mean) / np.where(varies, deviation, 1.0), LARGEST)
            x[rows] = np.where(varies, plain * scale + shift, 0.0)
        means, within = average_types(cells, x)
        types = StudyTypes(
            genes=genes.astype(np.int64),
            means=means,
            known=(np.bincount(cells.codes, minlength=cells.num_types) > 0).astype(np.float32),
            within=within,
            factors=np.zeros((len(genes), 1), np.float32),
            noise=np.ones(len(genes), np.float32),
            shares=usual.astype(np.float32),
            usual_means=np.zeros(len(genes), np.float32),
            usual_deviations=np.ones(len(genes), np.float32),
        )
        shifts = [types.expect(cells.shares_in(rows)) for rows in cells.parts]
    residuals = (x - types.means[cells.codes]) * cells.measured[cells.study]
    factors, noise = find_factors(cells, residuals)
    found = {**vars(types), "factors": factors, "noise": noise}
    found["usual_means"], found["usual_deviations"] = average_units(cells, moments, shifts)
    return StudyTypes(**found)


def choose_markers(cells: StudyCells) -> NDArray[np.int64]:
    """Give the genes whose expression differs most between types of the same study, on average over studies."""
    total = np.zeros(cells.measured.shape[1])
    for rows in cells.parts:
        x, codes = cells.values[rows], cells.codes[rows]
        mean = np.asarray(x.mean(0)).ravel()
        variance = np.asarray(x.multiply(x).mean(0)).ravel() - mean**2
        types = [k for k in np.unique(codes) if (codes == k).sum() >= LEAST_OF_TYPE]
        between = sum(((np.asarray(x[codes == k].mean(0)).ravel() - mean) ** 2) * (codes == k).mean() for k in types)
        explained = np.where(variance > 1e-6, between / np.maximum(variance, 1e-6), 0.0)
        total += np.sqrt(np.maximum(explained - (len(types) - 1) / len(rows), 0.0))
    number = cells.measured.sum(0)
    least = min(LEAST_STUDIES, len(cells.measured))
    score = np.where(number >= least, total / np.sqrt(np.maximum(number, 1)), 0.0)
    chosen = np.argsort(-score, kind="stable")[:MOST_GENES]
    chosen = np.sort(chosen[score[chosen] > 0])
    if not len(chosen):
        raise ValueError(
            f"`study_key` must name studies in which genes tell types apart, got {len(cells.measured)} without any. "
            "Take studies that hold several types each and share genes."
        )
    return chosen


def average_types(cells: StudyCells, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give means of types (K, M) over studies, and the mean variance (M,) of types within studies."""
    total, weight = np.zeros((2, cells.num_types, x.shape[1]))
    variance, number = np.zeros((2, x.shape[1]))
    for s, rows in enumerate(cells.parts):
        for k in np.unique(cells.codes[rows]):
            own = x[rows[cells.codes[rows] == k]]
            share = len(own) / (len(own) + FEW) * cells.measured[s]
            total[k] += share * own.mean(0)
            weight[k] += share
            if len(own) >= LEAST_OF_TYPE:
                variance += own.var(0) * cells.measured[s]
                number += cells.measured[s]
    means = complete_means(total / (weight + 0.25), weight > 0)
    return means.astype(np.float32), (variance / np.maximum(number, 1)).astype(np.float32)


def complete_means(means: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fill in genes that no study with a type measured, (K, M), by what the other types tell there."""
    filled, whole = means.copy(), np.flatnonzero(seen.mean(1) > 0.95)
    for k in range(len(means)):
        others, own = whole[whole != k], seen[k]
        if own.all() or not own.any() or not len(others):
            continue
        given = means[others][:, own]
        products = given @ given.T
        products += COMPLETION_PENALTY * np.trace(products) / len(others) * np.eye(len(others))
        filled[k, ~own] = np.linalg.solve(products, given @ means[k, own]) @ means[others][:, ~own]
    return filled


def find_factors(cells: StudyCells, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """
    Find factors (M, R) and noise (M,) of cells around the mean of their type.

    Rare types count by more than their number, so that abundant ones do not decide alone what varies.
    """
    weight = 1 / np.sqrt(np.bincount(cells.codes)[cells.codes])
    weight = (weight / weight.mean()).astype(np.float32)
    parts = [StudyPart(x[rows], cells.measured[s], weight[rows]) for s, rows in enumerate(cells.parts)]
    factors, noise = fit_factors(parts, FACTORS, LEAST_NOISE, isotropic=False)
    return factors.astype(np.float32), noise.astype(np.float32)


def average_units(
    cells: StudyCells, moments: list[tuple[NDArray, NDArray]], shifts: list[tuple[NDArray, NDArray]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Average zero and length of the shared units, (M,) each, over the studies in which a gene varies."""
    (mean, deviation), (shift, scale) = ([np.stack(x) for x in zip(*pairs, strict=True)] for pairs in (moments, shifts))
    varies = cells.measured & (deviation > LEAST_DEVIATION)
    zero, length = average_where(mean - shift * deviation / scale, varies), average_where(deviation / scale, varies)
    return zero.astype(np.float32), np.where(varies.any(0), length, 1.0).astype(np.float32)


@dataclass(frozen=True)
class StudyReadout:
    """
    Types in units of studies, for cells of several studies.

    Attributes
    ----------
    data
        All cells.
    studies
        (n,) study of every cell.
    trained
        Rows that it was fitted on.
    types
        What was learned.
    """

    data: LabelledCells
    studies: NDArray[np.str_]
    trained: NDArray[np.int64]
    types: StudyTypes

    @classmethod
    def fit(cls, data: LabelledCells, studies: NDArray[np.str_], rows: NDArray[np.int64]) -> "StudyReadout":
        """
        Learn from some cells, those of them that have RNA.

        Raises
        ------
        ValueError
            If the cells are of one study, or no gene tells types apart.
        """
        rows = rows[data.aligned.rna_present[rows]]
        names = np.unique(studies[rows])
        if len(names) < 2:
            raise ValueError(
                f"`study_key` must give training cells with RNA of at least two studies, got {names.tolist()}. Add "
                "files, or leave it out."
            )
        return cls(data, studies, rows, _learn(data, studies, rows))

    def logits(self, aligned: AlignedCells, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """
        Give logits (len(rows), K), each cell in the units of all cells of its study, from their RNA alone.

        Those of cells in studies without RNA are 0.
        """
        found, types, extractor = np.zeros((len(rows), len(self.types.means))), self.types, self.data.extractor
        for name in np.unique(self.studies[rows]):
            every = np.flatnonzero((self.studies == name) & aligned.rna_present)
            if not len(every):
                continue
            every = limit_studies(every, self.studies)
            panels, panel = aligned.rna_panels_in(every)
            measured = panels[np.unique(panel)].any(0)[types.genes]
            in_file = types.adapt(types.read(aligned, every, extractor), measured)
            own = self.studies[rows] == name
            found[own] = in_file.logits(types.read(aligned, rows[own], extractor))
        return found

    def logits_when_left_out(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """
        Give logits (len(rows), K) by what is learned without the study of a cell, and for which cells (len(rows),).

        Without its study, a cell may be of no type that is known; or its study may be the only one.
        """
        found, known = np.zeros((len(rows), len(self.types.means))), np.zeros(len(rows), bool)
        for name in np.unique(self.studies[rows]):
            others, own = self.trained[self.studies[self.trained] != name], np.flatnonzero(self.studies[rows] == name)
            codes = self.data.codes[others]
            if len(np.unique(codes)) > 1:
                found[own] = replace(self, types=_learn(self.data, self.studies, others)).logits(
                    self.data.aligned, rows[own]
                )
                known[own] = np.isin(self.data.codes[rows[own]], codes)
        return found, known


def _learn(data: LabelledCells, studies: NDArray[np.str_], rows: NDArray[np.int64]) -> StudyTypes:
    return fit_study_types(StudyCells.read(data.aligned, data.extractor, rows, studies, data.codes, len(data.classes)))


def read_studies(obs: pd.DataFrame, study_key: str | None) -> NDArray[np.str_] | None:
    """
    Give the study of every cell, (n,); None where no column is named.

    Raises
    ------
    ValueError
        If the column is missing.
    """
    if study_key is None:
        return None
    if study_key not in obs:
        raise ValueError(f"`study_key` must be a column of obs, got {study_key!r}; there are {list(obs.columns)}.")
    return as_text(obs[study_key]).to_numpy(str)
