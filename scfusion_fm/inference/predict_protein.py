"""`predict_protein`: proteins from RNA, with the intervals that a model was calibrated for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.data.files.coverage import MIN_COVERAGE
from scfusion_fm.data.files.readers import Container, Given
from scfusion_fm.data.schema import Modality, read_categories
from scfusion_fm.evaluation.calibration.deviations import FileScale, find_ends
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, read_intervals
from scfusion_fm.evaluation.calibration.intervals import ProteinIntervals
from scfusion_fm.inference.batches import CellCollator, predict_fields
from scfusion_fm.inference.job import Job, Use
from scfusion_fm.inference.loaded import load
from scfusion_fm.inference.model_files import ModelFiles
from scfusion_fm.inference.names import name_proteins
from scfusion_fm.inference.study_units import LEAST_CELLS, in_study_units, sample_cells
from scfusion_fm.model import ScFusionTTTForCrossModalPrediction
from scfusion_fm.notices import tell

LEAST_PANEL = 3  # proteins that predictions are centred over
Unit = Literal["clr", "deviations"]
UNITS = {"clr": "CLR", "deviations": "deviations of the protein over cells of a study, from its mean over the file"}


@dataclass(frozen=True)
class IntervalRequest:
    """
    What a user asks of the intervals around predicted proteins.

    Parameters
    ----------
    level
        Nominal coverage, one of the calibrated ones; 0.9 when None.
    group_key
        Column of obs whose groups get their own intervals where the model has some; none when None.
    drop_undetermined
        Whether proteins that RNA was not shown to determine become NaN.
    unit
        Of predictions and intervals: `clr`, or `deviations` from the mean of the file.

    Raises
    ------
    ValueError
        If there is no such unit.
    """

    level: float | None = None
    group_key: str | None = None
    drop_undetermined: bool = False
    unit: Unit = "clr"

    def __post_init__(self):
        if self.unit not in UNITS:
            raise ValueError(f"`unit` must be one of {list(UNITS)}, got {self.unit!r}.")

    @property
    def asked(self) -> bool:
        """Whether any of it was asked for."""
        return self != IntervalRequest()

    def check(self, intervals: ProteinIntervals) -> None:
        """
        Compare with the intervals of a model.

        Raises
        ------
        ValueError
            If the level was not calibrated, or deviations are asked of a model that has none.
        """
        if _level_of(self) not in intervals.rule.levels:
            raise ValueError(
                f"`level` must be one of the calibrated {list(intervals.rule.levels)}, got {_level_of(self)}."
            )
        if self.unit == "deviations" and intervals.relative is None:
            raise ValueError(
                "`model` must have intervals for new groups for `unit='deviations'`, got one without; fine-tune it "
                "with `interval_left_out_key`, or take `unit='clr'`."
            )


def predict_protein(
    adata: Given,
    model: Any,
    *,
    output: str | Path | None = None,
    copy: bool = False,
    key_added: str = "protein_scfusion_ttt",
    proteins: Sequence[str] | None = None,
    unit: Unit = "clr",
    level: float | None = None,
    group_key: str | None = None,
    drop_undetermined: bool = False,
    modality: Modality = "auto",
    batch_key: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Container | None:
    """
    Predict proteins from RNA: `obsm["protein_scfusion_ttt"]`, a table with a column per protein, in CLR units.

    A model with calibrated intervals adds their ends in `obsm["protein_scfusion_ttt_lower"]` and `_upper`, and tells
    in `uns` which proteins RNA was not shown to determine. Proteins that the input measures have the names that they
    have there, others those of the model; `uns["scfusion_ttt"]["predict-protein"]` has both.

    Parameters
    ----------
    adata, model, output, copy, modality, batch_key, batch_size, device, min_coverage
        As in `embed`; the model is one that was fine-tuned to predict proteins.
    key_added
        Name in `obsm`.
    proteins
        Which proteins, by their names in the input or in the model; all that the model predicts when None.
    unit
        `clr`, the centred log ratio; or `deviations`: how far a cell lies from the mean of the file, 1 being the
        deviation of the protein over the cells of a study. RNA of a new study tells these better than the level of a
        protein, which is that of a staining.
    level
        Share of measured values that intervals shall hold, one that the model was calibrated for; 0.9 when None.
    group_key
        Column of obs whose groups get intervals of their own, where the model has some.
    drop_undetermined
        Whether proteins that RNA was not shown to determine become NaN.

    Returns
    -------
    As `embed`.

    Raises
    ------
    ValueError
        If the model, the cells or a setting is refused; if intervals are asked of a model without, the level was not
        calibrated, the column of groups is missing, or a protein is unknown; if deviations are asked of a model without
        intervals for new groups, or of a file with fewer than 50 cells.
    """
    wanted = IntervalRequest(level, group_key, drop_undetermined, unit)
    loaded = load(model)
    intervals = load_intervals(loaded.path, wanted)
    keys = [key_added] if intervals is None else [key_added, f"{key_added}_lower", f"{key_added}_upper"]
    use = Use(output, copy, key_added, modality, batch_size, device, batch_key, min_coverage)
    with Job.start(adata, loaded, use, ScFusionTTTForCrossModalPrediction, [("obsm", key) for key in keys]) as job:
        names = _names_of_model(job, intervals)
        panel = name_proteins(names, job.source, proteins)
        groups = _find_groups(job, group_key)
        places = job.extractor.index_proteins(names)
        tables = {key: job.add_table(key, len(panel), list(panel)) for key in keys}
        centre = _choose_centre(job, places, list(panel.values()))
        with in_study_units(job):
            relative = intervals.relative if intervals is not None and unit == "deviations" else None
            scale = None if relative is None else _scale_to_file(job, relative.deviations, places, centre)
            for part, (logits,) in job.forward(("logits",), job.has_rna, ("rna",)):
                found = {key_added: _take_centre(logits[:, places], centre)}
                if intervals is not None:
                    group = None if groups is None else groups[part]
                    found = _add_ends(key_added, found[key_added], intervals, wanted, group, scale)
                for key, values in found.items():
                    tables[key].write(part, values[:, list(panel.values())])
        facts = {"obsm": key_added, "unit": UNITS[unit], "proteins": list(panel)}
        facts |= {"model_proteins": [names[place] for place in panel.values()]}
        facts |= {} if centre is None else {"centred_over": [names[place] for place in np.flatnonzero(centre)]}
        told = {} if intervals is None else _describe_intervals(intervals, wanted, {p: n for n, p in panel.items()})
        if told.get("level_unknown"):
            tell(
                f"RNA does not tell the level of {len(told['level_unknown'])} of {len(panel)} proteins in a new study: "
                "compare cells of this file, or take deviations for the unit"
            )
        return job.finish("predict-protein", facts | told)


def load_intervals(model: Path, wanted: IntervalRequest) -> ProteinIntervals | None:
    """
    Load the intervals of a model directory; None if it has none and none are asked for.

    Raises
    ------
    ValueError
        If intervals are asked of a model without, or others than it has.
    """
    files = ModelFiles.open(model)
    if not files.holds(PROTEIN_INTERVALS):
        if wanted.asked:
            raise ValueError(
                f"`model` must hold {PROTEIN_INTERVALS} for `level`, `group_key`, `drop_undetermined` and deviations, "
                f"got none in {str(model)!r}; fine-tune with finetune/cross_modal_prediction.py."
            )
        return None
    intervals = read_intervals(files.check_calibration(PROTEIN_INTERVALS))
    wanted.check(intervals)
    return intervals


def _level_of(wanted: IntervalRequest) -> float:
    return 0.9 if wanted.level is None else wanted.level


def _names_of_model(job: Job, intervals: ProteinIntervals | None) -> list[str]:
    """Give the proteins that the model predicts; refuse one that cannot."""
    config = job.model.config
    if config.target_modality != "adt":
        raise ValueError(f"`model` must predict adt, got one that predicts {config.target_modality!r}.")
    if job.source.cells.rna is None:
        raise ValueError(f"`input` must hold RNA to predict proteins from, got none in {job.source.cells.path!r}.")
    names = config.predicted_features or job.extractor.protein_names
    if intervals is not None and intervals.names != names:
        raise ValueError(f"`model` must have intervals for the proteins it predicts, got {intervals.names}.")
    return names


def _choose_centre(job: Job, places: NDArray[np.int64], asked: list[int]) -> NDArray[np.bool_] | None:
    """
    Choose the proteins, of those at `places`, that predictions are centred over; None for a model that gives CLR.

    They are those that the input measures, so that both can be compared; else those that were asked for, unless these
    are so few that their mean is one of them.
    """
    if not job.model.config.study_genes:
        return None
    measured = np.any(job.source.panels.adt, axis=0)[places]
    if measured.sum() >= LEAST_PANEL:
        return measured
    centre = np.zeros(len(places), bool)
    centre[asked if len(asked) >= LEAST_PANEL else slice(None)] = True
    return centre


def _take_centre(levels: NDArray[np.float32], panel: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    return levels if panel is None else levels - levels[:, panel].mean(1, keepdims=True)


def _find_groups(job: Job, group_key: str | None) -> NDArray[np.object_] | None:
    obs = job.source.cells.obs
    if group_key is not None and group_key not in obs:
        raise ValueError(f"`group_key` must be a column of obs, got {group_key!r}; it has {list(obs.columns)}.")
    return None if group_key is None else read_categories(obs[group_key])


def _scale_to_file(
    job: Job, deviations: NDArray[np.float64], places: NDArray[np.int64], centre: NDArray[np.bool_] | None
) -> FileScale:
    """Find mean and variance of predictions over the file, from at most about 20,000 cells of it."""
    number = int(job.has_rna.sum())
    if number < LEAST_CELLS:
        raise ValueError(
            f"`unit='deviations'` needs at least {LEAST_CELLS} cells with RNA, got {number}; take `unit='clr'`."
        )
    total, squares, count = np.zeros(len(places)), np.zeros(len(places)), 0
    for cells, rows in sample_cells(job):
        collator = CellCollator(cells, job.extractor)
        (logits,) = predict_fields(job.model, collator, rows, ("logits",), ("rna",), job.batch_size)
        values = _take_centre(logits[:, places], centre).astype(np.float64)
        total, squares, count = total + values.sum(0), squares + np.square(values).sum(0), count + len(rows)
    means = total / count
    return FileScale.of(means, np.maximum(squares / count - means**2, 0.0), deviations)


def _add_ends(
    key: str,
    predicted: NDArray[np.float32],
    intervals: ProteinIntervals,
    wanted: IntervalRequest,
    groups: NDArray[np.object_] | None,
    scale: FileScale | None,
) -> dict[str, NDArray[np.float32]]:
    """Give the predictions, and the ends of their intervals."""
    level = _level_of(wanted)
    if scale is None:
        widths = intervals.widths(level, len(predicted), groups)
        lower, upper = predicted - widths, predicted + widths
    else:
        predicted = scale.apply(predicted).astype(np.float32)
        lower, upper = find_ends(predicted, intervals.relative_widths(level, scale.rest))
    dropped = intervals.undetermined & wanted.drop_undetermined
    found: dict[str, NDArray] = {key: predicted, f"{key}_lower": lower, f"{key}_upper": upper}
    return {name: np.where(dropped, np.nan, values).astype(np.float32) for name, values in found.items()}


def _describe_intervals(intervals: ProteinIntervals, wanted: IntervalRequest, panel: dict[int, str]) -> dict[str, Any]:
    """Give what the provenance tells of intervals; proteins are those at some places, by their names."""
    level = _level_of(wanted)

    def pick(chosen: NDArray[np.bool_]) -> list[str]:
        return [name for place, name in panel.items() if chosen[place]]

    return {
        "level": level,
        "undetermined": pick(intervals.undetermined),
        "undetermined_dropped": wanted.drop_undetermined,
        "without_interval": pick(intervals.without_interval(level, wanted.unit == "deviations")),
        "level_unknown": pick(intervals.level_unknown) if wanted.unit == "clr" else [],
        "interval_groups": wanted.group_key or "",
        "made_for_new_groups": intervals.num_left_out > 0,
    }
