"""Intervals around predicted proteins: they cover what they promise, and say where they cannot."""

import numpy as np
import pandas as pd
import pytest

from scfusion_fm.evaluation.calibration.conformal import coverage_by
from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals, fit_left_out_intervals, pearson_interval
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, read_intervals, write_intervals
from scfusion_fm.evaluation.calibration.intervals import IntervalRule

NAMES = ["a", "b", "c"]


def draw(n, seed, spread=(1.0, 2.0, 0.5)):
    """Measured and predicted values whose errors are skewed and of another size in every protein."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(n, 3)) * 3
    return predicted + rng.gamma(1.0, 1.0, (n, 3)) * spread, predicted, np.ones((n, 3), dtype=bool)


def test_coverage_is_what_was_promised_on_average_over_calibrations():
    held = []
    for seed in range(200):
        intervals = fit_intervals(*draw(49, seed), NAMES)
        measured, predicted, observed = draw(200, 1000 + seed)
        for level in intervals.rule.levels:
            width = intervals.widths(level, 200)
            table = coverage_by(measured, predicted - width, predicted + width, observed, NAMES)
            held.append(table["coverage"].to_numpy())
    held = np.array(held).reshape(200, 4, 3).mean(0)
    # With 50 * level whole, the expected coverage is the level itself; the standard error is below 0.006.
    np.testing.assert_allclose(held, np.repeat([[0.5], [0.8], [0.9], [0.96]], 3, 1), atol=0.02)


def test_groups_have_their_own_intervals_and_small_or_unknown_ones_the_pooled():
    rng = np.random.default_rng(0)
    groups = np.array(["easy"] * 200 + ["hard"] * 200 + ["rare"] * 5, dtype=object)
    scale = np.where(groups == "easy", 0.1, 2.0)[:, None]
    measured = rng.normal(size=(405, 3)) * scale
    seen = np.ones((405, 3), dtype=bool)
    intervals = fit_intervals(measured, np.zeros((405, 3)), seen, NAMES, groups)
    new = np.array(["easy", "hard", "rare", "never seen", None, np.nan], dtype=object)
    widths = intervals.widths(0.9, 6, new)
    assert (widths[0] < 0.3).all()
    assert (widths[1] > 2).all()
    assert (widths[2:] == intervals.widths(0.9, 4)).all()
    measured = rng.normal(size=(400, 3)) * scale[:400]
    width = intervals.widths(0.9, 400, groups[:400])
    table = coverage_by(measured, -width, width, seen[:400], NAMES, groups[:400])
    assert table["group"].tolist() == ["all"] * 3 + ["easy"] * 3 + ["hard"] * 3
    assert table["coverage"].between(0.78, 0.97).all()  # of 200 cells, by intervals from 200
    pooled = intervals.widths(0.9, 400)
    table = coverage_by(measured, -pooled, pooled, seen[:400], NAMES, groups[:400])
    assert table.loc[table["group"] == "easy", "coverage"].eq(1).all()  # what groups are for
    assert table.loc[table["group"] == "hard", "coverage"].max() < 0.86


def test_a_protein_that_rna_does_not_determine_is_marked():
    rng = np.random.default_rng(2)
    predicted = rng.normal(size=(60, 3))
    noise = rng.normal(size=(60, 3))
    measured = np.stack([predicted[:, 0] + 0.3 * noise[:, 0], noise[:, 1], np.zeros(60)], 1)
    intervals = fit_intervals(measured, predicted, np.ones((60, 3), dtype=bool), NAMES)
    assert intervals.undetermined.tolist() == [False, True, True]  # the last one is constant
    table = intervals.table
    assert table.loc["a", "r2"] > 0.8 > 0 > table.loc["b", "r2"]
    assert table.loc["a", "pearson_low"] < table.loc["a", "pearson"] < table.loc["a", "pearson_high"]
    few = fit_intervals(measured[:3], predicted[:3], np.ones((3, 3), dtype=bool), NAMES)
    assert few.undetermined.all()  # three cells show nothing
    assert few.without_interval(0.9).all()
    assert np.isinf(few.widths(0.9, 1)).all()


def test_what_was_not_measured_does_not_matter():
    measured, predicted, observed = draw(60, 3)
    observed[::3, 1] = False
    changed = np.where(observed, measured, np.nan)
    before = fit_intervals(np.where(observed, measured, 9e9), predicted, observed, NAMES)
    after = fit_intervals(changed, predicted, observed, NAMES)
    pd.testing.assert_frame_equal(before.table, after.table)
    assert np.array_equal(before.half_widths, after.half_widths)
    assert after.table["n"].tolist() == [60, 40, 60]
    nobody = coverage_by(changed, predicted, predicted, np.zeros_like(observed), NAMES)
    assert nobody["coverage"].isna().all()


def test_interval_of_a_correlation_holds_it_as_often_as_it_says():
    rng, held = np.random.default_rng(4), 0
    for _ in range(400):
        x = rng.normal(size=(2, 40))
        low, high = pearson_interval(np.corrcoef(x[0], 0.5 * x[0] + np.sqrt(0.75) * x[1])[0, 1], 40)
        held += low <= 0.5 <= high
    assert 0.92 < held / 400 < 0.98
    assert [float(x) for x in pearson_interval(0.9, 3)] == [-1, 1]


def test_bad_settings_are_refused():
    data = draw(20, 6)
    for settings, message in (
        ({"levels": (1.0,)}, r"`levels` must lie in \(0, 1\)"),
        ({"levels": ()}, "`levels` must lie in"),
        ({"min_pearson": 2}, r"`min_pearson` must lie in \[-1, 1\]"),
        ({"min_group_cells": 0}, "`min_group_cells` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            IntervalRule(**settings)
    with pytest.raises(ValueError, match="`names` must name the 3 proteins"):
        fit_intervals(*data, ["a"])
    with pytest.raises(ValueError, match="`groups` must give one group per cell"):
        fit_intervals(*data, NAMES, ["x"])
    with pytest.raises(ValueError, match="`level` must be one of the calibrated"):
        fit_intervals(*data, NAMES).widths(0.7, 3)


def draw_groups(number, seed, cells=40):
    """Groups with offsets of their own, as large as the noise of cells."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(cells, 3)) + rng.normal(size=(1, 3)) for _ in range(number)]


