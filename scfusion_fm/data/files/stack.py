"""Cells over one vocabulary, of several files or batches, each with the genes and proteins that its own measured."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.schema import DATASET, AlignedCells


class ReadRows(ABC):
    """
    Rows of counts that are read when they are asked for, by `counts[rows]`.

    Attributes
    ----------
    shape
        Of all of them.
    """

    shape: tuple[int, int]

    @abstractmethod
    def __getitem__(self, rows: NDArray[np.int64] | slice) -> Any:
        """Give some rows, CSR or dense."""

    @abstractmethod
    def identify(self) -> list[Any]:
        """Give arrays that are the same where all rows are."""


class JoinedRows(ReadRows):
    """
    Rows of matrices below one another, of which some read theirs when they are asked for; `rows[indices]` joins them.

    Parameters
    ----------
    parts
        Matrices of one width, sparse or dense, that give rows by their indices.
    """

    def __init__(self, parts: Sequence[Any]):
        self._parts = list(parts)
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), parts[0].shape[1])

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> Any:
        rows = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else np.asarray(rows)
        owner = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(owner, kind="stable")
        own = [(part, rows[owner == i] - (self._ends[i] - part.shape[0])) for i, part in enumerate(self._parts)]
        found = [part[inside] for part, inside in own if len(inside)] or [self._parts[0][rows]]
        joined = sp.vstack(found, format="csr") if sp.issparse(found[0]) else np.concatenate(found)
        return joined[np.argsort(order, kind="stable")]

    def identify(self) -> list[Any]:
        """Give arrays that are the same where all rows are."""
        return [array for part in self._parts for array in (part.identify() if isinstance(part, ReadRows) else [part])]


@dataclass
class StackedCells(AlignedCells):
    """Hold the cells of several files, or of one whose batches have panels of their own, over a vocabulary.

    Attributes
    ----------
    file_of
        (n_obs,), which file or batch a cell is from.
    rna_panels
        (files, num_genes), whether a file measures the gene; `rna_observed` tells whether any does.
    adt_panels
        (files, num_proteins), likewise.
    """

    file_of: NDArray[np.int64]
    rna_panels: NDArray[np.bool_]
    adt_panels: NDArray[np.bool_]

    def rna_panels_in(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Give panels of genes, (panels, num_genes), and which of them some cells have, (len(rows),); -1 for none."""
        return self.rna_panels, np.where(self.rna_present[rows], self.file_of[rows], -1)

    def rna_observed_in(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which genes were measured in some cells, (len(rows), num_genes)."""
        return self.rna_panels[self.file_of[rows]] & self.rna_present[rows, None]

    def adt_observed_in(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which proteins were measured in some cells, (len(rows), num_proteins)."""
        return self.adt_panels[self.file_of[rows]] & self.adt_present[rows, None]


def stack_aligned(parts: Sequence[AlignedCells], names: Sequence[str | None]) -> StackedCells:
    """Put the cells of several files below one another.

    Parameters
    ----------
    parts
        Cells of each file, all over the same vocabulary.
    names
        Name of each file: the column `dataset` of the result, and the beginning of the names of its cells. None for
        cells that have both, as those of an atlas.

    Raises
    ------
    ValueError
        If there is no file, names are not one per file and different, or vocabularies differ.
    """
    given = [name for name in names if name is not None]
    if not parts or len(names) != len(parts) or len(set(given)) != len(given):
        raise ValueError(f"`names` must name each of the {len(parts)} files differently, got {list(names)}.")
    widths = {(part.rna.shape[1], part.adt.shape[1]) for part in parts}
    if len(widths) > 1:
        raise ValueError(f"`parts` must have one vocabulary, got sizes {sorted(widths)}; align them with one model.")
    tables = [
        part.obs
        if name is None
        else part.obs.set_axis([f"{name}:{cell}" for cell in part.obs.index]).assign(**{DATASET: name})
        for part, name in zip(parts, names, strict=True)
    ]
    obs = pd.concat([table.astype(object) for table in tables])
    if not obs.index.is_unique:
        raise ValueError(
            f"`names` must differ from those of the data sets of an atlas, got {given}: the cell "
            f"{obs.index[obs.index.duplicated()][0]!r} is there twice. Rename the file."
        )
    rna, adt = ([getattr(part, kind) for part in parts] for kind in ("rna", "adt"))
    are_read = not all(sp.issparse(counts) for counts in rna)
    panels = {kind: np.concatenate([_panels(part, kind) for part in parts]) for kind in ("rna", "adt")}
    sizes = [len(_panels(part, "rna")) for part in parts]
    firsts = np.cumsum([0, *sizes[:-1]])
    return StackedCells(
        obs=obs,
        rna=JoinedRows(rna) if are_read else sp.vstack(rna, format="csr"),
        rna_observed=panels["rna"].any(0),
        rna_present=np.concatenate([part.rna_present for part in parts]),
        rna_total_counts=np.concatenate([part.rna_total_counts for part in parts]),
        adt=JoinedRows(adt) if are_read else np.concatenate(adt),
        adt_observed=panels["adt"].any(0),
        adt_present=np.concatenate([part.adt_present for part in parts]),
        file_of=np.concatenate([_file_of(part) + first for part, first in zip(parts, firsts, strict=True)]),
        rna_panels=panels["rna"],
        adt_panels=panels["adt"],
    )


def _panels(part: AlignedCells, kind: str) -> NDArray[np.bool_]:
    """Give the panels of a file: one, or one per batch."""
    return (
        getattr(part, f"{kind}_panels") if isinstance(part, StackedCells) else getattr(part, f"{kind}_observed")[None]
    )


def _file_of(part: AlignedCells) -> NDArray[np.int64]:
    return part.file_of if isinstance(part, StackedCells) else np.zeros(len(part.obs), dtype=np.int64)
