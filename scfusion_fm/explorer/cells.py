"""
What the page shows of cells: where they lie, what they are called, and what is known and predicted of them.

Letters: n cells, P proteins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import CellsFile
from scfusion_fm.data.files.readers import Given, closing, open_given, select_cells
from scfusion_fm.data.files.results import Results, read_results
from scfusion_fm.data.schema import read_categories
from scfusion_fm.data.vocabulary.resolve import resolve_antibody_features
from scfusion_fm.evaluation.metrics.umap import compute_umap
from scfusion_fm.notices import tell, warn

LAYOUTS = ("X_umap", "X_scfusion_ttt_umap")
MOST_CELLS = 200_000
MOST_CATEGORIES = 60
MOST_COLUMNS = 24  # of obs; those of ours come first
SLOW_UMAP = 20_000
UNDETERMINED = "RNA was not shown to determine this protein."


@dataclass
class Proteins:
    """
    Proteins of one kind, (n, P) and NaN where there is none.

    Attributes
    ----------
    names
        Of the proteins.
    values
        Of the cells.
    notes
        What should be known of some of them.
    """

    names: list[str]
    values: NDArray[np.float32]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass
class ShownCells:
    """
    What the page shows.

    Attributes
    ----------
    names
        Of the cells.
    positions
        (n, 2), without unit.
    layout
        Where the positions are from.
    labels
        Categories of the cells by column: texts, None for none; those that a model gave come first.
    numbers
        Numbers of the cells by column.
    proteins
        By kind: measured, predicted, width.
    notes
        Sentences on what is not shown, or how.
    """

    names: list[str]
    positions: NDArray[np.float32]
    layout: str
    labels: dict[str, NDArray] = field(default_factory=dict)
    numbers: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    proteins: dict[str, Proteins] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect_cells(
    given: Given, *, basis: str = "X_scfusion_ttt", key: str = "protein_scfusion_ttt", most_cells: int = MOST_CELLS
) -> ShownCells:
    """
    Read what the page shows; counts are read of proteins alone.

    Parameters
    ----------
    given
        File or object with the results of the verbs.
    basis
        Embedding in obsm, of which a UMAP is computed where obsm has none.
    key
        Predicted proteins in obsm.
    most_cells
        Above it, a random sample is shown.

    Raises
    ------
    ValueError
        If there is neither a layout nor an embedding, or fewer than 4 cells have one.
    """
    with closing():
        file = open_given(given)
        results = read_results(file)
        file.warn_lost()
        layout, embedding = find_layout(results, basis)
        known = np.flatnonzero(np.isfinite(embedding).all(1))  # others have no counts
        if len(known) < 4:
            raise ValueError(f"`basis` must hold at least 4 cells, got {len(known)} in obsm[{layout!r}].")
        rows = draw_rows(known, most_cells)
        measured = read_proteins(find_counts(file), results.obs.index[rows])
    notes = describe_rows(len(results.obs), len(known), len(rows))
    if embedding.shape[1] != 2:
        tell(
            f"computing a UMAP of obsm[{layout!r}]: {len(rows):,} cells"
            + (", minutes" if len(rows) > SLOW_UMAP else "")
        )
        positions, layout = compute_umap(embedding[rows]), f"UMAP of {layout}"
    else:
        positions = embedding[rows]
    cells = ShownCells([*map(str, results.obs.index[rows])], positions.astype(np.float32), layout, notes=notes)
    add_columns(cells, results.obs.iloc[rows], find_ours(results.uns))
    add_proteins(cells, results, rows, key, measured)
    return cells


def find_layout(results: Results, basis: str) -> tuple[str, NDArray]:
    """
    Find the positions of the cells, or what they can be computed of.

    Raises
    ------
    ValueError
        If there are none.
    """
    for name in (*LAYOUTS, basis):
        if name in results.obsm:
            found = np.asarray(results.obsm[name], dtype=np.float32)
            return name, found[:, :2] if name in LAYOUTS else found
    raise ValueError(
        f"`basis` must be in obsm, got {basis!r}; it has {[*results.obsm]}. Run `scfusion embed` on the file first, or "
        "name another embedding."
    )


def draw_rows(known: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Take all cells, or a sample that is the same each time, in the order of the file."""
    return known if len(known) <= most else np.sort(np.random.default_rng(0).choice(known, most, replace=False))


