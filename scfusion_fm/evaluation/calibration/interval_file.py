"""The file of a model directory that holds its intervals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.evaluation.calibration.intervals import (
    SHOWN_FACTS,
    IntervalRule,
    ProteinIntervals,
    RelativeWidths,
)
from scfusion_fm.untrusted.checksums import read_bounded
from scfusion_fm.untrusted.rules import ListOf, MapOf, Number, Numbers, Text, Whole, parse_bytes, render, ruled

PROTEIN_INTERVALS = "protein_intervals.json"
LARGEST_FILE = 1 << 26
WIDTHS = ListOf(Numbers(gaps=True), most=1000)  # of each level


@dataclass(frozen=True)
class IntervalsFile:
    """What the file holds of `ProteinIntervals`; infinite and undefined numbers are null."""

    levels: list[float] = ruled(ListOf(Number(1e-6, 1 - 1e-6), most=1000, unique=True))
    min_pearson: float = ruled(Number(-1, 1))
    min_group_cells: int = ruled(Whole(1, 1 << 40))
    proteins: list[str] = ruled(ListOf(Text(), unique=True))
    table: dict[str, list[float | None]] = ruled(MapOf(Numbers(gaps=True), most=len(SHOWN_FACTS)))
    half_widths: list[list[float | None]] = ruled(WIDTHS)
    groups: dict[str, list[list[float | None]]] = ruled(MapOf(WIDTHS))
    num_left_out: int = ruled(Whole(0, 1 << 40), 0)  # files of the first releases have none
    deviations: list[float | None] = ruled(Numbers(gaps=True), ())  # likewise, and of intervals without groups left out
    relative_half_widths: list[list[float | None]] = ruled(WIDTHS, ())

    def __post_init__(self) -> None:
        if set(self.table) != set(SHOWN_FACTS) or not self.levels:
            raise ValueError(f"`table` must have the columns {list(SHOWN_FACTS)}, and `levels` one, got others")
        rows = [*self.table.values(), *self.half_widths, *(row for group in self.groups.values() for row in group)]
        heights = {len(widths) for widths in (self.half_widths, *self.groups.values())}
        if any(len(row) != len(self.proteins) for row in rows) or heights != {len(self.levels)}:
            raise ValueError(
                f"`table`, `half_widths` and `groups` must have {len(self.proteins)} proteins and {len(self.levels)} "
                "levels, got other lengths"
            )
        if any(x is not None and x < 0 for row in rows[len(self.table) :] for x in row):
            raise ValueError("`half_widths` and `groups` must not be negative, got such numbers")
        self._check_relative()
        if any(x is None or x < 0 or x != int(x) for x in self.table["n"]):
            raise ValueError("`table['n']` must hold whole numbers of cells, got others")

    def _check_relative(self) -> None:
        rows = [self.deviations, *self.relative_half_widths]
        given = bool(self.deviations or self.relative_half_widths)
        fits = len(rows) == len(self.levels) + 1 and all(len(row) == len(self.proteins) for row in rows)
        if given and not fits:
            raise ValueError(
                "`deviations` and `relative_half_widths` must fit the proteins and levels, got other lengths"
            )
        if any(x is not None and x < 0 for row in rows for x in row):
            raise ValueError("`deviations` and `relative_half_widths` must not be negative, got such numbers")


def write_intervals(intervals: ProteinIntervals) -> str:
    """Give the file as text; infinite and undefined numbers are null."""
    relative = intervals.relative
    content = IntervalsFile(
        levels=list(intervals.rule.levels),
        min_pearson=intervals.rule.min_pearson,
        min_group_cells=intervals.rule.min_group_cells,
        num_left_out=intervals.num_left_out,
        proteins=intervals.names,
        table={k: _to_list(v) for k, v in intervals.table.items()},
        half_widths=[_to_list(row) for row in intervals.half_widths],
        groups={k: [_to_list(row) for row in v] for k, v in intervals.group_half_widths.items()},
        deviations=[] if relative is None else _to_list(relative.deviations),
        relative_half_widths=[] if relative is None else [_to_list(row) for row in relative.half_widths],
    )
    return render(content)


def read_intervals(path: Path) -> ProteinIntervals:
    """
    Read what `write_intervals` gave.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    content = parse_bytes(
        IntervalsFile, read_bounded(path, LARGEST_FILE), str(path), ignored=("scaled", "weights_sha256")
    )
    rule = IntervalRule(tuple(content.levels), content.min_pearson, content.min_group_cells)
    table = pd.DataFrame({k: _from_list(content.table[k], np.nan) for k in SHOWN_FACTS}, index=content.proteins)
    table["n"] = table["n"].astype(int)
    pooled = _matrix(content.half_widths, np.inf)
    groups = {k: _matrix(v, np.nan) for k, v in content.groups.items()}
    relative = None
    if content.deviations:
        deviations = np.array(_from_list(content.deviations, np.nan))
        relative = RelativeWidths(deviations, _matrix(content.relative_half_widths, np.inf))
    return ProteinIntervals(content.proteins, rule, table, pooled, groups, content.num_left_out, relative)


def _to_list(values: Any) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in values]


def _from_list(values: list[float | None], missing: float) -> list[float]:
    return [missing if x is None else float(x) for x in values]


def _matrix(rows: list[list[float | None]], missing: float) -> NDArray[np.float64]:
    return np.array([_from_list(row, missing) for row in rows], dtype=np.float64)
