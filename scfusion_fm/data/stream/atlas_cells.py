"""Cells of an atlas over the vocabulary of a model, in memory or read from disk whenever some of them are used.

Letters: n cells, B of them, G genes, P proteins.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.atlas.manifest import MANIFEST
from scfusion_fm.data.atlas.tables import AtlasTables
from scfusion_fm.data.files.stack import ReadRows, StackedCells
from scfusion_fm.data.locations import Location, file_system
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

ENTRY_BYTES = 8  # of a count and its column in memory
BLOCK_CELLS = 4096  # that are read together


@dataclass(frozen=True)
class AtlasMatrix(ReadRows):
    """
    Counts of an atlas over a vocabulary by rows; `matrix[rows]` reads them.

    Attributes
    ----------
    atlas
        The atlas.
    columns
        Place of each gene or protein of the atlas in the vocabulary, -1 for none.
    shape
        (n, G) or (n, P) of the vocabulary.
    """

    atlas: Atlas
    columns: NDArray[np.int64]
    shape: tuple[int, int]

    def identify(self) -> list[Any]:
        """Give arrays that are the same where all rows are."""
        return [np.frombuffer(self.atlas.fingerprint.encode(), np.uint8), self.columns]

    def _numbers(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        return np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows


class AtlasRna(AtlasMatrix):
    """RNA counts of an atlas by rows, (B, G) CSR; see `AtlasMatrix`."""

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> sp.csr_matrix:
        found = self.atlas.read_rna(self._numbers(rows))
        columns, indptr = self.columns[found.indices], found.indptr
        known = columns >= 0
        indptr = np.concatenate(([0], np.cumsum(known)))[indptr]
        counts = sp.csr_matrix((found.data[known], columns[known], indptr), shape=(found.shape[0], self.shape[1]))
        counts.sort_indices()
        return counts


class AtlasAdt(AtlasMatrix):
    """Protein counts of an atlas by rows, (B, P) dense; see `AtlasMatrix`."""

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        found = self.atlas.read_adt(self._numbers(rows))
        counts, known = np.zeros((len(found), self.shape[1]), np.float32), self.columns >= 0
        counts[:, self.columns[known]] = found[:, known]
        return counts


def is_atlas(location: Location) -> bool:
    """Tell whether there is an atlas, and not an AnnData that others wrote."""
    fs, path = file_system(location)
    return fs.isfile(f"{path}/{MANIFEST}")


def open_atlas_cells(location: Location, vocabulary: Vocabulary) -> StackedCells:
    """
    Give the cells of an atlas over a vocabulary, each with what its data set measured; counts are read when used.

    Parameters
    ----------
    location
        The atlas.
    vocabulary
        Genes and proteins, in the order of the result.

    Raises
    ------
    ValueError
        If there is no complete atlas, or it shares no gene and no protein with the vocabulary.
    """
    atlas, tables = Atlas(location), AtlasTables(location)
    own, number = atlas.vocabulary, len(atlas)
    genes = pd.Index(vocabulary.gene_ids).get_indexer(own.gene_ids)
    proteins = pd.Index(vocabulary.protein_names).get_indexer(own.protein_names)
    if not (genes >= 0).any() and not (proteins >= 0).any():
        raise ValueError(
            f"`data` must share genes or proteins with the model, got none of the {len(genes):,} genes and "
            f"{len(proteins):,} proteins of {str(location)!r}. Use a model of such a vocabulary."
        )
    rna = AtlasRna(atlas, genes, (number, vocabulary.num_genes))
    adt = AtlasAdt(atlas, proteins, (number, vocabulary.num_proteins))
    panels = {
        kind: _map_panels(tables.panel(kind), columns, width)
        for kind, columns, width in (("rna", genes, rna.shape[1]), ("adt", proteins, adt.shape[1]))
    }
    return StackedCells(
        obs=tables.read_obs(),
        rna=rna,
        rna_observed=panels["rna"].any(0),
        rna_present=tables.column("rna_present"),
        rna_total_counts=tables.column("rna_total_counts"),
        adt=adt,
        adt_observed=panels["adt"].any(0),
        adt_present=tables.column("adt_present"),
        file_of=atlas.dataset.codes.astype(np.int64),
        rna_panels=panels["rna"],
        adt_panels=panels["adt"],
    )


def load_atlas_cells(cells: StackedCells, memory: float) -> StackedCells:
    """Read all counts of the cells of an atlas, if they take no more than so many bytes; else give the cells."""
    rna, adt = cells.rna, cells.adt
    needed = ENTRY_BYTES * rna.atlas.manifest["num_values"] + adt.shape[0] * adt.shape[1] * 4
    if needed > memory:
        return cells
    blocks = _blocks(len(cells.obs))
    return dataclasses.replace(
        cells,
        rna=sp.vstack([rna[block] for block in blocks], format="csr"),
        adt=np.concatenate([adt[block] for block in blocks]),
    )


def _map_panels(measured: NDArray[np.bool_], columns: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """Turn (features of the atlas, data sets) into (data sets, features of the vocabulary)."""
    panels = np.zeros((measured.shape[1], width), dtype=bool)
    panels[:, columns[columns >= 0]] = measured[columns >= 0].T
    return panels


def _blocks(number: int) -> list[slice]:
    return [slice(start, start + BLOCK_CELLS) for start in range(0, number, BLOCK_CELLS)]
