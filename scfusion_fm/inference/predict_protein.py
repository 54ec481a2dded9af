"""`scfusion predict-protein`: proteins from RNA, with the intervals that a model was calibrated for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.data.schema import read_categories
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, read_intervals
from scfusion_fm.evaluation.calibration.intervals import ProteinIntervals
from scfusion_fm.inference.job import FileRequest, Job
from scfusion_fm.inference.model_files import ModelFiles
from scfusion_fm.model import ScFusionTTTForCrossModalPrediction


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
    """

    level: float | None = None
    group_key: str | None = None
    drop_undetermined: bool = False

    @property
    def asked(self) -> bool:
        """Whether any of it was asked for."""
        return self != IntervalRequest()


def predict_protein(request: FileRequest, wanted: IntervalRequest | None = None) -> None:
    """
    Write predicted proteins (CLR units) to `obsm["protein_scfusion_ttt"]`, a table with protein names.

    A model with calibrated intervals adds their ends in `obsm["protein_scfusion_ttt_lower"]` and `_upper`, and tells
    in `uns` which proteins RNA was not shown to determine.

    Raises
    ------
    ValueError
        If intervals are asked of a model without, the level was not calibrated, or the column of groups is missing.
    """
    key = request.key_added or "protein_scfusion_ttt"
    wanted = wanted or IntervalRequest()
    intervals = load_intervals(request.model, wanted)
    keys = [key] if intervals is None else [key, f"{key}_lower", f"{key}_upper"]
    job = Job.start(request, ScFusionTTTForCrossModalPrediction, [("obsm", k) for k in keys])
    config = job.model.config
    if config.target_modality != "adt":
        raise ValueError(f"`model` must predict adt, got one that predicts {config.target_modality!r}.")
    if job.cells.rna is None:
        raise ValueError(f"`input` must hold RNA to predict proteins from, got none in {str(request.input)!r}.")
    names = config.predicted_features or job.extractor.protein_names
    if intervals is not None and intervals.names != names:
        raise ValueError(f"`model` must have intervals for the proteins it predicts, got {intervals.names}.")
    groups = _find_groups(job, wanted.group_key)
    columns = job.extractor.index_proteins(names)
    (logits,) = job.forward(("logits",), job.aligned.rna_present, ("rna",))
    predicted = logits[:, columns]
    tables, facts = {key: predicted}, {"obsm": key, "unit": "CLR", "proteins": names}
    if intervals is not None:
        tables, told = _add_intervals(key, predicted, intervals, wanted, groups)
        facts |= told
    for name, values in tables.items():
        values = job.rows_of_container(values)
        job.container.obsm[name] = pd.DataFrame(values, columns=names, index=job.container.obs_names)
    job.finish("predict-protein", facts)


def load_intervals(model: Path, wanted: IntervalRequest) -> ProteinIntervals | None:
    """
    Load the intervals of a model directory; None if it has none and none are asked for.

    Raises
    ------
    ValueError
        If intervals are asked of a model without, or the level was not calibrated.
    """
    files = ModelFiles.open(model)
    if not files.holds(PROTEIN_INTERVALS):
        if wanted.asked:
            raise ValueError(
                f"`model` must hold {PROTEIN_INTERVALS} for --level, --group-key and --drop-undetermined, got none in "
                f"{str(model)!r}; fine-tune with finetune/cross_modal_prediction.py."
            )
        return None
    intervals = read_intervals(files.check_calibration(PROTEIN_INTERVALS))
    level = _level_of(wanted)
    if level not in intervals.rule.levels:
        raise ValueError(f"`--level` must be one of the calibrated {list(intervals.rule.levels)}, got {level}.")
    return intervals


def _level_of(wanted: IntervalRequest) -> float:
    return 0.9 if wanted.level is None else wanted.level


def _find_groups(job: Job, group_key: str | None) -> NDArray[np.object_] | None:
    obs = job.cells.obs
    if group_key is not None and group_key not in obs:
        raise ValueError(f"`--group-key` must be a column of obs, got {group_key!r}; it has {list(obs.columns)}.")
    return None if group_key is None else read_categories(obs[group_key])


def _add_intervals(
    key: str,
    predicted: NDArray[np.float32],
    intervals: ProteinIntervals,
    wanted: IntervalRequest,
    groups: NDArray[np.object_] | None,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Give the tables of predictions and ends, and what the provenance tells of them."""
    level = _level_of(wanted)
    widths = intervals.widths(level, len(predicted), groups)
    undetermined = intervals.undetermined
    if wanted.drop_undetermined:
        predicted = np.where(undetermined, np.nan, predicted)
    ends = {f"{key}_lower": predicted - widths, f"{key}_upper": predicted + widths}
    tables = {key: predicted} | {k: v.astype(np.float32) for k, v in ends.items()}
    facts = {
        "level": level,
        "undetermined": [n for n, u in zip(intervals.names, undetermined, strict=True) if u],
        "undetermined_dropped": wanted.drop_undetermined,
        "without_interval": [n for n, u in zip(intervals.names, intervals.without_interval(level), strict=True) if u],
        "interval_groups": wanted.group_key or "",
        "made_for_new_groups": intervals.num_left_out > 0,
    }
    return tables, facts
