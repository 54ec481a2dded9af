"""Cell types of a new study from its RNA, in units of the study: a normal distribution of each type, on any panel.

Letters: n cells, M genes that are read, K types, R factors that vary together.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from scfusion_fm.data.files.counts import READ_ROWS
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.inference.job import Job
from scfusion_fm.inference.model_files import ModelFiles
from scfusion_fm.inference.study_units import LEAST_CELLS, LEAST_DEVIATION
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.model.studies_scfusion_ttt import StudyCoordinates
from scfusion_fm.notices import warn
from scfusion_fm.untrusted.weights_file import read_header

STUDY_TYPES = "study_types.safetensors"
MOST_CELLS = 5000  # of a file, that its units and the shares of its types are taken from
LARGEST = StudyCoordinates.FARTHEST
LEAST_VARIANCE = 0.05
SHARPNESS = 0.3  # genes repeat one another by more than the factors tell
MOST_OF_ONE, MOST_OF_TWO = 0.8, 0.95  # shares of the largest types above which a file is taken for sorted cells
SHARE_CORRECTED = 0.75  # of the way from the usual shares of types to those that were found
LEAST_LENGTH = 1e-6
ABSENT = -1e4


@dataclass(frozen=True)
class StudyTypes:
    """
    Expression of cell types in units that the training studies share.

    Attributes
    ----------
    genes
        (M,) places in the vocabulary.
    means
        (K, M) of each type.
    known
        (K,) 1 for types that training cells had, else 0.
    within
        (M,) variance within a type of one study.
    factors, noise
        (M, R) and (M,): cells of a type vary with the covariance `factors @ factors.T + diag(noise)`.
    shares
        (K,) usual shares of the types in a study.
    usual_means, usual_deviations
        (M,) log-normalised expression at 0 of the shared units and its length, in the average study.
    """

    genes: NDArray[np.int64]
    means: NDArray[np.float32]
    known: NDArray[np.float32]
    within: NDArray[np.float32]
    factors: NDArray[np.float32]
    noise: NDArray[np.float32]
    shares: NDArray[np.float32]
    usual_means: NDArray[np.float32]
    usual_deviations: NDArray[np.float32]

    def __post_init__(self):
        (num_types, number), genes = self.means.shape, (len(self.genes),)
        of_genes = (self.within, self.noise, self.usual_means, self.usual_deviations)
        fits = number == len(self.genes) and len(self.factors) == number and all(x.shape == genes for x in of_genes)
        fits = fits and self.known.shape == self.shares.shape == (num_types,)
        arrays = (self.means, self.factors, *of_genes, self.known, self.shares)
        sound = all(np.isfinite(x).all() for x in arrays) and (self.noise > 0).all() and (self.genes >= 0).all()
        if not (fits and sound and (self.usual_deviations > 0).all() and self.known.any()):
            raise ValueError(
                f"`{STUDY_TYPES}` must hold finite arrays that fit together, got {[x.shape for x in arrays]}. Copy or "
                "export the directory again."
            )

    def expect(self, shares: NDArray[np.floating]) -> tuple[NDArray, NDArray]:
        """Give mean and deviation of each gene over cells with the given shares of types (K,), in shared units."""
        mean = shares @ self.means
        variance = self.within + shares @ self.means**2 - mean**2
        return mean, np.sqrt(np.maximum(variance, LEAST_VARIANCE))

    def check_fit(self, num_types: int, num_genes: int) -> None:
        """
        Compare with a model.

        Raises
        ------
        ValueError
            If it has other types, or fewer genes.
        """
        if len(self.means) != num_types or self.genes.max() >= num_genes:
            raise ValueError(
                f"`{STUDY_TYPES}` must be for the {num_types} types and {num_genes:,} genes of its model, got "
                f"{len(self.means)} and gene {self.genes.max()}. Copy or export the directory again."
            )

    def adapt(self, values: NDArray[np.floating], measured: NDArray[np.bool_]) -> "FileTypes":
        """
        Find the units of a file, and which types it holds more of than usual.

        Parameters
        ----------
        values
            (n, M) log-normalised expression of its cells, or of some. Of fewer than `LEAST_CELLS`, and where nearly all
            seem to be of one type or two, the average study's units are taken: their own would hide what they are.
        measured
            (M,) which genes the file measured.

        Notes
        -----
        Where a file has many cells of a type, its marker genes are high on average, and the type looks like no other in
        units of the file. So the shares of types are found half in units of the file and half in those of the average
        study; what is expected of such shares is then taken into account. Names are given half by that, and half as if
        the shares were the usual ones, so that shares that were found wrongly do not decide alone.
        """
        usual = (self.usual_means, 1 / self.usual_deviations)
        as_usual = FileTypes(self, measured, (usual,))
        if len(values) < LEAST_CELLS:
            return as_usual
        largest = np.sort(self._share_types(as_usual.score_mixed(values)))[::-1]
        if largest[0] > MOST_OF_ONE or largest[:2].sum() > MOST_OF_TWO:  # some cells of one type may go to a near one
            return as_usual
        mean, deviation = values.mean(0), values.std(0)
        measured = measured & (deviation > LEAST_DEVIATION)
        plain = self._read_with(mean, deviation, self.shares)
        scores = FileTypes(self, measured, (plain, usual)).score_mixed(values)
        shares = SHARE_CORRECTED * self._share_types(scores) + (1 - SHARE_CORRECTED) * self.shares
        return FileTypes(self, measured, (plain, self._read_with(mean, deviation, shares)))

    def _share_types(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(scores.argmax(1), minlength=len(self.means)) / len(scores)

    def _read_with(self, mean: NDArray, deviation: NDArray, shares: NDArray) -> tuple[NDArray, NDArray]:
        """Give zero (M,) and slope (M,) of the shared units in a file with such shares of types."""
        expected, spread = self.expect(shares)
        slope = spread / np.where(deviation > LEAST_DEVIATION, deviation, 1.0)
        return mean - expected / slope, slope

    def read(
        self, cells: AlignedCells, rows: NDArray[np.int64], extractor: ScFusionTTTFeatureExtractor
    ) -> NDArray[np.float32]:
        """Give log-normalised expression (n, M) of some cells."""
        return extractor.normalise_rna(cells.rna[rows][:, self.genes].toarray(), cells.rna_total_counts[rows])

    def to_bytes(self) -> bytes:
        """Give the content of its file."""
        return safetensors.numpy.save(
            {f.name: np.ascontiguousarray(getattr(self, f.name), np.float32) for f in fields(self)}
        )

    @classmethod
    def load(cls, path: Path) -> "StudyTypes":
        """
        Read the file of a model directory.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        found = {name: len(info.shape) for name, info in read_header(path).items()}
        expected = {f.name: 2 if f.name in ("means", "factors") else 1 for f in fields(cls)}
        if found != expected:
            raise ValueError(
                f"{str(path)!r} must hold {sorted(expected)}, got {sorted(found)}. Export the model again."
            )
        arrays = safetensors.numpy.load_file(path)
        return cls(**arrays | {"genes": arrays["genes"].astype(np.int64)})


