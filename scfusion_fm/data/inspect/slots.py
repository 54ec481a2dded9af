"""Say what the matrices of a file hold: counts, or what became of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import check_sparse
from scfusion_fm.data.files.proteins_in_obsm import PROTEIN_OBSM_KEY
from scfusion_fm.data.files.readers import Container
from scfusion_fm.data.schema import check_counts

LARGEST_LOG = 25.0  # log1p of the largest total that anyone normalises to, with a margin
MIN_ROWS = 10


@dataclass
class SlotContent:
    """A matrix of a file, such as `layers["counts"]` of modality rna ('' in an AnnData), and what it holds."""

    modality: str
    slot: str
    content: str


def describe_slots(container: Container) -> list[SlotContent]:
    """Look at every matrix in which counts may be."""
    modalities = getattr(container, "mod", {"": container})
    return [
        SlotContent(str(name), slot, describe_values(matrix))
        for name, adata in modalities.items()
        for slot, matrix in _slots(adata)
    ]


def _slots(adata: Any) -> Iterator[tuple[str, Any]]:
    for name, matrix in adata.layers.items():
        if name is not None:  # anndata 0.13 shows X there too
            yield f'layers["{name}"]', matrix
    if adata.raw is not None:
        yield ".raw", adata.raw.X
    if adata.X is not None:
        yield "X", adata.X
    if PROTEIN_OBSM_KEY in adata.obsm:
        yield f'obsm["{PROTEIN_OBSM_KEY}"]', adata.obsm[PROTEIN_OBSM_KEY]


def describe_values(matrix: Any) -> str:
    """Say in a few words what a matrix holds, with the number of bad entries where there are some."""
    if sp.issparse(matrix):
        try:
            check_sparse(matrix, "matrix")  # before anything reads beyond it
        except ValueError:
            return "a damaged sparse matrix"
    values = np.asarray(matrix.data if sp.issparse(matrix) else matrix)
    if values.dtype.kind not in "biuf":
        return f"no numbers ({values.dtype})"
    if values.size == 0:
        return "nothing but zeros" if sp.issparse(matrix) else "nothing"
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        return f"NaN or infinite in {bad:,} entries"
    negative = int((values < 0).sum())
    if negative:
        return f"negative numbers in {negative:,} entries, as after scaling or CLR"
    try:
        check_counts(matrix, "values")
    except ValueError:
        return _describe_fractions(matrix, values)
    return "counts"


def is_constant(totals: NDArray[np.floating]) -> bool:
    """Tell whether many cells have the same total, within 1 %."""
    return len(totals) >= MIN_ROWS and float(totals.std()) < 0.01 * float(totals.mean())


def _describe_fractions(matrix: Any, values: NDArray) -> str:
    """Say what numbers that are no counts are: of all, only the finite and non-negative get here."""
    largest = float(values.max())
    if (values == np.floor(values)).all():
        return f"whole numbers too large for counts, up to {largest:.3g}"
    table = matrix.tocsr() if sp.issparse(matrix) else sp.csr_matrix(np.atleast_2d(values))
    if is_constant(_totals(table)):
        return "normalised values: all cells have the same total"
    if largest < LARGEST_LOG:
        inverse = table.astype(np.float64).expm1()
        same = ": all cells have the same total before the logarithm" if is_constant(_totals(inverse)) else ""
        return f"log-transformed values{same}" if same else f"fractions up to {largest:.3g}, probably log-transformed"
    return f"fractions up to {largest:.3g}"


def _totals(table: sp.csr_matrix) -> NDArray[np.float64]:
    totals = np.asarray(table.sum(axis=1, dtype=np.float64)).ravel()
    return totals[totals > 0]
