"""Two demos are compared bit for bit: a difference in a value, a type or a missing part is told."""

import importlib.util

import numpy as np
import pytest
from launch import ROOT

spec = importlib.util.spec_from_file_location("compare_demos", ROOT / "scripts/compare_demos.py")
demos = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demos)

BEFORE = {"losses": np.array([0.5, np.nan]), "names": np.array(["B", None, np.nan], dtype=object)}


def test_equal_results_are_the_same():
    assert demos.compare(BEFORE, {name: array.copy() for name, array in BEFORE.items()}) == []


@pytest.mark.parametrize(
    "losses",
    [np.array([np.nextafter(0.5, 1), np.nan]), np.array([0.5, np.nan], np.float32), np.array([0.5]), None],
    ids=["value", "type", "shape", "missing"],
)
def test_differences_are_named(losses):
    after = dict(BEFORE) if losses is None else BEFORE | {"losses": losses}
    if losses is None:
        del after["losses"]
    assert demos.compare(BEFORE, after) == ["losses"]
    assert demos.compare(after, BEFORE) == ["losses"]
