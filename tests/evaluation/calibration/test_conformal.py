"""Quantiles of errors: the ranks of the theory, and groups that weigh the same."""

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.conformal import conformal_quantiles, coverage_by, left_out_quantiles


def test_quantile_is_the_rank_of_the_theory():
    errors = np.arange(1.0, 20.0)[::-1, None]  # 19 of them
    levels = (0.5, 0.9, 0.95, 0.96)
    assert conformal_quantiles(errors, levels)[:, 0].tolist() == [10, 18, 19, np.inf]
    assert conformal_quantiles(np.append(errors, [[np.nan]], 0), levels)[:, 0].tolist() == [10, 18, 19, np.inf]
    assert conformal_quantiles(np.full((4, 1), np.nan), (0.5,))[0, 0] == np.inf
    assert conformal_quantiles(np.arange(9.0)[:, None], (0.9,))[0, 0] == 8  # 0.9 * 10 is 9, not a little more


def test_a_new_group_weighs_its_cells_and_no_group_weighs_more_than_another():
    small, large = np.full((1, 1), 1.0), np.full((9, 1), 3.0)
    widen = np.sqrt(1 + 1 / 2)
    found = left_out_quantiles([small, large], (0.5, 0.51, 0.9))
    np.testing.assert_allclose(found[:, 0], [1.0 * widen, 3.0 * widen, 3.0 * widen])
    found = left_out_quantiles([small, large, np.full((4, 1), np.nan)], (0.5,))  # a group that did not measure it
    np.testing.assert_allclose(found, [[1.0 * widen]])
    assert left_out_quantiles([small, np.full((4, 1), np.nan)], (0.5,)).tolist() == [[np.inf]]
    tenths = np.arange(1.0, 11.0)[:, None]
    found = left_out_quantiles([tenths, tenths], (0.3, 0.7, 0.9))  # sums of tenths are not exact
    np.testing.assert_allclose(found[:, 0], np.array([3, 7, 9]) * widen)


def test_coverage_of_what_does_not_fit_is_refused():
    measured = np.zeros((2, 3))
    with pytest.raises(ValueError, match="must fit one another"):
        coverage_by(measured, measured, measured, np.ones((2, 3), bool), ["a"])
