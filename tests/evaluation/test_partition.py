"""Every cell has one part; what empties a part is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfusion_fm.evaluation.partition import PARTS, Partition

ROLES = np.array(["train", "val", "", "test", "train", "calibration", "val", "train"])


@pytest.fixture
def partition():
    return Partition.from_roles(ROLES)


@given(st.lists(st.sampled_from([*PARTS, ""]), max_size=30))
def test_roles_and_rows_tell_the_same(roles):
    partition = Partition.from_roles(np.array(roles, str))
    assert partition.roles(len(roles)).tolist() == roles
    assert partition.counts == {name: roles.count(name) for name in PARTS if name in roles}
    assert sorted(partition.rows) == [row for row, name in enumerate(roles) if name]
    assert partition.known.tolist() == [row for row, name in enumerate(roles) if name not in ("", "test")]


def test_rows_ascend_whatever_order_they_are_given_in():
    assert Partition([5, 1, 3], [2, 0]).train.tolist() == [1, 3, 5]
    assert Partition([0], [1]).test.dtype == np.int64


def test_joined_parts_are_the_same_cells(partition):
    rows, places = partition.join()
    assert rows.tolist() == [0, 4, 7, 1, 6, 3]
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(rows[getattr(places, name)], getattr(partition, name))
    assert "calibration" not in places.parts
    rows, places = partition.join(PARTS)
    np.testing.assert_array_equal(rows, partition.rows)
    assert rows[places.calibration].tolist() == [5]


def test_rows_of_a_larger_table_are_those_of_the_same_cells(partition):
    names = np.array(list("abcdefgh"))
    larger, places = np.array(list("xxhgfexdcbax")), np.array([10, 9, 8, 7, 5, 4, 3, 2])
    moved = partition.of(places)
    for name, rows in partition.parts.items():
        assert set(larger[getattr(moved, name)]) == set(names[rows])


def test_what_takes_the_last_cell_of_a_part_is_named(partition):
    kept = np.ones(8, bool)
    kept[4] = False
    assert partition.keep(kept, "rule", "advice").counts == {"train": 2, "val": 2, "test": 1, "calibration": 1}
    kept[[1, 3, 6]] = False
    with pytest.raises(
        ValueError, match=r"^`data` must hold x, got none of 2 for val and none of 1 for test; take y\.$"
    ):
        partition.keep(kept, "`data` must hold x", "take y")
    Partition([0], [1]).check_arrays({"x": np.zeros(2)})
    with pytest.raises(
        ValueError, match=r"`split` must leave cells for train, val and test, got none for \['test'\] of 2"
    ):
        Partition([0], [1]).check("`split`")
    partition.check()


def test_calibration_cells_are_set_apart_from_validation():
    partition = Partition(np.arange(10), np.arange(10, 30), np.arange(30, 40))
    found = partition.set_apart_calibration(0.25, 3)
    assert (len(found.val), len(found.calibration)) == (15, 5)
    assert sorted([*found.val, *found.calibration]) == list(range(10, 30))
    np.testing.assert_array_equal(found.train, partition.train)
    np.testing.assert_array_equal(found.test, partition.test)
    again = partition.set_apart_calibration(0.25, 3)
    assert np.array_equal(found.calibration, again.calibration)
    assert not np.array_equal(found.calibration, partition.set_apart_calibration(0.25, 4).calibration)
    for fraction in (0, 1, -1):
        with pytest.raises(ValueError, match=r"`calibration_fraction` must lie in \(0, 1\)"):
            partition.set_apart_calibration(fraction, 0)
    with pytest.raises(ValueError, match="`calibration_fraction` must leave cells for validation and calibration"):
        Partition([0], [1], [2]).set_apart_calibration(0.5, 0)


def test_divisions_that_are_none_are_refused(partition):
    with pytest.raises(ValueError, match="must give each cell one part, got 2 rows twice"):
        Partition([0, 1, 2], [2, 3], [3])
    with pytest.raises(ValueError, match=r"must be one of .* or '', got \['dev'\]"):
        Partition.from_roles(["train", "dev"])
    with pytest.raises(ValueError, match=r"`labels` must have one row per cell \(8\), got 7"):
        partition.check_arrays({"x": np.zeros((8, 2)), "labels": np.zeros(7)})
    with pytest.raises(ValueError, match="must hold rows below 7, the number of cells, got 7"):
        partition.check_arrays({"x": np.zeros((7, 2))})
