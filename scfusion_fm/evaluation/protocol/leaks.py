"""Look for ways in which what is tested could have been known before.

Shapes: n cells, F columns of a modality.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.protocol.splits import NO_NAME

SEVERITIES = ("leak", "warning", "note")
GATE_DEPTH = 6
GATE_ACCURACY = 0.98
NEAR_GATE_ACCURACY = 0.93
GATE_FOLDS = 5
MAX_GATE_CELLS = 5000


@dataclass(frozen=True)
class Leak:
    """One finding.

    Attributes
    ----------
    kind
        Short name, e.g. "seen_in_pretraining".
    severity
        "leak": the score is not that of unseen cells; "warning": it may not be; "note": it is, of less than it seems.
    message
        What was found, and what to do.
    count
        Cells concerned; 0 where the finding is not about cells.
    """

    kind: str
    severity: str
    message: str
    count: int


@dataclass
class Evidence:
    """What is known about an evaluation.

    Attributes
    ----------
    partition
        What the n cells are for.
    tested
        The modalities that the model under test reads, e.g. ("rna", "adt").
    fingerprints
        By modality (n,), uint64, equal for cells with equal counts; 0 where a cell has none.
    labels
        (n,), what is predicted, or `None` if it is not a label.
    label_derived_from
        What labels were made from, e.g. ("rna", "adt"); other names than those of modalities count as independent.
        `None` if nobody said.
    modalities
        By modality (n, F), counts or normalised values, in which gates are looked for.
    datasets
        (n,), data set of each cell; gates are looked for within each.
    donors
        (n,), donor of each cell, "" or "unknown" where nobody knows.
    """

    partition: Partition
    tested: Sequence[str] = ("rna", "adt")
    fingerprints: Mapping[str, NDArray[np.uint64]] = field(default_factory=dict)
    labels: NDArray[np.str_] | None = None
    label_derived_from: Sequence[str] | None = None
    modalities: Mapping[str, NDArray | sparse.csr_matrix] = field(default_factory=dict)
    datasets: NDArray[np.str_] | None = None
    donors: NDArray[np.str_] | None = None


def find_leaks(evidence: Evidence, seed: int = 0) -> list[Leak]:
    """Return what was found, the worst first; an empty list if all that could be checked is in order.

    Parameters
    ----------
    evidence
        What is known about the evaluation.
    seed
        Seed of the division of cells behind the search for gates.

    Raises
    ------
    ValueError
        If an array does not have one row per cell.
    """
    per_cell = {"datasets": evidence.datasets, "labels": evidence.labels, "donors": evidence.donors}
    per_cell |= dict(evidence.fingerprints) | dict(evidence.modalities)
    evidence.partition.check_arrays({name: values for name, values in per_cell.items() if values is not None})
    found = [
        *find_declared_sources(evidence),
        *find_gates(evidence, seed),
        *find_duplicates(evidence),
        *find_shared_donors(evidence),
    ]
    return sorted(found, key=lambda leak: SEVERITIES.index(leak.severity))


def find_pretrained_cells(
    seen: int | None, expected_by_chance: float = 0.0, beyond_chance: bool = False
) -> Iterator[Leak]:
    """Yield a leak if the model was trained on more test cells than chance explains, a note if nobody knows.

    Parameters
    ----------
    seen
        Number of test cells that the model is known to have been trained on before; `None` if nobody knows.
    expected_by_chance
        How many the filter that was asked would find if there were none.
    beyond_chance
        Whether these are more than chance explains.
    """
    if seen is None:
        yield Leak("seen_unknown", "note", "nobody knows whether the model has seen test cells; ask `scfusion seen`", 0)
    elif beyond_chance:
        message = (
            f"the model has seen {seen} test cells in pretraining ({expected_by_chance:.3g} by chance); leave them out "
            "or pretrain without them"
        )
        yield Leak("seen_in_pretraining", "leak", message, seen)


def find_declared_sources(evidence: Evidence) -> Iterator[Leak]:
    """Yield a leak if labels were made from a modality that the model reads, a note if nobody said.

    Parameters
    ----------
    evidence
        `labels`, `label_derived_from` and `tested`.
    """
    if evidence.labels is None:
        return
    if evidence.label_derived_from is None:
        message = "nobody said what the labels were made from; set `label_derived_from`"
        yield Leak("label_source_unknown", "note", message, 0)
        return
    read = sorted(set(evidence.label_derived_from) & set(evidence.tested))
    if read:
        message = f"labels were made from {' and '.join(read)}, which the model reads; test without, or say so"
        yield Leak("label_from_tested_modality", "leak", message, len(evidence.partition.test))


def find_gates(evidence: Evidence, seed: int = 0) -> Iterator[Leak]:
    """Yield a warning or a note wherever a small decision tree reads the labels off one tested modality.

    Parameters
    ----------
    evidence
        `labels`, `modalities`, `tested` and `datasets`.
    seed
        Seed of the division of cells.

    Notes
    -----
    A tree of depth 6 whose predictions of held-out cells (5 folds within the data set) are right for at least 98 %
    (warning) or 93 % (note), and wrong for at most a quarter of the cells for which the most frequent label is wrong.
    Well separated types pass for gated ones, and gated types with few cells for others: on protein counts of four 10x
    sets gated on proteins the tree was right for 89 to 100 %, of eight sets with other labels for 53 to 95 %. So a
    finding is a reason to ask how labels were made, and none is no proof that they were made otherwise.
    """
    if evidence.labels is None:
        return
    labels = np.asarray(evidence.labels).astype(str)
    datasets = np.zeros(len(labels), "U1") if evidence.datasets is None else np.asarray(evidence.datasets).astype(str)
    usable = np.isin(np.arange(len(labels)), evidence.partition.rows) & ~np.isin(labels, NO_NAME)
    for modality in evidence.tested:
        if modality not in evidence.modalities:
            continue
        for name in np.unique(datasets[usable]):
            rows = np.flatnonzero(usable & (datasets == name))
            accuracy, majority, n_cells = measure_gates(evidence.modalities[modality][rows], labels[rows], seed)
            if accuracy >= NEAR_GATE_ACCURACY and 1 - accuracy <= (1 - majority) / 4:
                severity = "warning" if accuracy >= GATE_ACCURACY else "note"
                where = f" of {name}" if name else ""
                message = (
                    f"a decision tree of depth {GATE_DEPTH} reads {accuracy:.1%} of the labels{where} off {modality} "
                    f"in held-out cells (most frequent label: {majority:.1%}); ask whether they were gated on it"
                )
                yield Leak("label_reproduced_by_gates", severity, message, n_cells)


def measure_gates(x: NDArray | sparse.csr_matrix, labels: NDArray[np.str_], seed: int = 0) -> tuple[float, float, int]:
    """Measure how well a small decision tree reads labels off one modality in held-out cells.

    Parameters
    ----------
    x
        (n, F), counts or normalised values; NaN where not measured. Of more than 5,000 cells, as many are drawn.
    labels
        (n,), labels; those with fewer than 5 cells are left out.
    seed
        Seed of draw, folds and tree.

    Returns
    -------
    Accuracy of the tree, share of the most frequent label, and number of cells; 0, 1, 0 with fewer than two labels.
    """
    rng = np.random.default_rng(seed)
    if len(labels) > MAX_GATE_CELLS:
        chosen = np.sort(rng.choice(len(labels), MAX_GATE_CELLS, replace=False))
        x, labels = x[chosen], labels[chosen]
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    enough = counts[codes] >= GATE_FOLDS
    x, labels, counts = x[enough], labels[enough], counts[counts >= GATE_FOLDS]
    if len(counts) < 2:
        return 0.0, 1.0, 0
    tree = DecisionTreeClassifier(max_depth=GATE_DEPTH, random_state=seed)
    folds = StratifiedKFold(GATE_FOLDS, shuffle=True, random_state=seed)
    predicted = cross_val_predict(tree, x, labels, cv=folds)
    return float((predicted == labels).mean()), float(counts.max() / counts.sum()), len(labels)


def find_duplicates(evidence: Evidence) -> Iterator[Leak]:
    """Yield findings for test cells with the same counts as a training or validation cell.

    Parameters
    ----------
    evidence
        `fingerprints` and the partition.

    Notes
    -----
    A leak if the two cells agree in all modalities in which both have a fingerprint; a warning if they agree in one
    and differ in another, which few antibodies or low counts can do by chance.
    """
    names = list(evidence.fingerprints)
    if not names:
        return
    keys = pd.DataFrame({name: number_fingerprints(evidence.fingerprints[name]) for name in names})
    known = keys.iloc[evidence.partition.known].drop_duplicates()
    test = keys.iloc[evidence.partition.test]
    whole, partial = set(), {name: set() for name in names}
    for name in names:
        mine = test[test[name] > 0].reset_index().merge(known[known[name] > 0], on=name, suffixes=("", "_known"))
        agrees = np.ones(len(mine), bool)
        for other in names:
            if other != name:
                a, b = mine[other].to_numpy(), mine[f"{other}_known"].to_numpy()
                agrees &= (a == b) | (a == 0) | (b == 0)
        whole |= set(mine["index"][agrees])
        partial[name] |= set(mine["index"][~agrees])
    if whole:
        message = f"{len(whole)} test cells are also in training or validation; leave them out"
        yield Leak("duplicate_cells", "leak", message, len(whole))
    for name, cells in partial.items():
        if cells - whole:
            message = f"{len(cells - whole)} test cells have the same {name} counts as a cell of training or validation"
            yield Leak(f"duplicate_{name}", "warning", message, len(cells - whole))


def number_fingerprints(fingerprints: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Give equal fingerprints the same number above 0, and 0 to cells without one.

    Parameters
    ----------
    fingerprints
        (n,), uint64.

    Raises
    ------
    ValueError
        If it has another shape or type.
    """
    fingerprints = np.asarray(fingerprints)
    if fingerprints.ndim != 1 or fingerprints.dtype != np.uint64:
        raise ValueError(
            f"`fingerprints` must be uint64 of shape (cells,), got {fingerprints.dtype} of shape "
            f"{fingerprints.shape}; pass what the data package computes."
        )
    _, numbers = np.unique(fingerprints, return_inverse=True)
    return np.where(fingerprints > 0, numbers + 1, 0)


def find_shared_donors(evidence: Evidence) -> Iterator[Leak]:
    """Yield a note if a donor has cells on both sides.

    Parameters
    ----------
    evidence
        `donors` and the partition.
    """
    if evidence.donors is None:
        return
    donors = np.asarray(evidence.donors).astype(str)
    donors = np.where(np.isin(donors, NO_NAME), "", donors)
    tested = donors[evidence.partition.test]
    shared = (set(tested) & set(donors[evidence.partition.known])) - {""}
    if shared:
        count = int(np.isin(tested, sorted(shared)).sum())
        message = (
            f"{count} test cells are of {len(shared)} donors that training has, too: the score is one for known "
            "donors; hold out donors for new ones"
        )
        yield Leak("shared_donors", "note", message, count)
