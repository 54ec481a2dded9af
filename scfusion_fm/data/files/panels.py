"""Features that a group of cells did not measure, in files that were joined with zeros in their place.

Absent is not zero: what has no count in any cell of a batch, while its rate elsewhere lets one expect many, was hardly
measured there. One such protein is enough, since every antibody leaves some background; of genes it takes many, since a
donor may lack the genes of Y, and a sorted sample those of a cell type.

Letters: K groups, F features of a modality, G genes, P proteins, B cells.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.match import Alignment
from scfusion_fm.data.schema import read_categories
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.notices import warn

# Columns of obs with groups of cells, in lower case without separators; those whose panels differ come first.
GROUP_COLUMNS = ["batch", "batchid", "dataset", "library", "libraryid", "site", "sample", "sampleid", "origident"]
GROUP_COLUMNS += [
    "experiment",
    "study",
    "project",
    "run",
    "pool",
    "panel",
    "chemistry",
    "technology",
    "cohort",
    "center",
]
GROUP_COLUMNS += ["lane", "channel", "donor", "donorid", "individual", "patient", "patientid", "subject", "subjectid"]
MAX_GROUPS = 64  # the largest are looked at
MIN_CELLS = 20  # of a group that is looked at
MIN_EXPECTED = 20.0  # counts of a feature that has none
MIN_EXPECTED_BY_KEY = 3.0  # of a protein, where a user says which groups have panels of their own
MIN_GENES, MIN_SHARE, MAX_SHARE = 20, 0.02, 0.2  # of the genes that should have counts: how many make a gap
NUM_EXAMPLES, NUM_SHOWN = 5, 3

Blocks = Iterable[tuple[sp.csr_matrix, NDArray[np.float32]]]


@dataclass(frozen=True)
class Groups:
    """
    Hold the groups of a column of obs.

    Attributes
    ----------
    key
        The column.
    names
        Names of the groups that are looked at.
    codes
        (n,) group of each cell; -1 for none, or one that is not looked at.
    """

    key: str
    names: list[str]
    codes: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(K,) number of cells."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))


@dataclass(frozen=True)
class Gaps:
    """
    Hold which features groups lack.

    Attributes
    ----------
    groups
        The groups.
    rna, adt
        (K, G) and (K, P), what has no count in a group that has a gap.
    """

    groups: Groups
    rna: NDArray[np.bool_]
    adt: NDArray[np.bool_]

    def __bool__(self) -> bool:
        return bool(self.rna.any() or self.adt.any())

    def describe(self, vocabulary: Vocabulary) -> str:
        """Name the groups, and some of what they lack."""
        lacking = np.flatnonzero(self.rna.any(1) | self.adt.any(1))
        texts = []
        for group in lacking[:NUM_SHOWN]:
            lists = (
                ("proteins", np.array(vocabulary.protein_names)[self.adt[group]]),
                ("genes", np.array(vocabulary.gene_symbols)[self.rna[group]]),
            )
            parts = [
                f"{len(names):,} {noun} ({', '.join(names[:NUM_EXAMPLES])}{', ...' * (len(names) > NUM_EXAMPLES)})"
                for noun, names in lists
                if len(names)
            ]
            texts.append(f"{self.groups.names[group]!r} lacks {' and '.join(parts)}")
        more = f"; and {len(lacking) - NUM_SHOWN} more groups" if len(lacking) > NUM_SHOWN else ""
        return "; ".join(texts) + more


@dataclass(frozen=True)
class Panels:
    """
    Hold what is measured in the cells of a file.

    Attributes
    ----------
    group_of
        (n,), which panel each cell has; None where all have one.
    rna, adt
        (panels, G) and (panels, P).
    """

    group_of: NDArray[np.int64] | None
    rna: NDArray[np.bool_]
    adt: NDArray[np.bool_]


def find_group_columns(obs: pd.DataFrame) -> list[str]:
    """Find the columns of obs whose names say that they hold batches, donors or the like."""
    bare = {str(column): str(column).rpartition(":")[2].lower() for column in obs.columns}  # rna:batch is of a modality
    plain = {column: "".join(c for c in name if c.isalnum()) for column, name in bare.items()}
    found = [column for column, name in plain.items() if name in GROUP_COLUMNS]
    return sorted(found, key=lambda column: GROUP_COLUMNS.index(plain[column]))


def read_groups(obs: pd.DataFrame, key: str, path: str) -> Groups:
    """
    Read the groups of a column; a cell without a value has none.

    Raises
    ------
    ValueError
        If the column is missing.
    """
    if key not in obs:
        raise ValueError(f"`batch_key` must be a column of obs, got {key!r} for {path!r}; it has {list(obs.columns)}.")
    texts = read_categories(obs[key])
    names = list(pd.Series(texts, dtype=object).value_counts().index[:MAX_GROUPS].astype(str))
    return Groups(key, names, pd.Index(names, dtype=object).get_indexer(texts))


def sum_by_group(counts: sp.csr_matrix, groups: Groups, start: int) -> NDArray[np.float64]:
    """Sum the counts of neighbouring cells, of which `start` is the first, by group, (K + 1, F); of none at the end."""
    codes = groups.codes[start : start + counts.shape[0]]
    rows = np.where(codes < 0, len(groups.names), codes)  # cells of no group count among the others
    place = (np.ones(len(rows)), (rows, np.arange(len(rows))))
    sorter = sp.csr_matrix(place, shape=(len(groups.names) + 1, len(rows)))
    return np.asarray((sorter @ sp.csr_matrix(counts, dtype=np.float64)).todense())


def find_gaps(blocks: Blocks, groups: Groups, by_key: bool) -> Gaps:
    """
    Find what groups lack.

    Parameters
    ----------
    blocks
        Counts of neighbouring cells, (B, G) and (B, P); together all cells.
    groups
        Groups of the cells.
    by_key
        Whether a user says that these groups have panels of their own.
    """
    sums: list[NDArray[np.float64]] = []
    start = 0
    for block in blocks:
        parts = [sum_by_group(sp.csr_matrix(counts), groups, start) for counts in block]
        start += len(block[1])
        sums = [old + new for old, new in zip(sums, parts, strict=True)] if sums else parts
    return _compare(sums, groups, by_key)


def _compare(sums: Sequence[NDArray[np.float64]], groups: Groups, by_key: bool) -> Gaps:
    rna, adt = (_find_absent(part, groups.sizes) for part in sums)
    needed = np.clip(MIN_GENES, MIN_SHARE * rna.expected.sum(1), MAX_SHARE * rna.expected.sum(1))
    gap = rna.sure.sum(1) >= np.maximum(needed, 1)
    proteins = adt.likely if by_key else adt.none & adt.sure.any(1)[:, None] & (adt.sure | adt.likely)
    return Gaps(groups, rna.none & gap[:, None], proteins)


@dataclass(frozen=True)
class _Absent:
    """
    Hold what groups lack of one modality, (K, F) each.

    Attributes
    ----------
    none
        No count here, but elsewhere.
    expected
        Features that should have many counts.
    likely, sure
        None of them, where some or many were expected.
    """

    none: NDArray[np.bool_]
    expected: NDArray[np.bool_]
    likely: NDArray[np.bool_]
    sure: NDArray[np.bool_]


def _find_absent(sums: NDArray[np.float64], sizes: NDArray[np.int64]) -> _Absent:
    """Compare the sums of groups, (K + 1, F), with what the rates elsewhere let one expect."""
    own, elsewhere = sums[:-1], sums.sum(0) - sums[:-1]
    totals = elsewhere.sum(1, keepdims=True)
    expected = elsewhere / np.maximum(totals, 1) * own.sum(1, keepdims=True)
    large = (sizes >= MIN_CELLS)[:, None]
    none, many = (own == 0) & (elsewhere > 0) & large, (expected >= MIN_EXPECTED) & large
    return _Absent(none, many, none & (expected >= MIN_EXPECTED_BY_KEY), none & many)


def find_panels(
    alignment: Alignment,
    group_sums: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    groups: Sequence[Groups],
    vocabulary: Vocabulary,
    path: str,
    by_key: bool,
) -> Panels:
    """
    Warn of features that groups of cells lack; where a user names the groups, take them as not measured there.

    Parameters
    ----------
    alignment
        Where the features of the file stand in the vocabulary.
    group_sums
        Counts by group over the features of the file, (K + 1, F) of RNA and ADT; for each grouping.
    groups
        The groupings: the one that a user names, or the usual columns.
    vocabulary
        Its genes and proteins.
    path
        What to call the file.
    by_key
        Whether a user names the groups.
    """
    observed = alignment.rna_observed, alignment.adt_observed
    for grouping, sums in zip(groups, group_sums, strict=True):
        targets = alignment.rna, alignment.adt
        known = [_collect(*part) for part in zip(sums, targets, map(len, observed), strict=True)]
        gaps = _compare(known, grouping, by_key)
        if gaps and by_key:
            lacking = gaps.describe(vocabulary)
            warn(f"{path}: in the groups of {grouping.key!r}, what has no count is not measured: {lacking}.")
            return _hide(observed, gaps)
        if gaps:
            warn_of_gaps(gaps, vocabulary, path)
            break
    return Panels(None, *(part[None] for part in observed))


def _collect(sums: NDArray[np.float64], targets: NDArray[np.int64] | None, size: int) -> NDArray[np.float64]:
    """Sum the columns of a file into those of the vocabulary, (K + 1, size)."""
    found = np.zeros((size, len(sums)))
    if targets is not None:
        np.add.at(found, targets[targets >= 0], sums.T[targets >= 0])
    return found.T


def warn_of_gaps(gaps: Gaps, vocabulary: Vocabulary, path: str) -> None:
    """Warn of features that will be read as zeros."""
    warn(
        f"{path}: groups of {gaps.groups.key!r} have no count of features that others have many of: "
        f"{gaps.describe(vocabulary)}. If they were not measured there, zeros are wrong: give `batch_key` "
        f"{gaps.groups.key!r} (--batch-key) to hide them there.",
    )


def _hide(observed: tuple[NDArray[np.bool_], NDArray[np.bool_]], gaps: Gaps) -> Panels:
    """Give each group a panel of its own; cells of no group keep that of the file, the last."""
    codes = gaps.groups.codes
    rna, adt = (
        np.vstack([known & ~lacking, known[None]])
        for known, lacking in zip(observed, (gaps.rna, gaps.adt), strict=True)
    )
    return Panels(np.where(codes < 0, len(gaps.groups.names), codes), rna, adt)
