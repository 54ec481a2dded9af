from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.protocol.leaks import (
    Evidence,
    find_leaks,
    find_pretrained_cells,
    measure_gates,
    number_fingerprints,
)

N = 200
TEST = np.arange(N) % 5 == 4
VAL = np.arange(N) % 5 == 3


def draw_fingerprints(seed):
    return np.random.default_rng(seed).integers(1, 2**63, N).astype(np.uint64)


@pytest.fixture
def clean():
    """Labels that both modalities hint at, and no gate reads off."""
    rng = np.random.default_rng(0)
    labels = rng.choice(["B", "NK", "T"], N)
    codes = np.unique(labels, return_inverse=True)[1]
    return Evidence(
        partition=Partition(*(np.flatnonzero(cells) for cells in (~TEST & ~VAL, VAL, TEST))),
        fingerprints={"rna": draw_fingerprints(1), "adt": draw_fingerprints(2)},
        labels=labels,
        label_derived_from=[],
        modalities={
            "rna": sparse.csr_matrix(rng.poisson(1 + codes[:, None] * rng.random(30))),
            "adt": rng.normal(size=(N, 6)) + codes[:, None],
        },
        datasets=np.where(np.arange(N) < 120, "one", "two"),
        donors=np.where(TEST, "d1", "d2"),
    )


def kinds(evidence):
    return {leak.kind: leak for leak in find_leaks(evidence)}


def test_a_clean_set_gives_nothing(clean):
    assert find_leaks(clean) == []


def test_cells_seen_in_pretraining_are_a_leak():
    (leak,) = find_pretrained_cells(12, 0.01, beyond_chance=True)
    assert (leak.kind, leak.severity, leak.count) == ("seen_in_pretraining", "leak", 12)
    assert list(find_pretrained_cells(2, 1.5)) == list(find_pretrained_cells(0)) == []
    (note,) = find_pretrained_cells(None)
    assert (note.kind, note.severity) == ("seen_unknown", "note")


@pytest.mark.parametrize("source", [["adt"], ["atac", "adt"]])
def test_labels_made_from_a_tested_modality_are_a_leak_if_that_was_said(clean, source):
    evidence = replace(clean, label_derived_from=source)
    leak = kinds(evidence)["label_from_tested_modality"]
    assert (leak.severity, leak.count) == ("leak", TEST.sum())
    assert "from adt," in leak.message
    assert find_leaks(replace(evidence, tested=("rna",))) == []


def test_labels_of_unknown_source_are_noted(clean):
    assert kinds(replace(clean, label_derived_from=None))["label_source_unknown"].severity == "note"
    assert find_leaks(replace(clean, label_derived_from=None, labels=None)) == []


def test_labels_gated_on_one_modality_of_one_data_set_give_a_warning_with_the_number(clean):
    adt = clean.modalities["adt"]
    gated = np.where(adt[:, 0] > 1, np.where(adt[:, 1] > 1, "B", "T"), "NK")
    labels = np.where(clean.datasets == "one", gated, clean.labels)
    found = find_leaks(replace(clean, labels=labels))
    assert [leak.kind for leak in found] == ["label_reproduced_by_gates"]
    assert found[0].severity == "warning"
    assert found[0].count == (clean.datasets == "one").sum()
    accuracy, _, _ = measure_gates(adt[clean.datasets == "one"], labels[clean.datasets == "one"])
    assert f"{accuracy:.1%} of the labels of one off adt" in found[0].message
    assert find_leaks(replace(clean, labels=labels, tested=("rna",))) == []
    assert "label_reproduced_by_gates" in kinds(replace(clean, labels=gated, datasets=None))


def test_labels_that_are_nearly_gated_are_noted(clean):
    gated = np.where(clean.modalities["adt"][:, 0] > 1, "B", "T")
    wrong = np.arange(N) % 50 == 0
    found = find_leaks(replace(clean, labels=np.where(wrong, np.where(gated == "B", "T", "B"), gated), datasets=None))
    assert [(leak.kind, leak.severity) for leak in found] == [("label_reproduced_by_gates", "note")]


def test_one_frequent_label_is_no_gate(clean):
    labels = np.where(np.arange(N) % 67 == 0, "rare", "T")
    assert find_leaks(replace(clean, labels=labels)) == []
    labels = np.where(np.arange(N) % 29 == 0, "rare", "T")
    assert find_leaks(replace(clean, labels=labels, datasets=None)) == []


