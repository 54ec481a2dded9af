"""Coverage over folds: what a fold's intervals hold depends on the other folds alone."""

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.conformal import coverage_by
from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals
from scfusion_fm.evaluation.protocol.crossed_intervals import HeldOut, cross_coverage

NAMES = ["a", "b"]


def draw(name, offset=0.0, cells=200, seed=0):
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(cells, 2))
    return HeldOut(name, (predicted + offset + rng.normal(size=(cells, 2))).astype(np.float32), predicted)


def test_coverage_of_a_fold_is_that_of_intervals_from_the_other_folds():
    folds = [draw(str(i), seed=i) for i in range(4)]
    table = cross_coverage(folds, NAMES, new_groups=False)
    others = [np.concatenate([getattr(fold, x) for fold in folds[1:]]) for x in ("measured", "predicted")]
    seen = np.ones_like(others[0], dtype=bool)
    intervals = fit_intervals(*others, seen, NAMES)
    width = intervals.widths(0.9, 200)
    first = folds[0]
    expected = coverage_by(first.measured, first.predicted - width, first.predicted + width, seen[:200], NAMES)
    own = table[(table["fold"] == "0") & (table["level"] == 0.9)]
    np.testing.assert_allclose(own["coverage"], expected["coverage"])
    np.testing.assert_allclose(own["width"], expected["width"])
    mean = table.groupby("level")["coverage"].mean()
    np.testing.assert_allclose(mean, mean.index, atol=0.03)


def test_new_groups_get_wider_intervals_and_what_cannot_have_one_is_left_out():
    folds = [draw(str(i), offset, seed=i) for i, offset in enumerate((-1.0, 0.0, 1.0))]
    plain, both = (cross_coverage(folds, NAMES, new_groups) for new_groups in (False, True))
    wide, within = (both[both["unit"] == unit].reset_index(drop=True) for unit in ("CLR", "deviations"))
    assert set(plain["unit"]) == {"CLR"}
    assert len(within) == len(wide)
    held = within[within["level"] == 0.9]["coverage"]  # offsets of groups do not matter
    np.testing.assert_allclose(held, 0.9, atol=0.06)
    assert (wide["width"] > plain["width"]).all()
    folds[1].measured[:, 1] = np.nan
    table = cross_coverage(folds, NAMES, new_groups=True)
    # Of `b` there is one other group for each that measured it, and nothing to score in the one that did not.
    assert set(table["protein"]) == {"a"}
    folds[1].measured[:50, 1] = 0.0
    table = cross_coverage(folds, NAMES, new_groups=True)
    # All of them are 0, so that there are no deviations to count.
    assert table[(table["fold"] == "1") & (table["protein"] == "b")]["n"].tolist() == [50] * 4


def test_one_fold_has_nothing_to_calibrate_on():
    with pytest.raises(ValueError, match="`folds` must be at least two"):
        cross_coverage([draw("0")], NAMES, new_groups=False)
