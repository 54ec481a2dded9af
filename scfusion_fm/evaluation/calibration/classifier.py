"""What held-out cells tell of a classifier: a temperature for its probabilities, and when to say `unknown`.

Letters: n calibration cells, K classes, D width of the embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from scfusion_fm.evaluation.calibration.unknown import CellOutputs, ClassGaussians, reject_thresholds, score_unknown
from scfusion_fm.untrusted.checksums import read_bounded
from scfusion_fm.untrusted.rules import (
    ListOf,
    MapOf,
    Maybe,
    Number,
    Numbers,
    Record,
    Text,
    Whole,
    parse_bytes,
    render,
    ruled,
)

ANNOTATION_CALIBRATION = "annotation_calibration.json"
REJECT_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
SERVED_SCORES = ("max_softmax", "energy", "mahalanobis")
LOG_TEMPERATURES = (-3.0, 4.0)
KINDS = ("rna", "adt", "rna+adt")
LARGEST_FILE = 1 << 26


@dataclass(frozen=True)
class GaussiansFile:
    """What the file holds of `ClassGaussians`: (K, D) and (D, D)."""

    means: list[list[float]] = ruled(ListOf(Numbers()))
    whitening: list[list[float]] = ruled(ListOf(Numbers()))

    def __post_init__(self) -> None:
        width = len(self.whitening)
        if not self.means or not width or any(len(row) != width for row in (*self.means, *self.whitening)):
            raise ValueError("`means` and `whitening` must fit one another, at least one row, got other shapes")


@dataclass(frozen=True)
class InputFile:
    """What the file holds of `InputCalibration`; an infinite threshold is null."""

    n: int = ruled(Whole(1, 1 << 40))
    temperature: float = ruled(Number(1e-6, 1e6))
    thresholds: dict[str, float | None] = ruled(MapOf(Maybe(Number()), most=1000))
    gaussians: GaussiansFile | None = ruled(Maybe(Record(GaussiansFile)))


@dataclass(frozen=True)
class CalibrationFile:
    """What the file holds of `AnnotationCalibration`."""

    classes: list[str] = ruled(ListOf(Text(), unique=True))
    score: str = ruled(Text(SERVED_SCORES))
    inputs: dict[str, InputFile] = ruled(MapOf(Record(InputFile), most=len(KINDS)))

    def __post_init__(self) -> None:
        Text(KINDS).read(next((name for name in self.inputs if name not in KINDS), KINDS[0]), "inputs")
        rates = [set(found.thresholds) for found in self.inputs.values()]
        if any(other != rates[0] for other in rates) or not all(_is_rate(rate) for rate in set().union(*rates)):
            raise ValueError("`thresholds` must have the same rates for all inputs, each in (0, 1)")
        gaussians = [found.gaussians for found in self.inputs.values()]
        if (self.score == "mahalanobis") != all(g is not None for g in gaussians) and gaussians:
            raise ValueError(f"`gaussians` must be there for the score mahalanobis alone, got the score {self.score}")
        widths = {len(g.whitening) for g in gaussians if g is not None}
        if len(widths) > 1 or any(len(g.means) > len(self.classes) for g in gaussians if g is not None):
            raise ValueError("`gaussians` must have one width, and no more means than classes, got others")


@dataclass(frozen=True)
class InputCalibration:
    """
    What was calibrated on cells that were shown with the same modalities.

    Attributes
    ----------
    n
        How many.
    temperature
        What logits are divided by.
    thresholds
        Unknown scores above which a cell is called unknown, by false-reject rate; infinite where n is too small.
    gaussians
        Of the training cells, for the score that needs them.
    """

    n: int
    temperature: float
    thresholds: dict[float, float]
    gaussians: ClassGaussians | None = None


@dataclass(frozen=True)
class AnnotationCalibration:
    """
    Temperature and thresholds of a classifier, by what is shown of a cell.

    Attributes
    ----------
    classes
        (K,) cell types.
    score
        How unknown cells are recognised, one of `SERVED_SCORES`.
    inputs
        By `rna`, `adt` or `rna+adt`.

    Notes
    -----
    A false-reject rate is promised and a false-accept rate is not: see `reject_thresholds`. The score does not use the
    temperature, so that fitting it on the same cells does not weaken the promise.
    """

    classes: list[str]
    score: str
    inputs: dict[str, InputCalibration]

    def __post_init__(self):
        check_served_score(self.score)

    def scale(self, logits: NDArray[np.floating], kind: str) -> NDArray[np.floating]:
        """Divide logits of cells that are shown alike by their temperature, if there is one."""
        return logits / self.inputs[kind].temperature if kind in self.inputs else logits

    def probabilities(self, logits: ArrayLike, kinds: ArrayLike) -> NDArray[np.float64]:
        """Turn logits, (m, K), into probabilities; without a temperature where a kind of input has none."""
        logits = np.array(logits, np.float64)
        for rows, found in self._parts(kinds):
            logits[rows] /= found.temperature
        return softmax(logits, axis=1)

    def unknown_scores(self, cells: CellOutputs, kinds: ArrayLike) -> NDArray[np.float64]:
        """Score cells, (m,); NaN where a kind of input was not calibrated."""
        scores = np.full(len(cells.logits), np.nan)
        for rows, found in self._parts(kinds):
            scores[rows] = score_unknown(self.score, cells.take(rows), found.gaussians)
        return scores

    def is_unknown(self, scores: ArrayLike, kinds: ArrayLike, rate: float) -> NDArray[np.bool_]:
        """
        Tell which cells are rejected, (m,), at a false-reject rate; none of a kind that was not calibrated.

        Raises
        ------
        ValueError
            If the rate was not calibrated.
        """
        scores, unknown = np.asarray(scores), np.zeros(len(np.asarray(kinds)), dtype=bool)
        if rate not in self.rates:
            raise ValueError(f"`reject_rate` must be one of the calibrated {self.rates}, got {rate}.")
        for rows, found in self._parts(kinds):
            unknown[rows] = scores[rows] > found.thresholds[rate]
        return unknown

    @property
    def rates(self) -> list[float]:
        """False-reject rates that were calibrated."""
        return sorted({rate for found in self.inputs.values() for rate in found.thresholds})

    def _parts(self, kinds: ArrayLike) -> Iterator[tuple[NDArray[np.int64], InputCalibration]]:
        kinds = np.asarray(kinds)
        for name, found in self.inputs.items():
            rows = np.flatnonzero(kinds == name)
            if len(rows):
                yield rows, found

    @property
    def width(self) -> int | None:
        """Width of the embedding that the score reads (D); None where it reads none."""
        widths = [found.gaussians.means.shape[1] for found in self.inputs.values() if found.gaussians is not None]
        return widths[0] if widths else None

    def to_json(self) -> str:
        """Give the file as text; an infinite threshold is null."""
        inputs = {
            name: InputFile(
                found.n,
                found.temperature,
                {str(r): float(t) if np.isfinite(t) else None for r, t in found.thresholds.items()},
                _write_gaussians(found.gaussians),
            )
            for name, found in self.inputs.items()
        }
        return render(CalibrationFile(self.classes, self.score, inputs))

    @classmethod
    def load(cls, path: Path) -> "AnnotationCalibration":
        """
        Read what `to_json` gave.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        content = parse_bytes(CalibrationFile, read_bounded(path, LARGEST_FILE), str(path), ignored=("weights_sha256",))
        inputs = {}
        for name, found in content.inputs.items():
            thresholds = {float(r): np.inf if t is None else float(t) for r, t in found.thresholds.items()}
            gaussians = _read_gaussians(found.gaussians)
            inputs[name] = InputCalibration(found.n, float(found.temperature), thresholds, gaussians)
        return cls(content.classes, content.score, inputs)


