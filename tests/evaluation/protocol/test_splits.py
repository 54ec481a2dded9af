from itertools import pairwise

import numpy as np
import pytest

from scfusion_fm.evaluation.protocol.splits import k_folds, leave_group_out, limit_labels

LABELS = np.repeat(["a", "b", "c", "rare"], [60, 30, 17, 3])


def roles(fold):
    return fold.partition.roles(len(LABELS))


def counts(fold, role):
    return dict(zip(*np.unique(LABELS[getattr(fold.partition, role)], return_counts=True), strict=True))


def test_every_cell_is_test_once_and_folds_are_equal_in_every_stratum():
    folds = k_folds(5, LABELS, seed=3, val_fraction=0.2)
    tests = np.concatenate([fold.partition.test for fold in folds])
    np.testing.assert_array_equal(np.sort(tests), np.arange(len(LABELS)))
    for name in np.unique(LABELS):
        sizes = [counts(fold, "test").get(name, 0) for fold in folds]
        assert max(sizes) - min(sizes) <= 1, name
    assert [len(fold.partition.test) for fold in folds] == [22] * 5
    assert [fold.name for fold in folds][:2] == ["fold 1 of 5", "fold 2 of 5"]


def test_validation_cells_are_spread_over_the_strata():
    for fold in k_folds(5, LABELS, val_fraction=0.25):
        rest = len(LABELS) - len(fold.partition.test)
        assert len(fold.partition.val) == pytest.approx(rest / 4, abs=1)
        for name in ("a", "b", "c"):
            n_rest = counts(fold, "train")[name] + counts(fold, "val")[name]
            assert abs(counts(fold, "val")[name] - n_rest / 4) <= 1
        assert counts(fold, "train")["rare"] >= 1


def test_folds_depend_on_the_seed_alone():
    first, again, other = (k_folds(3, LABELS, seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(roles(a), roles(b))
        assert (roles(a) != roles(c)).any()


def test_a_single_cell_of_a_stratum_trains_or_tests_but_does_not_validate():
    strata = np.array(["a"] * 20 + ["one"])
    for seed in range(20):
        for fold in k_folds(4, strata, seed, val_fraction=0.5):
            assert 20 in (*fold.partition.train, *fold.partition.test)


@pytest.mark.parametrize("given", [True, False])
def test_every_group_is_test_once_and_alone(given):
    groups = np.array(["d2", "d1", "d3", "d1", "d2"] * 22)
    folds = leave_group_out(groups, strata=LABELS if given else None, val_fraction=0.2)
    assert [fold.name for fold in folds] == ["d1", "d2", "d3"]
    for fold in folds:
        np.testing.assert_array_equal(fold.partition.test, np.flatnonzero(groups == fold.name))
        assert len(fold.partition.val) == pytest.approx(0.2 * len(fold.partition.known), abs=1)


def test_some_groups_alone_can_be_held_out():
    groups = np.array(["d1", "d2", "d3"])[np.arange(len(LABELS)) % 3]
    everything, (one,) = leave_group_out(groups), leave_group_out(groups, test_groups=["d2"])
    np.testing.assert_array_equal(roles(one), roles(everything[1]))
    with pytest.raises(ValueError, match=r"`test_groups` must be among the groups \['d1', 'd2', 'd3'\], got \['d4'\]"):
        leave_group_out(groups, test_groups=["d4", "d1"])


def test_folds_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match=r"`n_folds` must lie in \[2, 110\].* got 1;"):
        k_folds(1, LABELS)
    with pytest.raises(ValueError, match=r"`n_folds` must lie in .* got 111;"):
        k_folds(111, LABELS)
    with pytest.raises(ValueError, match=r"`val_fraction` must lie in \(0, 0.5\], got 0;"):
        k_folds(2, LABELS, val_fraction=0)
    with pytest.raises(ValueError, match=r"`val_fraction` must lie in \(0, 0.5\], got 0.9;"):
        leave_group_out(LABELS, val_fraction=0.9)
    with pytest.raises(ValueError, match=r"`strata` must have a stratum with two cells .* 'fold 1 of 2', got none"):
        k_folds(2, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"`groups` must hold at least two groups, got \['x'\]"):
        leave_group_out(["x"] * 4)
    with pytest.raises(ValueError, match="`groups` must name the group of every cell, got 2 cells without one"):
        leave_group_out(["x", "y", "", "unknown"])
    with pytest.raises(ValueError, match=r"`strata` must have one entry per cell \(3\), got shape \(2,\)"):
        leave_group_out(["x", "y", "x"], strata=["a", "b"])


@pytest.fixture
def fold():
    return k_folds(5, LABELS)[0]


@pytest.mark.parametrize("budget", [3, 4, 5, 8, 20, 60, 85])
def test_the_budget_is_what_training_and_validation_cost_together(fold, budget):
    limited = limit_labels(fold, LABELS, budget, seed=1)
    assert len(limited.partition.train) + len(limited.partition.val) == budget
    np.testing.assert_array_equal(limited.partition.test, fold.partition.test)
    assert len(limited.partition.val) >= 1
    chosen = limited.partition.known
    assert np.isin(chosen, fold.partition.known).all()
    if budget >= 4:
        assert len(set(LABELS[chosen])) == 4
    if budget >= 20:
        assert len(limited.partition.val) / budget == pytest.approx(0.2, abs=0.05)
        assert len(set(LABELS[limited.partition.train])) == 4


def test_smaller_budgets_are_parts_of_larger_ones_and_cells_keep_their_roles(fold):
    budgets = (3, 5, 12, 30, 70)
    splits = [roles(limit_labels(fold, LABELS, budget, seed=7)) for budget in budgets]
    for small, large in pairwise(splits):
        assert np.isin(large[np.isin(small, ["train", "val"])], ["train", "val"]).all()
    for small, large in pairwise(splits[2:]):
        np.testing.assert_array_equal(small[small != ""], large[small != ""])
    assert (roles(limit_labels(fold, LABELS, 30, seed=8)) != splits[3]).any()


def test_many_labels_have_the_shares_of_the_pool(fold):
    limited = limit_labels(fold, LABELS, 44)
    pool = LABELS[fold.partition.known]
    chosen = LABELS[limited.partition.known]
    for name in ("a", "b", "c"):
        assert abs((chosen == name).sum() - (pool == name).sum() / 2) <= 1


def test_cells_without_a_label_cost_nothing_and_are_dropped(fold):
    labels = np.where(np.arange(len(LABELS)) % 2, "unknown", LABELS)
    limited = limit_labels(fold, labels, 20)
    assert not (labels[limited.partition.known] == "unknown").any()


def test_budgets_that_cannot_be_met_are_refused(fold):
    with pytest.raises(ValueError, match=r"`budget` must lie in \[3, 88\], .* got 89"):
        limit_labels(fold, LABELS, 89)
    with pytest.raises(ValueError, match=r"`budget` must lie in .* got 2"):
        limit_labels(fold, LABELS, 2)
    with pytest.raises(ValueError, match="must hold rows below 109, the number of cells, got 109"):
        limit_labels(fold, LABELS[1:], 10)
