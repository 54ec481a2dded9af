"""Which cells are learned from, chosen by, tested on and calibrated on: one record for models and baselines alike.

Letters: n cells of a table, k rows of a part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PARTS = ("train", "val", "test", "calibration")
SCORED = ("train", "val", "test")


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Partition:
    """
    Rows of a table of cells, by what they are for; no row is in two parts.

    Attributes
    ----------
    train
        (k,) rows, ascending, that are fitted on.
    val
        Rows that choose epochs and settings.
    test
        Rows that are only predicted.
    calibration
        Rows that neither train nor choose: temperatures, thresholds and intervals are set on them.

    Raises
    ------
    ValueError
        If a row is in two parts.
    """

    train: NDArray[np.int64] = field(default_factory=_no_rows)
    val: NDArray[np.int64] = field(default_factory=_no_rows)
    test: NDArray[np.int64] = field(default_factory=_no_rows)
    calibration: NDArray[np.int64] = field(default_factory=_no_rows)

    def __post_init__(self):
        for name in PARTS:
            object.__setattr__(self, name, np.sort(np.asarray(getattr(self, name), np.int64)))
        twice = len(self.rows) - len(np.unique(self.rows))
        if twice:
            raise ValueError(f"A partition must give each cell one part, got {twice} rows twice; take them out of one.")

    @classmethod
    def from_roles(cls, roles: ArrayLike) -> "Partition":
        """
        Read the part of each cell, (n,): a name out of `PARTS`, or "" for cells that are not used.

        Raises
        ------
        ValueError
            If there is another name.
        """
        roles = np.asarray(roles).astype(str)
        unknown = sorted(set(roles.tolist()) - {*PARTS, ""})
        if unknown:
            raise ValueError(f"The part of a cell must be one of {PARTS} or '', got {unknown}; '' is for unused cells.")
        return cls(**{name: np.flatnonzero(roles == name) for name in PARTS})

    def roles(self, num_cells: int) -> NDArray[np.str_]:
        """Give the part of each of n cells, (n,); "" for those that are not used."""
        roles = np.full(num_cells, "", dtype=f"<U{max(map(len, self.parts), default=1)}")
        for name, rows in self.parts.items():
            roles[rows] = name
        return roles

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Rows by name, of the parts that have any."""
        return {name: rows for name in PARTS if len(rows := getattr(self, name))}

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by name, of the parts that have any."""
        return {name: len(rows) for name, rows in self.parts.items()}

    @property
    def rows(self) -> NDArray[np.int64]:
        """All rows, part after part."""
        return np.concatenate([getattr(self, name) for name in PARTS])

    @property
    def known(self) -> NDArray[np.int64]:
        """All rows but those of `test`, ascending."""
        return np.sort(np.concatenate([self.train, self.val, self.calibration]))

    def join(self, names: tuple[str, ...] = SCORED) -> tuple[NDArray[np.int64], "Partition"]:
        """Put the rows of some parts into one list, part after part, and say where in it each part is."""
        rows = [getattr(self, name) for name in names]
        ends = np.cumsum([len(part) for part in rows])
        places = {name: np.arange(end - len(part), end) for name, part, end in zip(names, rows, ends, strict=True)}
        return np.concatenate(rows), Partition(**places)

    def of(self, rows: NDArray[np.int64]) -> "Partition":
        """Give the same cells as rows of a larger table, in which they are the ones in `rows`, (n,)."""
        return Partition(**{name: rows[part] for name, part in self.parts.items()})

    def keep(self, kept: NDArray[np.bool_], rule: str, advice: str) -> "Partition":
        """
        Leave cells out.

        Parameters
        ----------
        kept
            (n,) true for the cells that stay.
        rule
            What leaves them out, as the beginning of the message.
        advice
            What to do where a part loses its last cell.

        Raises
        ------
        ValueError
            If a part does.
        """
        left = Partition(**{name: rows[kept[rows]] for name, rows in self.parts.items()})
        emptied = {name: number for name, number in self.counts.items() if name not in left.parts}
        if emptied:
            told = " and ".join(f"none of {number} for {name}" for name, number in emptied.items())
            raise ValueError(f"{rule}, got {told}; {advice}.")
        return left

    def set_apart_calibration(self, fraction: float, seed: int) -> "Partition":
        """
        Move some rows of `val` to `calibration`, so that they neither train nor choose anything.

        Raises
        ------
        ValueError
            If the fraction is out of range, or one of both gets no cell.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"`calibration_fraction` must lie in (0, 1), got {fraction}.")
        order = np.random.default_rng([seed, len(self.val)]).permutation(self.val)
        number = round(fraction * len(order))
        if not 0 < number < len(order):
            raise ValueError(
                f"`calibration_fraction` must leave cells for validation and calibration, got {fraction} of "
                f"{len(order)} cells; raise `split.val_fraction`."
            )
        return Partition(self.train, order[number:], self.test, order[:number])

    @property
    def scored(self) -> NDArray[np.int64]:
        """Rows that scores are told of: of `test`, and where there are none of `calibration`, which nothing learned."""
        return self.test if len(self.test) else self.calibration

    @property
    def as_tested(self) -> "Partition":
        """The same with the scored rows for the test, and nothing to calibrate on."""
        return Partition(self.train, self.val, self.scored)

    def check(self, setting: str = "`partition`", needed: tuple[str, ...] = SCORED) -> None:
        """
        Raise unless there are cells to train on, to choose by and to test.

        Parameters
        ----------
        setting
            What the cells were divided by, for the message.
        needed
            Parts that must have cells.

        Raises
        ------
        ValueError
            If one of these has none.
        """
        empty = [name for name in needed if name not in self.parts]
        if empty:
            told = ", ".join(needed[:-1]) + f" and {needed[-1]}"
            raise ValueError(
                f"{setting} must leave cells for {told}, got none for {empty} of {len(self.rows)} cells; change its "
                "fractions, or give more cells."
            )

    def check_arrays(self, arrays: Mapping[str, Any]) -> None:
        """
        Raise unless all arrays, by name, have one row for each cell of the same table, and the partition is of it.

        Raises
        ------
        ValueError
            If the number of rows differs, or a row of the partition lies outside.
        """
        numbers = {name: np.shape(values)[0] for name, values in arrays.items()}
        num_cells = next(iter(numbers.values()))
        for name, number in numbers.items():
            if number != num_cells:
                raise ValueError(
                    f"`{name}` must have one row per cell ({num_cells}), got {number}; select the same cells."
                )
        if len(self.rows) and self.rows.max() >= num_cells:
            raise ValueError(
                f"A partition must hold rows below {num_cells}, the number of cells, got {self.rows.max()}; divide the "
                "cells that are given."
            )
