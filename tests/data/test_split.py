import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.split import assign_split

NAMES = [f"AAAC{i}-1" for i in range(20_000)]


@given(st.lists(st.text(min_size=1), unique=True, min_size=1), st.integers(0, 2**40), st.randoms())
def test_split_of_a_cell_depends_on_its_name_only(names, seed, random):
    split = dict(zip(names, assign_split(names, SplitConfig(0.2, 0.3, seed)), strict=True))
    some = random.sample(names, k=random.randint(1, len(names)))
    assert list(assign_split(some, SplitConfig(0.2, 0.3, seed))) == [split[name] for name in some]


def test_shares_are_as_asked_and_seed_matters():
    split = assign_split(NAMES, SplitConfig(0.1, 0.2))
    shares = {part: np.mean(split == part) for part in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.012)
    assert np.mean(split == assign_split(NAMES, SplitConfig(0.1, 0.2, 1))) < 0.7


def test_split_is_the_same_in_every_version():
    assert list(assign_split(list("abcdefgh"), SplitConfig(0.25, 0.25, 3))) == [
        "test",
        "train",
        "train",
        "test",
        "test",
        "test",
        "test",
        "val",
    ]


def test_groups_stay_together():
    donors = [f"donor{i % 40}" for i in range(len(NAMES))]
    split = assign_split(NAMES, SplitConfig(0.2, 0.2), groups=donors)
    parts = {donor: {part for part, d in zip(split, donors, strict=True) if d == donor} for donor in set(donors)}
    assert all(len(found) == 1 for found in parts.values())
    assert set(split) == {"train", "val", "test"}


def test_zero_fractions_leave_everything_to_training():
    assert set(assign_split(NAMES[:50], SplitConfig(0, 0))) == {"train"}
    assert len(assign_split([], SplitConfig(0.1, 0.1))) == 0


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((-0.1, 0.2), r"`split.val_fraction` must lie in \[0, 1\), got -0.1"),
        ((0.1, 1.0), r"`split.test_fraction` must lie in \[0, 1\), got 1.0"),
        ((float("nan"), 0.1), r"`split.val_fraction` must lie"),
        ((0.5, 0.5), r"`split.val_fraction` \+ `split.test_fraction` must be below 1"),
    ],
)
def test_impossible_fractions_are_refused(fractions, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(*fractions)


def test_groups_without_a_name_are_refused():
    with pytest.raises(ValueError, match=r"`groups` must have one entry per cell \(2\), got 1"):
        assign_split(["a", "b"], SplitConfig(0.1, 0.1), groups=["x"])
    with pytest.raises(ValueError, match="`groups` must name the group of every cell, got 2 empty"):
        assign_split(["a", "b", "c"], SplitConfig(0.1, 0.1), groups=["x", "", float("nan")])