def check_served_score(name: str) -> None:
    """Refuse a score that a model directory cannot hold."""
    if name not in SERVED_SCORES:
        raise ValueError(f"`unknown_score` must be one of {list(SERVED_SCORES)}, got {name!r}.")


def calibrate_input(
    cells: CellOutputs,
    codes: ArrayLike,
    score: str = "max_softmax",
    gaussians: ClassGaussians | None = None,
) -> InputCalibration:
    """
    Calibrate on held-out cells of known types.

    Parameters
    ----------
    cells
        Outputs for them.
    codes
        (n,) index of their true class.
    score
        How unknown cells are recognised.
    gaussians
        Of the training cells, for `mahalanobis`.
    """
    scores = score_unknown(score, cells, gaussians)
    thresholds = dict(zip(REJECT_RATES, reject_thresholds(scores, REJECT_RATES).tolist(), strict=True))
    kept = gaussians if score == "mahalanobis" else None
    return InputCalibration(len(scores), fit_temperature(cells.logits, codes), thresholds, kept)


def fit_temperature(logits: ArrayLike, codes: ArrayLike) -> float:
    """
    Fit the number that logits are to be divided by, so that held-out cells are most probable (Guo et al. 2017).

    Parameters
    ----------
    logits
        (n, K).
    codes
        (n,) index of the true class.

    Returns
    -------
    Between e^-3 and e^4: classes that held-out cells confirm without exception would make it 0.

    Raises
    ------
    ValueError
        If there are no cells, lengths differ or a code is no class.
    """
    logits, codes = np.asarray(logits, np.float64), np.asarray(codes)
    if len(logits) != len(codes) or not len(codes) or not ((codes >= 0) & (codes < logits.shape[1])).all():
        raise ValueError(
            f"`codes` must give one of {logits.shape[-1]} classes for each of {len(logits)} cells, at least one, got "
            f"{len(codes)} from {codes.min(initial=0)} to {codes.max(initial=0)}."
        )

    def loss(log_temperature: float) -> float:
        shares = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(shares[np.arange(len(codes)), codes].mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def _write_gaussians(found: ClassGaussians | None) -> GaussiansFile | None:
    return None if found is None else GaussiansFile(found.means.tolist(), found.whitening.tolist())


def _read_gaussians(found: GaussiansFile | None) -> ClassGaussians | None:
    return None if found is None else ClassGaussians(np.array(found.means), np.array(found.whitening))
