"""The file of a model directory that holds its intervals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.evaluation.calibration.intervals import SHOWN_FACTS, IntervalRule, ProteinIntervals

PROTEIN_INTERVALS = "protein_intervals.json"


def write_intervals(intervals: ProteinIntervals) -> str:
    """Give the file as text; infinite and undefined numbers are null."""
    content = {
        "levels": list(intervals.rule.levels),
        "min_pearson": intervals.rule.min_pearson,
        "min_group_cells": intervals.rule.min_group_cells,
        "num_left_out": intervals.num_left_out,
        "proteins": intervals.names,
        "table": {k: _to_list(v) for k, v in intervals.table.items()},
        "half_widths": [_to_list(row) for row in intervals.half_widths],
        "groups": {k: [_to_list(row) for row in v] for k, v in intervals.group_half_widths.items()},
    }
    return json.dumps(content, allow_nan=False, indent=1) + "\n"


def read_intervals(path: Path) -> ProteinIntervals:
    """
    Read what `write_intervals` gave.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        content = json.loads(path.read_text())
        rule = IntervalRule(tuple(content["levels"]), content["min_pearson"], content["min_group_cells"])
        names = list(content["proteins"])
        table = pd.DataFrame({k: _from_list(v, np.nan) for k, v in content["table"].items()}, index=names)
        shape = (len(rule.levels), len(names))
        pooled = _matrix(content["half_widths"], shape, np.inf)
        groups = {k: _matrix(v, shape, np.nan) for k, v in content["groups"].items()}
        table["n"] = table["n"].astype(int)
        num_left_out = int(content.get("num_left_out", 0))  # files of the first releases have none
        return ProteinIntervals(names, rule, table.loc[:, list(SHOWN_FACTS)], pooled, groups, num_left_out)
    except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"`{path.name}` must be a file that fine-tuning wrote, got a damaged one in {str(path.parent)!r} "
            f"({error}); copy the model directory anew."
        ) from error


def _to_list(values: Any) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in values]


def _from_list(values: list[float | None], missing: float) -> list[float]:
    return [missing if x is None else float(x) for x in values]


def _matrix(rows: list[list[float | None]], shape: tuple[int, int], missing: float) -> NDArray[np.float64]:
    matrix = np.array([_from_list(row, missing) for row in rows], dtype=np.float64)
    if matrix.shape != shape:
        raise ValueError(f"half widths must have the shape {shape}, got {matrix.shape}")
    return matrix
