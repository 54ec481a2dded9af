"""
The figures of a model card: scores on studies that a model has not seen, with intervals, beside baselines.

They come from runs of `scfusion evaluate` in which each experiment tests one study. Letters: n test cells, P proteins.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.comparison.evaluation import UNITS
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.records import read_record

DRAWS = 200
SMALL = 0.02
"""Differences below it mean nothing (docs/experiments.md)."""
METRICS = {"annotation": "macro-F1", "protein_from_rna": "Pearson's r, mean of the proteins"}


@dataclass(frozen=True)
class StudyFigure:
    """
    The score of a method on a study.

    Attributes
    ----------
    task
        `annotation` or `protein_from_rna`.
    study
        Name of the experiment.
    method, kind
        Its name, and "model" or "baseline".
    cells
        Test cells.
    scores
        One for each seed.
    low, high
        95 % interval of their mean, over draws of the test cells.
    """

    task: str
    study: str
    method: str
    kind: str
    cells: int
    scores: list[float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 of a single one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0


def read_figures(run: Path) -> list[StudyFigure]:
    """
    Read the figures of a run of `scfusion evaluate`.

    Raises
    ------
    ValueError
        If there are none, or a file is damaged.
    """
    records = [
        read_record(path, "remove it, and run `scfusion evaluate` again") for path in (run / UNITS).glob("*.json")
    ]
    if not records:
        raise ValueError(f"`run` must be a directory of `scfusion evaluate` with results, got none in {str(run)!r}.")
    studies: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda record: (record["experiment"], record["seed"])):
        with np.load(run / UNITS / f"{record['id']}.npz") as arrays:
            studies.setdefault(record["experiment"], []).append(record | {"read": dict(arrays)})
    return [figure for study, units in studies.items() for figure in _score_study(study, units)]


def _score_study(study: str, units: list[dict]) -> Iterable[StudyFigure]:
    task = units[0]["made_with"]["settings"]["task"]
    methods = {(row["method"], row["kind"]): row["inputs"] for row in units[0]["scores"]}
    num_cells = len(units[0]["read"]["cells"])
    draws = np.random.default_rng(0).integers(num_cells, size=(DRAWS, num_cells))
    for (method, kind), inputs in methods.items():
        name = f"{method} ({inputs})" if task == "annotation" else method
        scores = [_score(task, unit["read"], name) for unit in units]
        drawn = [np.mean([_score(task, unit["read"], name, rows) for unit in units]) for rows in draws]
        low, high = np.percentile(drawn, (2.5, 97.5))
        yield StudyFigure(task, study, method, kind, num_cells, scores, float(low), float(high))


def _score(task: str, arrays: dict[str, NDArray], name: str, rows: NDArray | None = None) -> float:
    chosen = slice(None) if rows is None else rows
    if task == "annotation":
        return annotation_scores(arrays["labels"][chosen], arrays[name][chosen])["macro_f1"]
    measured, predicted = arrays["measured"][chosen], arrays[name][chosen]
    if rows is None:
        return protein_scores(measured, predicted, np.isfinite(measured))[1]["pearson_per_protein"]
    return float(np.nanmean(correlate(measured, predicted)))


def correlate(measured: NDArray, predicted: NDArray) -> NDArray[np.float64]:
    """Give Pearson's r of proteins that all cells (n, P) have or none, (P,): 0 where a prediction is constant."""
    kept = np.isfinite(measured).all(axis=0)
    x, y = (values[:, kept].astype(np.float64) for values in (measured, predicted))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x * y).sum(axis=0) / np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    r = np.where((np.ptp(y, axis=0) == 0) & (np.ptp(x, axis=0) > 0), 0.0, r)
    found = np.full(len(kept), np.nan)
    found[kept] = r
    return found


def save_figures(figures: list[StudyFigure], path: Path) -> None:
    """Write them, rounded, as JSON."""
    rows = [dataclasses.asdict(figure) for figure in figures]
    for row in rows:
        row["scores"] = [round(score, 4) for score in row["scores"]]
        row |= {"low": round(row["low"], 4), "high": round(row["high"], 4)}
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")


def load_figures(path: Path) -> list[StudyFigure]:
    """
    Read what `save_figures` wrote.

    Raises
    ------
    ValueError
        If the file is missing or another.
    """
    try:
        return [StudyFigure(**row) for row in json.loads(path.read_text())]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"`{path}` must hold the figures of a model, got none ({error}). Make it again.") from error


def compare_figures(before: list[StudyFigure], now: list[StudyFigure]) -> list[str]:
    """
    Say where the figures of a model are not those of another, beyond the spread over seeds.

    Twice the spread of the difference of two means over seeds is allowed, and `SMALL` at least.
    """
    models = {(f.task, f.study): f for f in before if f.kind == "model"}
    others = {(f.task, f.study): f for f in now if f.kind == "model"}
    told = [f"{study}: no figure" for task, study in sorted(models.keys() ^ others.keys())]
    for key in sorted(models.keys() & others.keys()):
        old, new = models[key], others[key]
        parts = [figure.spread**2 / len(figure.scores) for figure in (old, new)]
        allowed = max(SMALL, 2 * float(np.sqrt(sum(parts))))
        if abs(new.mean - old.mean) > allowed:
            told.append(
                f"{key[1]}: {METRICS[key[0]]} {new.mean:.3f}, was {old.mean:.3f}; up to {allowed:.3f} is spread"
            )
    return told
