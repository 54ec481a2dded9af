"""Scores of predicted proteins: against numpy and scipy, of the observed values alone."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from scfusion_fm.evaluation.metrics.proteins import protein_scores


@pytest.fixture
def proteins():
    rng = np.random.default_rng(1)
    measured = rng.normal(size=(40, 6))
    return measured, measured + rng.normal(size=measured.shape), rng.random(measured.shape) > 0.3


def test_protein_scores_agree_with_numpy_and_scipy_on_the_observed_values(proteins):
    measured, predicted, observed = proteins
    table, summary = protein_scores(measured, predicted, observed)
    pairs = [(measured[o, i], predicted[o, i]) for i, o in enumerate(observed.T)]
    np.testing.assert_allclose(table["pearson"], [np.corrcoef(*pair)[0, 1] for pair in pairs])
    np.testing.assert_allclose(table["spearman"], [spearmanr(*pair).statistic for pair in pairs])
    np.testing.assert_allclose(table["rmse"], [np.sqrt(np.mean((m - p) ** 2)) for m, p in pairs])
    assert list(table["n"]) == list(observed.sum(axis=0))
    assert summary["pearson_per_protein"] == pytest.approx(table["pearson"].mean())
    assert summary["rmse"] == pytest.approx(np.sqrt(np.mean((measured - predicted)[observed] ** 2)))


def test_pearson_per_cell_is_pearson_per_protein_of_the_transposed(proteins):
    measured, predicted, observed = proteins
    per_cell = protein_scores(measured, predicted, observed)[1]["pearson_per_cell"]
    assert per_cell == pytest.approx(protein_scores(measured.T, predicted.T, observed.T)[1]["pearson_per_protein"])


def test_what_was_not_observed_changes_nothing(proteins):
    measured, predicted, observed = proteins
    before = protein_scores(measured, predicted, observed)
    after = protein_scores(np.where(observed, measured, np.nan), np.where(observed, predicted, 1e6), observed)
    np.testing.assert_allclose(before[0], after[0])
    assert before[1] == pytest.approx(after[1])


def test_a_constant_prediction_scores_zero_and_a_constant_measurement_is_left_out(proteins):
    measured, predicted, observed = (array.copy() for array in proteins)
    predicted[:, 0] = 0.1
    measured[:, 1] = 0.1
    table, summary = protein_scores(measured, predicted, observed)
    assert list(table.loc[0, ["pearson", "spearman"]]) == [0, 0]
    assert table.loc[1, ["pearson", "spearman"]].isna().all()
    assert summary["pearson_per_protein"] == pytest.approx(table["pearson"].drop(1).sum() / 5)


def test_proteins_that_nobody_measured_give_nan_and_no_warning(proteins):
    measured, predicted, observed = proteins
    table, summary = protein_scores(measured, predicted, np.zeros_like(observed))
    assert table[["pearson", "spearman", "rmse"]].isna().all(axis=None)
    assert np.isnan(list(summary.values())).all()


def test_protein_arrays_that_do_not_fit_are_refused(proteins):
    measured, predicted, observed = proteins
    with pytest.raises(ValueError, match=r"must share one shape .* got \[\(40, 6\), \(39, 6\), \(40, 6\)\]"):
        protein_scores(measured, predicted[1:], observed)
    with pytest.raises(ValueError, match="`observed` must be bool, got int64"):
        protein_scores(measured, predicted, observed.astype(np.int64))
    measured = measured.copy()
    measured[tuple(np.argwhere(observed)[0])] = np.nan
    with pytest.raises(ValueError, match="`measured` must be finite wherever `observed` is true, got 1 values"):
        protein_scores(measured, predicted, observed)
    with pytest.raises(ValueError, match="`predicted` must be finite"):
        protein_scores(predicted, measured, observed)
