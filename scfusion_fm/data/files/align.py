"""The counts of a file or object over a vocabulary: read by rows, or all of them.

Letters: n cells, K panels, G genes and P proteins of the vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import READ_ROWS, CellsFile
from scfusion_fm.data.files.coverage import PanelCoverage
from scfusion_fm.data.files.match import Alignment, match_features
from scfusion_fm.data.files.panels import Panels, find_group_columns, find_panels, read_groups
from scfusion_fm.data.files.stack import StackedCells
from scfusion_fm.data.files.survey import survey_cells
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.notices import warn


@dataclass(frozen=True)
class AlignedFile:
    """
    Hold the cells of a file or object over a vocabulary; their counts stay where they are.

    Attributes
    ----------
    cells
        The cells over the features of the file.
    vocabulary
        Genes and proteins.
    alignment
        Where the features of the file stand among them.
    panels
        What is measured, of all cells or by group.
    rna_present, adt_present
        (n,), which cells have counts of each modality.
    coverage
        How well the vocabulary fits each modality that the file has.
    """

    cells: Cells | CellsFile
    vocabulary: Vocabulary
    alignment: Alignment
    panels: Panels
    rna_present: NDArray[np.bool_]
    adt_present: NDArray[np.bool_]
    coverage: list[PanelCoverage]

    def __len__(self) -> int:
        return len(self.cells.obs)

    def read(self, start: int, stop: int) -> AlignedCells:
        """
        Read neighbouring cells.

        Raises
        ------
        ValueError
            If the file is damaged.
        """
        rna, totals, adt = self.alignment.read(self.cells, start, stop)
        part, panels = slice(start, stop), self.panels
        found = AlignedCells(
            obs=self.cells.obs.iloc[part],
            rna=rna,
            rna_observed=np.any(panels.rna, axis=0),
            rna_present=self.rna_present[part].copy(),
            rna_total_counts=totals,
            adt=adt,
            adt_observed=np.any(panels.adt, axis=0),
            adt_present=self.adt_present[part].copy(),
        )
        if panels.group_of is None:
            return found
        return StackedCells(**vars(found), file_of=panels.group_of[part], rna_panels=panels.rna, adt_panels=panels.adt)

    def read_all(self) -> AlignedCells:
        """Read all cells into memory."""
        return replace(self.read(0, len(self)), obs=self.cells.obs)

    def blocks(self, num_rows: int = READ_ROWS) -> Iterator[tuple[slice, AlignedCells]]:
        """Read all cells, block by block, with their places."""
        for start in range(0, len(self), num_rows):
            stop = min(start + num_rows, len(self))
            yield slice(start, stop), self.read(start, stop)

    def keep_panel(self, rna: NDArray[np.bool_], adt: NDArray[np.bool_]) -> "AlignedFile":
        """Take no other genes and proteins as measured."""
        return replace(self, panels=replace(self.panels, rna=self.panels.rna & rna, adt=self.panels.adt & adt))


def open_aligned(cells: Cells | CellsFile, vocabulary: Vocabulary, batch_key: str | None = None) -> AlignedFile:
    """
    Find the features of a file in a vocabulary, and look once at all its counts.

    Parameters
    ----------
    cells
        As `read_cells` or `open_cells` gives them.
    vocabulary
        Genes and proteins, in the order of the result.
    batch_key
        Column of obs whose groups may have panels of their own: what has no count in a group is not measured there.

    Raises
    ------
    ValueError
        As `match_features`; if the column is missing, or no cell has a count.

    Notes
    -----
    Warns as `match_features`, of cells without any count, and of features that batches, donors or the like lack.
    """
    alignment = match_features(cells, vocabulary)
    keys = find_group_columns(cells.obs) if batch_key is None else [batch_key]
    groups = [found for key in keys if len((found := read_groups(cells.obs, key, cells.path)).names) > 1]
    survey = survey_cells(cells, groups)
    check_empty_cells(int((~survey.present.any(1)).sum()), len(cells.obs), cells.path)
    panels = find_panels(alignment, survey.group_sums, groups, vocabulary, cells.path, batch_key is not None)
    parts = (
        ("genes", cells.rna, alignment.rna, alignment.rna_observed, survey.sums[0]),
        ("proteins", cells.adt, alignment.adt, alignment.adt_observed, survey.sums[1]),
    )
    coverage = [
        PanelCoverage.of(noun, observed, sums[targets >= 0].sum(), sums.sum())
        for noun, modality, targets, observed, sums in parts
        if modality is not None and targets is not None
    ]
    return AlignedFile(cells, vocabulary, alignment, panels, survey.present[:, 0], survey.present[:, 1], coverage)


def align_cells(cells: Cells, vocabulary: Vocabulary, batch_key: str | None = None) -> AlignedCells:
    """Select and order the counts of a file as a vocabulary does.

    Parameters
    ----------
    cells
        As `read_cells` gives them.
    vocabulary
        Genes and proteins, in the order of the result.
    batch_key
        Column of obs whose groups may have panels of their own: what has no count in a group is not measured there.

    Returns
    -------
    Counts over the vocabulary with marks of what was measured.

    Raises
    ------
    ValueError
        As `open_aligned`.

    Notes
    -----
    Warns as `open_aligned`.
    """
    return open_aligned(cells, vocabulary, batch_key).read_all()


def check_empty_cells(number: int, num_obs: int, path: str) -> None:
    """
    Warn of cells without any count.

    Raises
    ------
    ValueError
        If there are no others.
    """
    if number == num_obs:
        raise ValueError(
            f"`{path}` must have counts of genes or proteins of the vocabulary, got none in its {num_obs:,} cells. "
            "Leave it out."
        )
    if number:
        warn(f"{path}: {number:,} of {num_obs:,} cells have no count in any modality, and are kept.")
