"""Fingerprints of cells: what changes them, what does not, and how often they lie."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.fingerprints.cells import MIN_BITS, feature_keys, fingerprint_rows
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary

NAMES = [f"gene{i}" for i in range(60)]


def draw(num_cells=40, seed=0, rate=3.0):
    counts = np.random.default_rng(seed).poisson(rate, (num_cells, len(NAMES)))
    return sp.csr_matrix(counts, dtype=np.float32)


def test_order_of_features_and_zero_features_do_not_matter():
    counts = draw()
    expected = fingerprint_rows(counts, feature_keys(NAMES))
    assert len(set(expected)) == 40
    order = np.random.default_rng(1).permutation(len(NAMES))
    np.testing.assert_array_equal(fingerprint_rows(counts[:, order], feature_keys([NAMES[i] for i in order])), expected)
    wider = sp.csr_matrix(sp.hstack([counts, sp.csr_matrix((40, 3))]))
    wider.data = wider.data.astype(np.uint16)
    np.testing.assert_array_equal(fingerprint_rows(wider, feature_keys([*NAMES, "x", "y", "z"])), expected)
    rows = np.random.default_rng(2).permutation(40)
    np.testing.assert_array_equal(fingerprint_rows(counts[rows], feature_keys(NAMES)), expected[rows])


def test_one_count_more_or_at_another_feature_is_another_fingerprint():
    counts = draw(1).toarray()
    changed = np.repeat(counts, len(NAMES), axis=0) + np.eye(len(NAMES), dtype=np.float32)
    found = fingerprint_rows(sp.csr_matrix(np.vstack([counts, changed])), feature_keys(NAMES))
    assert len(set(found)) == len(NAMES) + 1


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_empty_rows_and_stored_zeros_have_no_share(monkeypatch, block):
    monkeypatch.setattr("scfusion_fm.data.fingerprints.cells.HASHED_ROWS", block)
    dense = draw(20).toarray()
    dense[[0, 3, 4, 19]] = 0
    counts = sp.csr_matrix(dense)
    expected = [fingerprint_rows(sp.csr_matrix(row[None]), feature_keys(NAMES))[0] for row in dense]
    np.testing.assert_array_equal(fingerprint_rows(counts, feature_keys(NAMES)), expected)
    assert (np.flatnonzero(np.array(expected) == 0) == [0, 3, 4, 19]).all()
    full = sp.csr_matrix(np.ones_like(dense))
    full.data = dense.ravel()
    np.testing.assert_array_equal(fingerprint_rows(full, feature_keys(NAMES)), expected)
    assert fingerprint_rows(sp.csr_matrix((0, 60)), feature_keys(NAMES)).shape == (0,)


def test_cells_with_too_few_counts_have_none():
    ones = np.tril(np.ones((60, 60)))  # row i has i + 1 counts of one digit each
    found = fingerprint_rows(sp.csr_matrix(ones), feature_keys(NAMES))
    np.testing.assert_array_equal(found != 0, np.arange(1, 61) >= MIN_BITS)


def test_keys_belong_to_columns():
    with pytest.raises(ValueError, match=r"`feature_keys` must have one key per column \(60\), got 59"):
        fingerprint_rows(draw(), feature_keys(NAMES[:-1]))


def test_real_cells_that_differ_have_different_fingerprints(shared_data):
    vocabulary = build_vocabulary(None, "protein_coding", "all")
    for name in ("cd8_stoeckius.h5mu", "mpal_citeseq.h5mu"):
        with warnings.catch_warnings(action="ignore"):
            aligned = align_cells(read_cells(shared_data / name), vocabulary)
        adt = sp.csr_matrix(aligned.adt)
        for counts, names in ((aligned.rna, vocabulary.gene_ids), (adt, vocabulary.protein_names)):
            found = fingerprint_rows(counts, feature_keys(names))
            assert len(set(found[found != 0])) == (found != 0).sum()


def test_the_rule_for_low_counts_is_on_the_safe_side(shared_data):
    """Cut real protein panels to a few: of cells with b digits, at most 2^-b of the pairs may be equal."""
    counts = read_cells(shared_data / "teaseq_pbmc_adt_only.h5ad").adt.counts
    rng = np.random.default_rng(0)
    pairs, equal = np.zeros(100), np.zeros(100)
    for size in (2, 3, 4, 5) * 5:
        panel = counts[:, rng.choice(counts.shape[1], size, replace=False)].toarray()
        digits = np.frexp(panel)[1].sum(1)
        _, inverse, times = np.unique(panel, axis=0, return_inverse=True, return_counts=True)
        np.add.at(pairs, digits, len(panel) - 1)
        np.add.at(equal, digits, times[inverse.ravel()] - 1)
    seen = np.flatnonzero(equal)
    assert seen.max() >= 12
    assert (equal[seen] <= 2.0**-seen * pairs[seen] + 3 * np.sqrt(equal[seen])).all()