def test_gates_are_looked_for_in_a_sample_of_many_cells(monkeypatch):
    monkeypatch.setattr("scfusion_fm.evaluation.protocol.leaks.MAX_GATE_CELLS", 100)
    x = np.random.default_rng(0).normal(size=(400, 2))
    accuracy, majority, n_cells = measure_gates(x, np.where(x[:, 0] > 0, "a", "b"))
    assert n_cells == 100
    assert accuracy > 0.9
    assert 0.5 <= majority < 0.7


def copy_cells(clean, modalities, n=5):
    """Give the first test cells the fingerprints of the first training and validation cells."""
    fingerprints = {name: values.copy() for name, values in clean.fingerprints.items()}
    for name in modalities:
        fingerprints[name][np.flatnonzero(TEST)[:n]] = fingerprints[name][np.flatnonzero(~TEST)[:n]]
    return fingerprints


def test_the_same_cell_on_both_sides_is_a_leak(clean):
    found = find_leaks(replace(clean, fingerprints=copy_cells(clean, ["rna", "adt"])))
    assert [(leak.kind, leak.severity, leak.count) for leak in found] == [("duplicate_cells", "leak", 5)]


@pytest.mark.parametrize("name", ["rna", "adt"])
def test_the_same_counts_of_one_modality_are_a_warning_or_a_leak_if_the_other_cannot_tell(clean, name):
    fingerprints = copy_cells(clean, [name])
    found = find_leaks(replace(clean, fingerprints=fingerprints))
    assert [(leak.kind, leak.severity, leak.count) for leak in found] == [(f"duplicate_{name}", "warning", 5)]
    other = {"rna": "adt", "adt": "rna"}[name]
    fingerprints[other][np.flatnonzero(TEST)[:2]] = 0
    found = find_leaks(replace(clean, fingerprints=fingerprints))
    assert [(leak.kind, leak.count) for leak in found] == [("duplicate_cells", 2), (f"duplicate_{name}", 3)]
    found = find_leaks(replace(clean, fingerprints={name: fingerprints[name]}))
    assert [(leak.kind, leak.count) for leak in found] == [("duplicate_cells", 5)]


def test_cells_without_a_fingerprint_and_unused_cells_are_nobody_s_duplicates(clean):
    zeros = {name: np.zeros(N, np.uint64) for name in ("rna", "adt")}
    assert find_leaks(replace(clean, fingerprints=zeros)) == []
    first, part = np.flatnonzero(~TEST)[:5], clean.partition
    unused = Partition(np.setdiff1d(part.train, first), np.setdiff1d(part.val, first), part.test)
    evidence = replace(clean, partition=unused, fingerprints=copy_cells(clean, ["rna", "adt"]))
    assert find_leaks(evidence) == []


def test_donors_on_both_sides_are_noted(clean):
    donors = np.where(np.arange(N) < 100, "d1", "unknown")
    leak = kinds(replace(clean, donors=donors))["shared_donors"]
    assert (leak.severity, leak.count) == ("note", TEST[:100].sum())
    assert find_leaks(replace(clean, donors=np.full(N, "unknown"))) == []


def test_the_worst_comes_first(clean):
    evidence = replace(
        clean, donors=np.full(N, "d"), label_derived_from=["adt"], fingerprints=copy_cells(clean, ["rna"])
    )
    assert [leak.severity for leak in find_leaks(evidence)] == ["leak", "warning", "note"]


def test_equal_fingerprints_get_equal_numbers():
    fingerprints = np.array([2**63, 0, 1, 2**63, 5], np.uint64)
    numbers = number_fingerprints(fingerprints)
    assert numbers[0] == numbers[3]
    assert numbers[1] == 0
    assert len(set(numbers)) == 4


def test_evidence_that_does_not_fit_is_refused(clean):
    with pytest.raises(ValueError, match=r"`donors` must have one row per cell \(200\), got 199"):
        find_leaks(replace(clean, donors=clean.donors[1:]))
    with pytest.raises(ValueError, match="must hold rows below 200, the number of cells, got 200"):
        find_leaks(replace(clean, partition=Partition([0], [1], [200])))
    with pytest.raises(ValueError, match=r"`fingerprints` must be uint64 of shape \(cells,\), got int64"):
        find_leaks(replace(clean, fingerprints={"rna": np.ones(N, np.int64)}))