@dataclass(frozen=True)
class FileTypes:
    """
    Types as they are seen in one file.

    Attributes
    ----------
    types
        What is known of them.
    measured
        (M,) genes that are read.
    units
        Zeros (M,) and slopes (M,) of units in which cells are read in turn.
    """

    types: StudyTypes
    measured: NDArray[np.bool_]
    units: tuple[tuple[NDArray, NDArray], ...]

    def logits(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """
        Give logits (n, K) of cells from log-normalised expression (n, M).

        Their softmax is the mean over the units. Their energy, by which unknown cells are recognised, is how far a cell
        goes into the direction of the type that it goes furthest to: -1 for a cell like the mean of a type, 0 for one
        that is like no type more than another.
        """
        scores, reached = zip(*[self._score(self._convert(values, *units)) for units in self.units], strict=True)
        named = logsumexp([log_softmax(SHARPNESS * s, axis=1) for s in scores], axis=0) - np.log(len(scores))
        return named + np.mean(reached, axis=0)[:, None]

    def score_mixed(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Give log densities (n, K), up to what all types share, half way between all units."""
        return self._score(np.mean([self._convert(values, *units) for units in self.units], axis=0))[0]

    def _convert(self, values: NDArray, zero: NDArray, slope: NDArray) -> NDArray[np.float64]:
        return np.minimum((values - zero) * slope, LARGEST)[:, self.measured].astype(np.float64)

    def _score(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give log densities (n, K) of cells in shared units, up to what all types share, and how far they go (n,)."""
        noise, factors = self.types.noise[self.measured], self.types.factors[self.measured].astype(np.float64)
        means, known = self.types.means[:, self.measured].astype(np.float64), self.types.known > 0
        part = factors / noise[:, None]
        inner = np.linalg.inv(np.eye(factors.shape[1]) + factors.T @ part)
        weights = means / noise - (means @ part) @ inner @ part.T
        lengths, along = (means * weights).sum(1), x @ weights.T
        reached = (along[:, known] / np.maximum(lengths[known], LEAST_LENGTH)).max(1)
        scores = along - 0.5 * lengths
        return np.where(known, scores, scores.min(1, keepdims=True) + ABSENT), reached


def adapt_to_file(job: Job) -> FileTypes | None:
    """
    Read the types of a model in units of the file of a job; None for a model without such types, or a file without RNA.

    At most about `MOST_CELLS` cells are read for it, evenly over the file. A warning tells where the file is too small
    for units of its own, or seems to be of one type.
    """
    files = ModelFiles.open(job.loaded.path)
    if not files.holds(STUDY_TYPES) or not job.has_rna.any():
        return None
    types = StudyTypes.load(files.check_calibration(STUDY_TYPES))
    types.check_fit(job.model.config.num_labels, len(job.extractor.gene_ids))
    size = min(READ_ROWS, MOST_CELLS)
    step = size * max(1, round(len(job) / MOST_CELLS))
    values = []
    for start in range(0, len(job), step):
        end = min(start + size, len(job))
        rows = np.flatnonzero(job.has_rna[start:end])
        values.append(types.read(job.source.read(start, end), rows, job.extractor))
    measured = np.any(job.source.panels.rna, axis=0)[types.genes]
    found = types.adapt(np.concatenate(values), measured)
    if len(found.units) == 1:
        number = int(job.has_rna.sum())
        few = f"{number} cells are too few to tell how their study differs"
        one = "nearly all cells seem to be of one type or two, which hides how their study differs"
        warn(f"{few if number < LEAST_CELLS else one}: types are named as in an average study, which is less sure.")
    return found
