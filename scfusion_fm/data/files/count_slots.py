"""Which matrix of an AnnData holds the raw counts; all that hold counts are compared before one is taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import StoredModality, check_values
from scfusion_fm.data.files.stored import StoredAnnData, StoredCsr, StoredMatrix
from scfusion_fm.data.schema import check_counts

COUNTS = 'layers["counts"]'
MAIN = (COUNTS, ".raw", "X")
# Names of layers, in lower case without separators, that can only mean the raw counts.
COUNT_LAYERS = ("counts", "rawcounts", "countsraw", "raw", "rawcount", "count", "umi", "umis", "umicounts", "umicount")
SAMPLE_ROWS, NUM_SAMPLES = 512, 4  # stretches of rows by which slots are compared
MAX_DIFFERENCE = 0.01  # of the totals of two slots that hold the same counts


@dataclass(frozen=True)
class Slot:
    """
    Hold a matrix that may be the counts, and what a sample of its rows is.

    Attributes
    ----------
    name
        `layers["counts"]`, `.raw`, `X`.
    matrix, var
        The matrix and its features.
    total, largest
        Sum and largest of the sample; -1 where it holds no counts.
    problem
        Why it cannot be read; '' where it can.
    """

    name: str
    matrix: StoredMatrix | None
    var: pd.DataFrame
    total: float = -1
    largest: float = -1
    problem: str = ""

    @property
    def holds_counts(self) -> bool:
        """Whether the sample holds counts, and not zeros alone."""
        return self.total > 0

    @property
    def num_features(self) -> int:
        """Number of columns."""
        return len(self.var)

    def describe(self) -> str:
        """Say what it holds."""
        return f"{self.name} ({self.num_features:,} features, {self.total:,.0f} counts in some cells)"


def find_counts(adata: StoredAnnData, where: str) -> tuple[StoredModality, list[str]]:
    """
    Take layers["counts"], else .raw or X, else another layer whose name means counts.

    Parameters
    ----------
    adata
        An AnnData.
    where
        What to call it in errors.

    Returns
    -------
    The counts, and what a user must know of the choice.

    Raises
    ------
    ValueError
        If no slot holds counts, or layers["counts"] holds something else; other slots that do are named.
    """
    if 0 in adata.shape:
        raise ValueError(f"`{where}` must have cells and features, got shape {adata.shape}.")
    slots, failed = _sample_slots(adata), {}
    for slot in _in_order(slots):
        try:
            largest = _check(slot, where)
        except ValueError as error:
            failed[slot.name] = str(error)
            if slot.name == COUNTS:
                break
            continue
        assert slot.matrix is not None
        name = f"{where}, {slot.name}"
        found = StoredModality(slot.matrix, slot.var, adata.obs_names.astype(str), name, slot.name, largest)
        return found, [*_tell_failed(slots, failed), *_compare(slot, slots)]
    slots += [_sample_layer(adata, key) for key in adata.layers if not means_counts(key)]
    others = [slot.describe() for slot in slots if slot.holds_counts and slot.name not in failed]
    raise ValueError(_explain(where, failed, others))


def _tell_failed(slots: Sequence[Slot], failed: dict[str, str]) -> list[str]:
    """Say which slots are passed over though some of their rows hold counts."""
    return [
        f"{slot.name} is left out: {failed[slot.name]}" for slot in slots if slot.holds_counts and slot.name in failed
    ]


def _explain(where: str, failed: dict[str, str], others: list[str]) -> str:
    """Say why no slot can be taken, and which ones hold counts."""
    what_to_do = f"remove {COUNTS} to have them read" if COUNTS in failed else f"store the raw counts as {COUNTS}"
    point = f" But {' and '.join(others)} hold{'s' * (len(others) == 1)} counts: {what_to_do}." if others else ""
    if COUNTS in failed:
        return failed[COUNTS] + point
    reasons = " ".join(failed.values()) or "all are empty."
    return f"`{where}` must hold raw counts in {COUNTS}, .raw or X, got none: {COUNTS} missing, {reasons}{point}"


def _sample_slots(adata: StoredAnnData) -> list[Slot]:
    """Look at some rows of each matrix in which raw counts may be expected, in the order in which they are taken."""
    raw, X = adata.raw, adata.X
    slots = [_sample_layer(adata, "counts")] if "counts" in adata.layers else []
    if raw is not None and raw.X is not None:
        slots.append(_sample(".raw", lambda: raw.X, _complete_raw_var(adata)))
    if X is not None:
        slots.append(_sample("X", lambda: X, adata.var))
    return slots + [_sample_layer(adata, key) for key in adata.layers if means_counts(key) and key != "counts"]


def _sample_layer(adata: StoredAnnData, key: str) -> Slot:
    return _sample(f'layers["{key}"]', lambda: adata.layers[key], adata.var)


def means_counts(name: str) -> bool:
    """Tell whether the name of a layer can only mean the raw counts."""
    return "".join(c for c in name.lower() if c.isalnum()) in COUNT_LAYERS


def _sample(name: str, read: Callable[[], StoredMatrix], var: pd.DataFrame) -> Slot:
    try:
        matrix = read()
        values = _sample_values(matrix)
    except Exception as error:  # the libraries raise OSError, KeyError, RuntimeError and more on broken elements
        return Slot(name, None, var, problem=f"{type(error).__name__}: {error}".removeprefix("BrokenFileError: "))
    if matrix.shape[1] != len(var):
        return Slot(name, None, var, problem=f"{matrix.shape[1]:,} columns for {len(var):,} features")
    try:
        check_counts(values, name)
    except ValueError:
        return Slot(name, matrix, var)
    return Slot(name, matrix, var, float(values.sum(dtype=np.float64)), float(values.max(initial=0)))


def _sample_values(matrix: StoredMatrix) -> NDArray:
    """Read the stored values of some stretches of rows."""
    starts = np.unique(np.linspace(0, max(matrix.shape[0] - SAMPLE_ROWS, 0), NUM_SAMPLES).astype(int))
    parts, done = [], 0
    for start in starts:
        first, last = max(int(start), done), min(int(start) + SAMPLE_ROWS, matrix.shape[0])
        if isinstance(matrix, StoredCsr):  # its indices are checked when its rows are read
            parts.append(np.asarray(matrix.data[int(matrix.indptr[first]) : int(matrix.indptr[last])]))
        else:
            rows = matrix.rows(first, last)
            parts.append(rows.data if sp.issparse(rows) else np.asarray(rows).reshape(-1))
        done = last
    return np.concatenate(parts)


def _in_order(slots: Sequence[Slot]) -> list[Slot]:
    """Give the slots to be tried: X before .raw where that holds less, and one other layer whose name means counts."""
    by_name = {slot.name: slot for slot in slots}
    tried = [by_name[name] for name in MAIN if name in by_name]
    if COUNTS not in by_name and len(tried) == 2 and _holds_less(*tried):
        tried.reverse()
    named = [slot for slot in slots if slot.holds_counts and slot.name not in MAIN]
    return tried + named[:1] if len({slot.total for slot in named}) == 1 else tried


def _holds_less(raw: Slot, X: Slot) -> bool:
    if not X.holds_counts or not raw.holds_counts:
        return X.holds_counts and raw.total == 0
    return raw.num_features < X.num_features or (
        raw.num_features == X.num_features and raw.largest <= 1 and raw.total < X.total
    )


def _check(slot: Slot, where: str) -> float:
    """Check all values of a slot; give the largest."""
    if slot.matrix is None:
        is_told = slot.problem.startswith("`")
        raise ValueError(slot.problem if is_told else f"`{where}, {slot.name}` must be readable, got {slot.problem}.")
    return check_values(slot.matrix, f"{where}, {slot.name}")


def _compare(taken: Slot, slots: Sequence[Slot]) -> list[str]:
    """Say in what other slots with counts differ from the one that is taken, and which slots are broken."""
    told = []
    for other in slots:
        if other is taken:
            continue
        if other.problem:
            told.append(f"{other.name} cannot be read ({other.problem}), and is left out.")
        if not other.holds_counts:
            continue
        differs = abs(other.total - taken.total) > MAX_DIFFERENCE * max(other.total, taken.total)
        if other.num_features > taken.num_features or (other.num_features == taken.num_features and differs):
            told.append(
                f"counts are taken from {taken.describe()}; {other.describe()} holds others, which are not read."
            )
        elif taken.name == "X" and other.name == ".raw":
            told.append(f"counts are taken from {taken.describe()}, since {other.describe()} holds fewer.")
    if taken.name not in MAIN:
        told.append(f'counts are taken from {taken.describe()}, since layers["counts"], .raw and X hold none.')
    return told


def _complete_raw_var(adata: StoredAnnData) -> pd.DataFrame:
    """Give the features of .raw the columns that only `adata.var` has, where all of them are known there."""
    assert adata.raw is not None
    var = adata.raw.var
    missing = adata.var.columns.difference(var.columns)
    if adata.var_names.is_unique and var.index.isin(adata.var_names).all():
        return pd.concat([var, adata.var.loc[var.index, missing]], axis=1)
    return var
