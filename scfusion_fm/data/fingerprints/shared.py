"""Find cells that are in two files: by their barcodes, and by their counts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scfusion_fm.data.fingerprints.cells import CellFingerprints, exceeds_chance

BARCODE = re.compile(r"[ACGT]{12,}")
WHITELIST = 737_280  # barcodes of 10x chemistry v2, the shortest list in wide use


@dataclass
class SharedCells:
    """
    What two files have in common.

    Attributes
    ----------
    first, second
        The files.
    barcodes, expected_barcodes
        Barcodes in both, and as many as two samples of this size share by chance.
    rna, adt
        Cells with the same counts in both.
    """

    first: str
    second: str
    barcodes: int
    expected_barcodes: float
    rna: int
    adt: int

    @property
    def is_suspicious(self) -> bool:
        """Whether there are the same counts, or more of the same barcodes than chance gives."""
        return bool(self.rna or self.adt) or exceeds_chance(self.barcodes, self.expected_barcodes)

    def describe(self, other: str) -> str:
        """Say what is shared with the other file."""
        return (
            f"may share cells with {other}: {self.barcodes:,} barcodes are in both (chance gives "
            f"{self.expected_barcodes:,.0f}), {self.rna:,} cells have the same RNA counts, {self.adt:,} the same ADT."
        )


def barcode_cores(names: Iterable[str]) -> frozenset[str]:
    """Cut names of cells to their barcodes; names without one stay, but for plain numbers, which mean nothing."""
    cores = set()
    for name in map(str, names):
        found = BARCODE.findall(name)
        if found:
            cores.add(max(found, key=len))
        elif not name.isdigit():
            cores.add(name)
    return frozenset(cores)


def compare_cells(
    first: tuple[str, frozenset[str], CellFingerprints], second: tuple[str, frozenset[str], CellFingerprints]
) -> SharedCells:
    """Compare two files, each given as path, barcodes and fingerprints over the same vocabulary."""
    (path, barcodes, prints), (other_path, other_barcodes, other_prints) = first, second
    same = [
        int((np.intersect1d(a, b) != 0).sum())
        for a, b in ((prints.rna, other_prints.rna), (prints.adt, other_prints.adt))
    ]
    expected = len(barcodes) * len(other_barcodes) / WHITELIST
    return SharedCells(path, other_path, len(barcodes & other_barcodes), expected, *same)