def describe_rows(total: int, known: int, shown: int) -> list[str]:
    """Say which cells are not shown."""
    notes = [] if known == total else [f"{total - known:,} of {total:,} cells have no embedding and are not shown."]
    return notes + ([] if shown == known else [f"A random sample of {shown:,} of {known:,} cells is shown."])


def find_ours(uns: Mapping[str, Any]) -> list[str]:
    """Give the columns of obs that models wrote, types first."""
    told = uns.get("scfusion_ttt", {})
    types = [str(told[verb]["obs"]) for verb in ("annotate", "surprise") if "obs" in told.get(verb, {})]
    endings = ("", "_probability", "_unknown_score", "_rna", "_adt", "_percentile")
    return [name + ending for name in [*types, "cell_type_pred", "scfusion_ttt_surprise"] for ending in endings]


def add_columns(cells: ShownCells, obs: pd.DataFrame, ours: list[str]) -> None:
    """Add the columns of obs that can be coloured by: few categories, or numbers; those of models first."""
    columns = sorted(obs.columns, key=lambda name: ours.index(name) if name in ours else len(ours))
    for name in columns:
        if len(cells.labels) + len(cells.numbers) == MOST_COLUMNS:
            cells.notes.append(f"The first {MOST_COLUMNS} columns of obs are shown.")
            break
        column = obs[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float32, na_value=np.nan)
            if np.isfinite(values).any():
                cells.numbers[str(name)] = values
        elif 1 <= column.nunique() <= MOST_CATEGORIES:
            cells.labels[str(name)] = read_categories(column)


def add_proteins(
    cells: ShownCells, results: Results, rows: NDArray[np.int64], key: str, measured: Proteins | None
) -> None:
    """Add measured and predicted proteins, and the width of their intervals."""
    if measured is not None:
        cells.proteins["measured"] = measured
    predicted = results.obsm.get(key)
    if not isinstance(predicted, pd.DataFrame):
        return
    names = [*map(str, predicted)]
    told = results.uns.get("scfusion_ttt", {}).get("predict-protein", {})
    notes = dict.fromkeys(map(str, told.get("undetermined", ())), UNDETERMINED)
    cells.proteins["predicted"] = Proteins(names, predicted.to_numpy(np.float32)[rows], notes)
    tables = [results.obsm.get(f"{key}_{end}") for end in ("lower", "upper")]
    ends = [table for table in tables if isinstance(table, pd.DataFrame) and list(table) == list(predicted)]
    if len(ends) == 2:
        lower, upper = (end.to_numpy(np.float32)[rows] for end in ends)
        width = upper - lower
        kept = np.flatnonzero(np.isfinite(width).any(0))
        cells.proteins["width"] = Proteins([names[place] for place in kept], width[:, kept], notes)
    number = len(notes.keys() & {*names})
    if number:
        cells.notes.append(f"RNA was not shown to determine {number} of the {len(names)} predicted proteins.")


def find_counts(file: Any) -> CellsFile | None:
    """Find the counts of proteins; None where the file has none that are clear."""
    try:
        return select_cells(file, "auto")
    except ValueError as error:
        warn(f"measured proteins are left out: {error}")
        return None


def read_proteins(counts: CellsFile | None, names: pd.Index) -> Proteins | None:
    """Read measured proteins of some cells, centred log ratios over the proteins that are known; None without."""
    if counts is None or counts.adt is None:
        return None
    resolved = resolve_antibody_features(counts.adt.var)
    kept = np.flatnonzero(~resolved["match"].isin(["isotype", "hashtag", "unknown"]))
    if not len(kept):
        return None
    whole = sp.vstack([block[:, kept] for block in counts.adt.blocks()], format="csr")
    places = counts.obs.index.get_indexer(names)
    logs = np.log1p(whole[np.maximum(places, 0)].toarray(), dtype=np.float32)
    is_measured = (places >= 0) & (logs.sum(1) > 0)
    values = np.where(is_measured[:, None], logs - logs.mean(1, keepdims=True), np.nan)
    return Proteins([str(name) for name in counts.adt.var.index[kept]], values.astype(np.float32))
