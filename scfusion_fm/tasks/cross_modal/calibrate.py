"""Intervals of a fine-tuned predictor of proteins, from cells that it did not learn from, and how often they hold."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.config.finetune import CrossModalConfig
from scfusion_fm.data.schema import read_categories
from scfusion_fm.evaluation.calibration.conformal import coverage_by
from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals, fit_left_out_intervals
from scfusion_fm.evaluation.calibration.intervals import ProteinIntervals
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.notices import tell
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.cross_modal.fit import FittedCrossModal, fit_cross_modal
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.weights import Weights
from scfusion_fm.untrusted.text import show_text

MIN_LEFT_OUT = 3
CALIBRATED = "intervals"


def read_groups(obs: pd.DataFrame, key: str | None) -> NDArray[np.object_] | None:
    """
    Read a column of obs, None where a cell has no value; None without a key.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    if key is None:
        return None
    if key not in obs:
        raise ValueError(f"`{key}` must be a column of obs, to group cells by; it has {list(obs.columns)}.")
    return read_categories(obs[key])


def read_left_out(obs: pd.DataFrame, config: CrossModalConfig, partition: Partition) -> NDArray[np.object_] | None:
    """
    Read the groups to leave out in turn; None without a key.

    Raises
    ------
    ValueError
        If intervals by group are asked for, too, there are no test cells, a cell that is not a test cell has no group,
        or there are fewer than three groups.
    """
    key = config.interval_left_out_key
    if key is None:
        return None
    if config.interval_group_key is not None:
        raise ValueError(
            "`interval_left_out_key` makes intervals for new groups, and `interval_group_key` some for known ones; "
            f"got both, {key!r} and {config.interval_group_key!r}: choose one."
        )
    groups = read_groups(obs, key)
    used = pd.Series(groups[partition.known])
    if used.isna().any() or used.nunique() < MIN_LEFT_OUT:
        raise ValueError(
            f"`interval_left_out_key` must name at least {MIN_LEFT_OUT} groups of cells that are not test cells, and "
            f"one for each such cell, got {used.nunique()} in {key!r}, and {int(used.isna().sum())} cells without."
        )
    if not len(partition.test):
        raise ValueError(f"`interval_left_out_key` needs test cells to score, got none with {key!r}; set `split`.")
    return groups


def calibrate_intervals(
    data: PairedCells, rows: NDArray[np.int64], fitted: FittedCrossModal, groups: NDArray[np.object_] | None
) -> ProteinIntervals:
    """Calibrate on cells that neither trained nor chose the epoch."""
    arrays = data.measured[rows], fitted.predict(rows), data.observed[rows]
    return fit_intervals(*arrays, data.names, None if groups is None else groups[rows])


def calibrate_for_new_groups(
    weights: Weights,
    data: PairedCells,
    partition: Partition,
    settings: FitSettings,
    groups: NDArray[np.object_],
) -> ProteinIntervals:
    """
    Calibrate on the cells of each group, predicted by a model of its own that was fitted without the group.

    Every such fit draws as large a share of its cells for validation as the partition has: a group may hold them all.
    """
    known = partition.known
    predicted = np.zeros((len(known), len(data.names)), np.float32)
    names = pd.unique(groups[known])
    for number, name in enumerate(names, 1):
        tell(f"intervals: fit {number} of {len(names)}, without {show_text(name)}")
        own = groups[known] == name
        kept = np.random.default_rng([settings.seed, number]).permutation(known[~own])
        num_val = max(1, round(len(kept) * len(partition.val) / len(known)))
        part = Partition(train=kept[num_val:], val=kept[:num_val])
        fitted = fit_cross_modal(weights, data, part, settings.part(f"without_{number}"))
        predicted[own] = fitted.predict(known[own])
    arrays = data.measured[known], predicted, data.observed[known]
    return fit_left_out_intervals(*arrays, data.names, groups[known])


def measure_coverage(
    data: PairedCells,
    rows: NDArray[np.int64],
    intervals: ProteinIntervals,
    predicted: NDArray[np.float32],
    columns: tuple[NDArray[np.object_] | None, NDArray[np.object_] | None],
) -> pd.DataFrame:
    """Count at every level how often the intervals hold what was measured; `columns` are groups and donors."""
    groups, donors = (None if column is None else column[rows] for column in columns)
    tables = []
    for level in intervals.rule.levels:
        width = intervals.widths(level, len(rows), groups)
        ends = (predicted - width, predicted + width)
        table = coverage_by(data.measured[rows], *ends, data.observed[rows], data.names, donors)
        tables.append(table.assign(level=level))
    return pd.concat(tables, ignore_index=True)


def describe_intervals(intervals: ProteinIntervals, coverage: pd.DataFrame | None) -> dict[str, Any]:
    """Give what the results tell: mean coverage of test cells by level, if any, and proteins without a promise."""
    counted = {}
    if coverage is not None:
        pooled = coverage[coverage["group"] == "all"].groupby("level")["coverage"]
        counted["coverage"] = [float(x) for x in pooled.mean()]
        counted["lowest_coverage_of_a_protein"] = [float(x) for x in pooled.min()]
    return {
        "nominal": list(intervals.rule.levels),
        **counted,
        "made_for_new_groups": intervals.num_left_out > 0,
        "without_interval": [int(intervals.without_interval(x).sum()) for x in intervals.rule.levels],
        "min_pearson": intervals.rule.min_pearson,
        "undetermined": [n for n, u in zip(intervals.names, intervals.undetermined, strict=True) if u],
    }
