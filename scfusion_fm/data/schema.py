"""What a file holds after reading, and what a model sees after alignment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

if TYPE_CHECKING:
    import anndata
    import mudata

DATASET = "dataset"  # the column of obs that tells data sets apart where several stand together
NO_VALUE = "nan"  # what stands in text, as in an atlas, where there is no value
NO_VALUE_TEXTS = ("", "nan", "NaN", "None", "<NA>", "NaT")  # what others have written there
LARGEST_COUNT = 2**24  # float32 holds every whole number up to here

Modality = Literal["auto", "rna", "adt"]  # what is read of a file


@dataclass
class ModalityCounts:
    """Hold the counts of one modality.

    Attributes
    ----------
    counts
        (n_obs, n_features), whole non-negative numbers in float32; rows stand as in `Cells.obs`, and rows of
        cells without the modality are empty.
    var
        Feature table of the file; its index holds the names in the file.
    present
        (n_obs,), whether the cell has this modality and at least one count in it.
    slot
        Where in the file the counts are: `layers["counts"]`, `.raw`, `X` or `obsm["protein_expression"]`.
    """

    counts: sp.csr_matrix
    var: pd.DataFrame
    present: np.ndarray
    slot: str = "X"

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """Give the counts of neighbouring cells."""
        return self.counts[start:stop]

    def blocks(self) -> Iterator[sp.csr_matrix]:
        """Give all rows, in as many blocks as are held in memory: one."""
        yield self.counts


@dataclass
class Cells:
    """Hold the cells of one file.

    Attributes
    ----------
    path
        Where they were read from.
    obs
        Annotation; its index holds unique barcodes.
    rna, adt
        Counts of the modalities that the file has.
    container
        The object as read, so that outputs can be added to everything that was in the file; None where only the
        counts were read.
    """

    path: str
    obs: pd.DataFrame
    rna: ModalityCounts | None
    adt: ModalityCounts | None
    container: anndata.AnnData | mudata.MuData | None = None


class CellCounts(TypedDict, total=False):
    """
    Hold the dense counts of some cells by the names that a feature extractor gives its arguments.

    B cells, G genes and P proteins of the vocabulary. A modality of which nothing was measured may be absent.
    """

    rna_counts: NDArray[np.float32]  # (B, G)
    rna_observed: NDArray[np.bool_]  # (B, G)
    rna_total_counts: NDArray[np.float64]  # (B,), library size over all genes of the source
    adt_counts: NDArray[np.float32]  # (B, P)
    adt_observed: NDArray[np.bool_]  # (B, P)


@dataclass
class AlignedCells:
    """Hold the cells of one file over a vocabulary.

    Attributes
    ----------
    obs
        Annotation; its index holds unique barcodes.
    rna
        (n_obs, num_genes) counts, float32.
    rna_observed
        (num_genes,), whether the file measures the gene.
    rna_present
        (n_obs,), whether the cell has RNA counts.
    rna_total_counts
        (n_obs,), library size over all genes of the file, float64.
    adt
        (n_obs, num_proteins) counts, float32; 0 where not measured.
    adt_observed
        (num_proteins,), whether the file measures the protein.
    adt_present
        (n_obs,), whether the cell has ADT counts.
    """

    obs: pd.DataFrame
    rna: sp.csr_matrix
    rna_observed: np.ndarray
    rna_present: np.ndarray
    rna_total_counts: np.ndarray
    adt: np.ndarray
    adt_observed: np.ndarray
    adt_present: np.ndarray

    def as_counts(self, rows: NDArray[np.int64]) -> CellCounts:
        """Give some cells to a feature extractor; a modality of which the file measured nothing is absent."""
        counts: CellCounts = {}
        if self.rna_observed.any():
            counts["rna_counts"] = self.rna[rows].toarray()
            counts["rna_observed"] = self.rna_observed_in(rows)
            counts["rna_total_counts"] = self.rna_total_counts[rows]
        if self.adt_observed.any():
            counts["adt_counts"] = self.adt[rows]
            counts["adt_observed"] = self.adt_observed_in(rows)
        return counts

    def rna_panels_in(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Give panels of genes, (panels, num_genes), and which of them some cells have, (len(rows),); -1 for none."""
        return self.rna_observed[None], np.where(self.rna_present[rows], 0, -1)

    def rna_observed_in(self, rows: np.ndarray) -> np.ndarray:
        """Tell which genes were measured in some cells, (len(rows), num_genes)."""
        return self.rna_observed & self.rna_present[rows, None]

    def adt_observed_in(self, rows: np.ndarray) -> np.ndarray:
        """Tell which proteins were measured in some cells, (len(rows), num_proteins)."""
        return self.adt_observed & self.adt_present[rows, None]


def as_text(column: pd.Series) -> pd.Series:
    """
    Give a column of any type as text, `NO_VALUE` where it has no value.

    Whole numbers are written without a point: pandas makes 1 a 1.0 where another cell has no number.
    """
    values = column.astype(object).to_numpy()
    try:
        codes, unique = pd.factorize(values)
    except TypeError:  # of lists and the like
        codes, unique = np.arange(len(values)), values
    names = np.empty(len(unique) + 1, dtype=object)
    names[:] = [*map(_write_value, unique), NO_VALUE]
    return pd.Series(names[codes], index=column.index, name=column.name, dtype=object)


def read_categories(column: pd.Series) -> NDArray[np.object_]:
    """
    Give the labels, donors or batches of cells as text, None where a cell has none, (n,).

    Texts that tables are full of where something was missing when they were written (`nan`, `None`, `<NA>`, ...) are
    none either.
    """
    texts = as_text(column)
    return texts.where(~texts.str.strip().isin(NO_VALUE_TEXTS), None).to_numpy(dtype=object)


def _write_value(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def check_counts(matrix: Any, name: str) -> None:
    """Check that a matrix holds raw counts: finite, non-negative, whole numbers.

    Parameters
    ----------
    matrix
        Dense or sparse.
    name
        What to call it in the error.

    Raises
    ------
    ValueError
        If it does not; the message gives an example and what to do.
    """
    values = np.asarray(matrix.data if sp.issparse(matrix) else matrix)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"`{name}` must hold numbers, got dtype {values.dtype}. Store the raw counts as numbers.")
    if values.dtype.kind == "f":
        _refuse(~np.isfinite(values), values, name, "finite numbers", "Remove or repair these entries")
    _refuse(values < 0, values, name, "non-negative counts", "Give the raw counts, not scaled or CLR values")
    if values.dtype.kind == "f":
        advice = "Give the raw counts, not normalised or log-transformed values"
        _refuse(values != np.floor(values), values, name, "whole numbers", advice)
    _refuse(values > LARGEST_COUNT, values, name, f"counts up to {LARGEST_COUNT:,}", "Check what the numbers are")


def _refuse(is_bad: np.ndarray, values: np.ndarray, name: str, rule: str, advice: str) -> None:
    if is_bad.any():
        example = values[is_bad][0]
        raise ValueError(
            f"`{name}` must hold raw counts ({rule}), got {example} ({is_bad.sum():,} such entries). "
            f'{advice}, for example in layers["counts"].'
        )
