"""Say what the matrices of a file hold: counts, or what became of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.proteins_in_obsm import list_proteins
from scfusion_fm.data.files.stored import StoredAnnData, StoredCsr, StoredMatrix, StoredTable, store_matrix
from scfusion_fm.data.schema import LARGEST_COUNT

LARGEST_LOG = 25.0  # log1p of the largest total that anyone normalises to, with a margin
MIN_ROWS = 10


@dataclass
class SlotContent:
    """A matrix of a file, such as `layers["counts"]` of modality rna ('' in an AnnData), and what it holds."""

    modality: str
    slot: str
    content: str


def describe_slots(parts: StoredAnnData | Mapping[str, StoredAnnData]) -> list[SlotContent]:
    """Look at every matrix in which counts may be."""
    modalities = {"": parts} if isinstance(parts, StoredAnnData) else parts
    return [
        SlotContent(str(name), slot, _describe_slot(read))
        for name, stored in modalities.items()
        for slot, read in _slots(stored)
    ]


def _slots(stored: StoredAnnData) -> Iterator[tuple[str, Callable[[], StoredMatrix]]]:
    for name in stored.layers:
        yield f'layers["{name}"]', partial(stored.layers.__getitem__, name)
    if stored.raw is not None:
        yield ".raw", partial(getattr, stored.raw, "X")
    if stored.X is not None:
        yield "X", partial(getattr, stored, "X")
    for name in list_proteins(stored):
        yield f'obsm["{name}"]', partial(_open_table, stored, name)


def _open_table(stored: StoredAnnData, name: str) -> StoredMatrix:
    found = stored.obsm[name]
    return store_matrix(found.read().to_numpy()) if isinstance(found, StoredTable) else found


def _describe_slot(read: Callable[[], StoredMatrix]) -> str:
    try:
        return describe_values(read())
    except ValueError as error:
        return "a damaged sparse matrix" if "indices" in str(error) else "damaged"


def describe_values(matrix: StoredMatrix) -> str:
    """
    Say in a few words what a matrix holds, with the number of bad entries where there are some.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    facts = _Facts()
    for block in matrix.blocks():
        values = np.asarray(block.data if sp.issparse(block) else block)
        if values.dtype.kind not in "biuf":
            return f"no numbers ({values.dtype})"
        facts.add(values)
    if facts.size == 0:
        return "nothing but zeros" if isinstance(matrix, StoredCsr) else "nothing"
    if facts.bad:
        return f"NaN or infinite in {facts.bad:,} entries"
    if facts.negative:
        return f"negative numbers in {facts.negative:,} entries, as after scaling or CLR"
    return "counts" if facts.is_whole and facts.largest <= LARGEST_COUNT else _describe_fractions(matrix, facts)


@dataclass
class _Facts:
    """What is known of the values that were seen."""

    size: int = 0
    bad: int = 0
    negative: int = 0
    largest: float = 0.0
    is_whole: bool = True

    def add(self, values: NDArray) -> None:
        finite = np.isfinite(values)
        self.size += values.size
        self.bad += values.size - int(finite.sum())
        self.negative += int((values < 0).sum())
        self.largest = max(self.largest, float(np.max(values, initial=0, where=finite)))
        self.is_whole = self.is_whole and bool((values == np.floor(values)).all())


def is_constant(totals: NDArray[np.floating]) -> bool:
    """Tell whether many cells have the same total, within 1 %."""
    return len(totals) >= MIN_ROWS and float(totals.std()) < 0.01 * float(totals.mean())


def _describe_fractions(matrix: StoredMatrix, facts: _Facts) -> str:
    """Say what numbers that are no counts are: of all, only the finite and non-negative get here."""
    if facts.is_whole:
        return f"whole numbers too large for counts, up to {facts.largest:.3g}"
    if is_constant(_totals(matrix, lambda block: block)):
        return "normalised values: all cells have the same total"
    if facts.largest < LARGEST_LOG:
        same = is_constant(_totals(matrix, lambda block: block.astype(np.float64).expm1()))
        if same:
            return "log-transformed values: all cells have the same total before the logarithm"
        return f"fractions up to {facts.largest:.3g}, probably log-transformed"
    return f"fractions up to {facts.largest:.3g}"


def _totals(matrix: StoredMatrix, change: Callable[[sp.csr_matrix], sp.csr_matrix]) -> NDArray[np.float64]:
    blocks = (change(sp.csr_matrix(block)) for block in matrix.blocks())
    totals = np.concatenate([np.asarray(block.sum(axis=1, dtype=np.float64)).ravel() for block in blocks])
    return totals[totals > 0]
