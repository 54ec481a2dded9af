"""Percentiles of strangeness among reference cells, and masks that are the same for every cell."""

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.percentiles import draw_masks, surprise_percentiles


def test_an_ordinary_cell_is_above_a_percentile_as_seldom_as_it_says():
    rng = np.random.default_rng(0)
    found = np.concatenate([surprise_percentiles(rng.gamma(2, size=100), rng.gamma(2, size=39)) for _ in range(300)])
    for level in (50, 90, 95):
        share = (found > level).mean()
        assert share <= (100 - level) / 100 + 0.01
        assert share >= (100 - level) / 100 - 0.035  # steps of 1 / 40, and ties at the level count as below
    assert found.min() >= 0
    assert found.max() < 100
    assert (surprise_percentiles([99.0], rng.gamma(2, size=999)) > 99.8).all()


def test_percentiles_rise_with_the_score_and_ties_are_no_surprise():
    reference = np.arange(20.0)
    found = surprise_percentiles([-1, 0, 5, 5.5, 19, 20], reference)
    assert (np.diff(found) >= 0).all()
    assert surprise_percentiles([3.0], np.full(50, 3.0)) == pytest.approx(0)


def test_groups_are_compared_within_and_need_enough_cells():
    reference = np.concatenate([np.arange(30.0), 100 + np.arange(30.0), np.arange(5.0), [np.nan] * 30])
    kinds = np.repeat([1, 2, 3, 4], [30, 30, 5, 30])
    found = surprise_percentiles([50, 50, 50, 50, np.nan], reference, [1, 2, 3, 4, 1], kinds)
    assert found[0] > 95
    assert found[1] == pytest.approx(0)
    assert np.isnan(found[2:]).all()


def test_masks_hide_a_share_and_every_token_about_equally_often():
    masks = draw_masks(40, 0.25, 8)
    assert (masks.sum(1) == 10).all()
    assert (masks.sum(0) == 2).all()
    assert np.array_equal(masks, draw_masks(40, 0.25, 8))
    assert not np.array_equal(masks, draw_masks(40, 0.25, 8, seed=1))
    assert draw_masks(3, 0.1, 2).any(1).all()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="must both be given or both be None"):
        surprise_percentiles([1], [1], groups=[1])
    with pytest.raises(ValueError, match="Groups must be one per score"):
        surprise_percentiles([1], [1], groups=[1, 2], reference_groups=[1])
    for ratio, draws in ((0, 1), (1, 1), (0.5, 0)):
        with pytest.raises(ValueError, match=r"`ratio` must lie in \(0, 1\)"):
            draw_masks(5, ratio, draws)
