"""One look at all counts of a file or object: which cells have some, and how many each feature has.

Letters: n cells, F features of a modality, K groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import READ_ROWS, CellsFile
from scfusion_fm.data.files.panels import Groups, sum_by_group
from scfusion_fm.data.schema import Cells

Sums = tuple[NDArray[np.float64], NDArray[np.float64]]  # of RNA and ADT


@dataclass(frozen=True)
class Survey:
    """
    Hold what was seen.

    Attributes
    ----------
    present
        (n, 2), which cells have counts of RNA and of ADT.
    sums
        (F,) counts of each feature of RNA and of ADT; empty where the file lacks the modality.
    group_sums
        The same by group, (K + 1, F), the last of cells of no group; for each grouping.
    """

    present: NDArray[np.bool_]
    sums: Sums
    group_sums: list[Sums]


def survey_cells(cells: Cells | CellsFile, groups: Sequence[Groups]) -> Survey:
    """Look at all counts, block by block, once."""
    modalities = (cells.rna, cells.adt)
    widths = [0 if modality is None else len(modality.var) for modality in modalities]
    present = np.zeros((len(cells.obs), 2), dtype=bool)
    sums = (np.zeros(widths[0]), np.zeros(widths[1]))
    by_group = [(np.zeros((len(g.names) + 1, widths[0])), np.zeros((len(g.names) + 1, widths[1]))) for g in groups]
    for start in range(0, len(present), READ_ROWS):
        stop = min(start + READ_ROWS, len(present))
        for i, modality in enumerate(modalities):
            if modality is not None:
                counts = modality.read(start, stop)
                present[start:stop, i] = np.asarray(counts.sum(axis=1)).ravel() > 0
                _add(sums[i], counts)
                for grouping, found in zip(groups, by_group, strict=True):
                    found[i][:] += sum_by_group(counts, grouping, start)
    return Survey(present, sums, by_group)


def _add(sums: NDArray[np.float64], counts: sp.csr_matrix) -> None:
    sums += np.bincount(counts.indices, weights=counts.data, minlength=len(sums))
