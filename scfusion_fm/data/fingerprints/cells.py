"""Fingerprints of cells: numbers by which the same counts are known again in another file.

Letters: B cells, G genes or proteins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import poisson

from scfusion_fm.data.files.align import AlignedFile
from scfusion_fm.data.hashing import hash_keys
from scfusion_fm.data.schema import AlignedCells

HASHED_ROWS = 1024  # cells that are hashed together
READ_ROWS = 4096  # that are read together
CHANCE = 1e-3  # what chance gives more rarely than this is none
MIN_BITS = 40  # a cell whose counts take fewer binary digits may equal another by chance


def feature_keys(names: Sequence[str]) -> NDArray[np.uint64]:
    """Turn Ensembl ids or names of proteins into keys, (G,): the same in every vocabulary and version."""
    digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def fingerprint_rows(counts: sp.csr_matrix, feature_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """
    Hash the counts of each cell.

    Parameters
    ----------
    counts
        (B, G) whole non-negative numbers; an entry may be stored as zero.
    feature_keys
        (G,), of the function of this name.

    Returns
    -------
    (B,), 0 for a cell that has no fingerprint: without counts, or with too few to tell it from others.

    Raises
    ------
    ValueError
        If there is not one key per column.

    Notes
    -----
    The hashes of all (feature, count) that are not zero are summed modulo 2^64 and mixed. So neither the order of
    features matters nor whether a feature with zero counts is there.

    Cells need counts of at least `MIN_BITS` binary digits in all (3 has two, 4 three). In five public data sets,
    cut to random panels, two cells whose counts take b digits were equal with a probability of 2^-b or less for all
    b where any pair was (up to 20). At 40 digits, 50 million cells would then give a chance of less than 10^-4.
    `tests/data/fingerprints/test_cells.py` guards both.
    """
    if len(feature_keys) != counts.shape[1]:
        raise ValueError(f"`feature_keys` must have one key per column ({counts.shape[1]}), got {len(feature_keys)}.")
    found = np.zeros(counts.shape[0], dtype=np.uint64)
    for start in range(0, counts.shape[0], HASHED_ROWS):
        indptr = counts.indptr[start : start + HASHED_ROWS + 1].astype(np.int64)
        entries = slice(indptr[0], indptr[-1])
        values = counts.data[entries]
        hashes = hash_keys(feature_keys[counts.indices[entries]], values)
        hashes[values == 0] = 0
        filled = np.flatnonzero(np.diff(indptr))  # reduceat would give an empty row the entry of the next one
        if len(filled) == 0:
            continue
        starts = indptr[filled] - indptr[0]
        digits = np.frexp(values.astype(np.float64))[1]
        told_apart = np.add.reduceat(digits, starts) >= MIN_BITS
        mixed = np.maximum(hash_keys(np.add.reduceat(hashes, starts)), 1)
        found[start + filled] = np.where(told_apart, mixed, 0)
    return found


@dataclass(frozen=True)
class CellFingerprints:
    """
    Fingerprints of some cells, 0 for none.

    Attributes
    ----------
    rna, adt
        (B,), of the counts of each modality.
    """

    rna: NDArray[np.uint64]
    adt: NDArray[np.uint64]

    def __getitem__(self, rows: NDArray) -> "CellFingerprints":
        return CellFingerprints(self.rna[rows], self.adt[rows])

    def __len__(self) -> int:
        return len(self.rna)


def fingerprint_cells(aligned: AlignedCells, gene_ids: Sequence[str], protein_names: Sequence[str]) -> CellFingerprints:
    """Fingerprint cells over the vocabulary to which they are aligned; what is on disk is read block by block."""
    keys = feature_keys(gene_ids), feature_keys(protein_names)
    found = [np.empty(len(aligned.obs), np.uint64) for _ in keys]
    for start in range(0, len(aligned.obs), READ_ROWS):
        block = slice(start, start + READ_ROWS)
        found[0][block] = fingerprint_rows(aligned.rna[block], keys[0])
        found[1][block] = fingerprint_rows(sp.csr_matrix(aligned.adt[block]), keys[1])
    return CellFingerprints(*found)


def fingerprint_file(source: AlignedFile) -> CellFingerprints:
    """Fingerprint the cells of a file of any size over a vocabulary."""
    vocabulary = source.vocabulary
    parts = [fingerprint_cells(c, vocabulary.gene_ids, vocabulary.protein_names) for _, c in source.blocks()]
    return CellFingerprints(*(np.concatenate([getattr(part, kind) for part in parts]) for kind in ("rna", "adt")))


def exceeds_chance(found: int, expected: float) -> bool:
    """Tell whether more cells were found than chance explains, which gives `expected` of them on average."""
    return bool(poisson.sf(found - 1, expected) < CHANCE)
