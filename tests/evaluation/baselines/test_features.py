"""What baselines read: fitted on the training cells, missing values neutral."""

import numpy as np
import pytest
from scipy import sparse

from scfusion_fm.evaluation.baselines.features import Features, build_inputs, project_rna, standardise_proteins

N, G, P = 240, 40, 5
TRAIN = np.flatnonzero(np.arange(N) % 5 < 3)


@pytest.fixture
def noise():
    rng = np.random.default_rng(2)
    return rng.normal(size=(N, G)).astype(np.float32), rng.normal(size=(N, P)).astype(np.float32)


def test_other_cells_do_not_change_the_features_of_training_cells(noise):
    is_train = np.isin(np.arange(N), TRAIN)
    changed = [np.where(is_train[:, None], array, 9.0) for array in noise]
    before, after = (build_inputs(Features(*arrays), TRAIN) for arrays in (noise, changed))
    assert list(before) == ["rna", "adt", "rna+adt"]
    for name, values in before.items():
        np.testing.assert_allclose(values[TRAIN], after[name][TRAIN], atol=1e-6)


def test_components_are_the_training_cells_singular_vectors(noise):
    rna = noise[0].astype(np.float64)
    projected = project_rna(rna, TRAIN)
    centred = rna - rna[TRAIN].mean(axis=0)
    vectors = np.linalg.svd(centred[TRAIN], full_matrices=False)[2][: projected.shape[1]]
    np.testing.assert_allclose(np.abs(projected), np.abs(centred @ vectors.T), atol=1e-6)


def test_missing_and_constant_proteins_are_standardised_to_zero(noise):
    adt = noise[1].copy()
    adt[::3, 0], adt[:, 1], adt[:, 2] = np.nan, 7.0, np.nan
    scaled = standardise_proteins(adt, TRAIN)
    assert (scaled[::3, 0] == 0).all()
    assert (scaled[:, 1:3] == 0).all()
    np.testing.assert_allclose(scaled[TRAIN, 3].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(scaled[TRAIN, 3].std(), 1, atol=1e-6)
    measured = TRAIN[~np.isnan(adt[TRAIN, 0])]
    np.testing.assert_allclose(np.std(scaled[measured, 0]), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["rna", "adt"])
def test_only_the_inputs_that_are_there_are_used(noise, name):
    features = Features(**{name: noise[0]})
    assert list(build_inputs(features, TRAIN)) == list(features.given) == [name]


def test_sparse_and_dense_expression_give_the_same_features(noise):
    rna = np.where(noise[0] > 0, noise[0], 0).astype(np.float64)
    dense = build_inputs(Features(rna), TRAIN)["rna"]
    for matrix in (sparse.csr_matrix(rna), sparse.csr_array(rna)):
        np.testing.assert_allclose(build_inputs(Features(matrix), TRAIN)["rna"], dense, atol=1e-5)


def test_values_that_cannot_be_used_are_refused(noise):
    rna, adt = noise
    with pytest.raises(ValueError, match="`features` must hold at least one modality"):
        build_inputs(Features(), TRAIN)
    with pytest.raises(ValueError, match="`rna` must be finite"):
        build_inputs(Features(np.where(rna > 2, np.nan, rna)), TRAIN)
    with pytest.raises(ValueError, match="`adt` must hold no infinity"):
        build_inputs(Features(adt=np.where(adt > 2, np.inf, adt)), TRAIN)
    with pytest.raises(ValueError, match="`rna` must have at least two training cells and two genes, got 144 and 1"):
        build_inputs(Features(rna[:, :1]), TRAIN)
