"""Counts that users give: checked, and tables put into the order of the vocabulary by the names of their columns.

Letters: B cells, W features of the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_COUNT = 2**24  # larger whole numbers are not exact in float32
Index = Callable[[list[str]], NDArray[np.int64]]


@dataclass(frozen=True)
class GivenCounts:
    """
    Counts of one modality over the vocabulary.

    Attributes
    ----------
    values
        (B, W) float32, checked where observed.
    observed
        (B, W) what was measured.
    totals
        (B,) counts of each cell, of features that are not in the vocabulary too.
    cells
        Names of the cells; None where an array was given.
    """

    values: NDArray[np.float32]
    observed: NDArray[np.bool_]
    totals: NDArray[np.float64]
    cells: Any | None


def read_counts(
    name: str, given: Any, observed: Any, width: int, index: Index, index_others: Index | None = None
) -> GivenCounts:
    """
    Check what a user gives.

    Parameters
    ----------
    name
        What to call it in errors.
    given
        (B, W) array, tensor or sparse matrix in the order of the vocabulary, or a table with names of features.
    observed
        (W,) or (B, W) what was measured, in the order of the vocabulary; all, or all columns of a table, when None.
    width
        Features of the vocabulary (W).
    index
        Finds the place of each name in the vocabulary, -1 for none.
    index_others
        The same for the other modality, whose features must not be among those of this one; None where they may.

    Raises
    ------
    ValueError
        If shapes do not fit, names are found twice or none is or are of the other modality, or what was observed is
        no count.
    """
    is_table = hasattr(given, "columns")
    values = _as_numbers(name, given)
    place = _find_columns(name, list(given.columns), index, index_others) if is_table else np.arange(width)
    if values.ndim != 2 or values.shape[1] != len(place):
        raise ValueError(
            f"`{name}` must have the shape (cells, {width}) of the vocabulary, got {values.shape}. "
            "Put the columns into the order of the vocabulary first, or give a DataFrame with names of features; one "
            "cell is a row: `counts[None]`."
        )
    seen = _read_observed(name, observed, (len(values), width))
    if not is_table:
        check_values(name, values, seen)
        values = values.astype(np.float32)
        return GivenCounts(values, seen, np.where(seen, values, 0).sum(1, dtype=np.float64), None)
    known = np.flatnonzero(place >= 0)
    shown = np.ones(values.shape, dtype=bool)
    shown[:, known] = seen[:, place[known]]
    check_values(name, values, shown)
    ordered, measured = np.zeros((len(values), width), dtype=np.float32), np.zeros(width, dtype=bool)
    ordered[:, place[known]], measured[place[known]] = values[:, known], True
    return GivenCounts(
        ordered, seen & measured, np.where(shown, values, 0).sum(1, dtype=np.float64), getattr(given, "index", None)
    )


def check_values(name: str, values: NDArray, observed: NDArray[np.bool_]) -> None:
    """
    Check that what was observed are counts: finite, non-negative, whole numbers.

    Raises
    ------
    ValueError
        If they are not.
    """
    with np.errstate(invalid="ignore"):
        bad = ~((values >= 0) & (values <= LARGEST_COUNT) & (values == np.floor(values))) & observed
    if not bad.any():
        return
    found = values[bad]
    for wrong, rule, advice in (
        (~np.isfinite(found), "finite numbers", "Remove or repair these entries"),
        (found < 0, "non-negative counts", "Give the raw counts, not scaled or CLR values"),
        (found != np.floor(found), "whole numbers", "Give the raw counts, not normalised or log-transformed values"),
        (found > LARGEST_COUNT, f"counts up to {LARGEST_COUNT:,}", "Check what the numbers are"),
    ):
        if wrong.any():
            raise ValueError(
                f"`{name}` must hold raw counts ({rule}), got {found[wrong][0]} ({wrong.sum():,} such entries). "
                f'{advice}, for example in layers["counts"].'
            )


def read_totals(given: Any, counts: GivenCounts) -> NDArray[np.float64]:
    """
    Check library sizes, (B,); those of the given counts when None.

    Raises
    ------
    ValueError
        If they are not one finite number per cell, below the counts of the cell, or of other cells.
    """
    if given is None:
        return counts.totals
    name = "rna_total_counts"
    _check_same_cells(name, getattr(given, "index", None), counts.cells)
    totals = _as_numbers(name, given).astype(np.float64)
    if totals.shape != (len(counts.values),):
        raise ValueError(f"`{name}` must have the shape ({len(counts.values)},) of the cells, got {totals.shape}.")
    least = np.where(counts.observed, counts.values, 0).sum(1, dtype=np.float64)
    bad = ~(np.isfinite(totals) & (totals >= least * (1 - 1e-5)))
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite and at least the counts of the cell, got {totals[bad][0]} for "
            f"{least[bad][0]:,.0f} ({bad.sum():,} such cells). It is the sum over all genes of the experiment."
        )
    return totals


def check_pair(rna: GivenCounts, adt: GivenCounts) -> None:
    """
    Check that both modalities are of the same cells.

    Raises
    ------
    ValueError
        If their number or their names differ.
    """
    if len(rna.values) != len(adt.values):
        raise ValueError(
            "`rna_counts` and `adt_counts` must hold the same cells, got "
            f"{len(rna.values)} and {len(adt.values)}. A cell that lacks a modality has a row of zeros there."
        )
    _check_same_cells("adt_counts", adt.cells, rna.cells)


def _check_same_cells(name: str, cells: Any | None, others: Any | None) -> None:
    if cells is not None and others is not None and list(cells) != list(others):
        raise ValueError(
            f"`{name}` must have the same index as `rna_counts`, got other cells or another order. Put them into one "
            "order first."
        )


def _as_numbers(name: str, given: Any) -> NDArray:
    if hasattr(given, "toarray"):
        given = given.toarray()
    elif hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    elif hasattr(given, "to_numpy"):
        given = given.to_numpy()
    # An AnnData would be taken apart cell by cell.
    values = np.asarray(None if hasattr(given, "obs_names") else given)
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"`{name}` must hold numbers, got {type(given).__name__} of dtype {values.dtype}. Give raw counts as an "
            "array, a sparse matrix or a DataFrame, for example `adata.to_df()`."
        )
    return values


def _find_columns(name: str, names: list, index: Index, index_others: Index | None) -> NDArray[np.int64]:
    """Give the place in the vocabulary of each column, -1 for none."""
    texts = [str(x) if isinstance(x, str) else "" for x in names]
    place = index(texts)
    found, times = np.unique(place[place >= 0], return_counts=True)
    if not len(found):
        raise ValueError(
            f"`{name}` must have columns that the model knows, got {[str(x)[:40] for x in names[:3]]} and so on. Name "
            "genes by Ensembl id or symbol, and proteins as in `protein_names`."
        )
    if (times > 1).any():
        twice = [str(names[i]) for i in np.flatnonzero(place == found[times > 1][0])]
        raise ValueError(
            f"`{name}` must have each feature once, got the columns {twice} for one. Add them up or drop one."
        )
    if index_others is not None and (strange := np.flatnonzero((place < 0) & (index_others(texts) >= 0))).size:
        raise ValueError(
            f"`{name}` must hold one modality, got columns of the other one, such as {texts[strange[0]]!r}. They would "
            "count for the library size: give each modality as a table of its own."
        )
    return place


def _read_observed(name: str, observed: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    if observed is None:
        return np.ones(shape, dtype=bool)
    told = f"`{name.replace('counts', 'observed')}` must"
    values = np.asarray(observed)
    if hasattr(observed, "index") and not isinstance(observed, (list, tuple)):
        raise ValueError(f"{told} be an array in the order of the vocabulary, got a {type(observed).__name__}.")
    if values.dtype != bool:
        raise ValueError(f"{told} hold true and false, got dtype {values.dtype}.")
    if values.shape not in (shape, shape[1:]):
        raise ValueError(f"{told} have the shape {shape} or {shape[1:]}, got {values.shape}.")
    return np.broadcast_to(values, shape)