def test_intervals_for_new_groups_hold_where_those_for_known_ones_do_not():
    held = {"left out": [], "pooled": []}
    for seed in range(150):
        *known, new = draw_groups(9, seed)
        seen, measured = np.ones((320, 3), dtype=bool), np.concatenate(known)
        groups = np.repeat(np.arange(8), 40)
        offsets = np.repeat([part.mean(0) for part in known], 40, axis=0)
        found = {
            # A model that knows a group has learned its offset; one without the group has not.
            "left out": fit_left_out_intervals(measured, np.zeros((320, 3)), seen, NAMES, groups),
            "pooled": fit_intervals(measured, offsets, seen, NAMES),
        }
        for name, intervals in found.items():
            width = intervals.widths(0.9, 40)
            held[name].append(coverage_by(new, -width, width, seen[:40], NAMES)["coverage"].mean())
    assert abs(np.mean(held["left out"]) - 0.9) < 0.03
    assert np.mean(held["pooled"]) < 0.8


def test_left_out_groups_tell_of_rna_within_groups_and_stay_with_the_file(tmp_path):
    rng = np.random.default_rng(3)
    groups = np.repeat(["a", "b", "c"], 60)
    predicted = rng.normal(size=(180, 3)) * 0.1
    offsets = np.repeat([[0.0], [5.0], [10.0]], 60, axis=0)
    measured = predicted + offsets + rng.normal(size=(180, 3)) * [0.02, 0.02, 1.0]
    observed = np.ones((180, 3), dtype=bool)
    intervals = fit_left_out_intervals(measured, predicted, observed, NAMES, groups)
    assert intervals.undetermined.tolist() == [False, False, True]
    assert (intervals.table["r2"] < 0).all()  # offsets that no RNA tells are errors
    flat = fit_left_out_intervals(measured, predicted + offsets[::-1], observed, NAMES, groups)
    np.testing.assert_allclose(flat.table["pearson"], intervals.table["pearson"])
    path = tmp_path / PROTEIN_INTERVALS
    path.write_text(write_intervals(intervals))
    loaded = read_intervals(path)
    assert loaded.num_left_out == 3
    assert (loaded.half_widths == intervals.half_widths).all()
    with pytest.raises(ValueError, match="`left_out` must give the group of every cell"):
        fit_left_out_intervals(measured, predicted, observed, NAMES, np.array(["a"] * 179 + [None], dtype=object))
