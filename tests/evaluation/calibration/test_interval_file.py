"""The file gives back the intervals, those of earlier releases too, and damage is refused."""

import json

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals, fit_left_out_intervals
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, read_intervals, write_intervals

NAMES = ["a", "b", "c"]
GROUPS = np.array([0, 1] * 10 + [2] * 40, dtype=object)


@pytest.fixture
def written():
    rng = np.random.default_rng(5)
    predicted = rng.normal(size=(60, 3)) * 3
    return fit_intervals(predicted + rng.gamma(1.0, 1.0, (60, 3)), predicted, np.ones((60, 3), bool), NAMES, GROUPS)


def test_the_file_gives_the_same_intervals(written, tmp_path):
    path = tmp_path / PROTEIN_INTERVALS
    path.write_text(write_intervals(written))
    read = read_intervals(path)
    assert read.names == NAMES
    assert read.rule == written.rule
    for level in read.rule.levels:
        assert np.array_equal(read.widths(level, 60, GROUPS), written.widths(level, 60, GROUPS))
    assert np.array_equal(read.undetermined, written.undetermined)


def test_the_file_gives_the_same_intervals_of_deviations(tmp_path):
    rng = np.random.default_rng(5)
    measured, predicted = rng.normal(size=(2, 60, 3))
    observed = np.ones((60, 3), bool)
    observed[20:, 2] = False
    written = fit_left_out_intervals(measured, predicted, observed, NAMES, np.repeat(["x", "y", "z"], 20))
    path = tmp_path / PROTEIN_INTERVALS
    path.write_text(write_intervals(written))
    read = read_intervals(path)
    np.testing.assert_array_equal(read.relative.deviations, written.relative.deviations)
    rest = np.array([1.0, 0.5, 0.5])
    for level in read.rule.levels:
        found = read.relative_widths(level, rest)
        np.testing.assert_array_equal(found, written.relative_widths(level, rest))
        assert np.isfinite(found).tolist() == [True, True, False]
        assert read.without_interval(level, relative=True).tolist() == [False, False, True]
    assert read.level_unknown.all()


def test_files_of_earlier_releases_are_read(written, tmp_path):
    content = json.loads(write_intervals(written)) | {"scaled": False}
    for name in ("num_left_out", "deviations", "relative_half_widths"):
        del content[name]
    path = tmp_path / PROTEIN_INTERVALS
    path.write_text(json.dumps(content))
    read = read_intervals(path)
    assert read.num_left_out == 0
    assert np.array_equal(read.half_widths, written.half_widths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half": 1}, "`content` must have no unknown field"),
        ({"proteins": ["a", "b"]}, "`table`, `half_widths` and `groups` must have 2 proteins and 4 levels, got other"),
        ({"proteins": ["a", "b", "a"]}, "`proteins` must hold each value once"),
        ({"levels": [0.5, 0.8, 0.9]}, "must have 3 proteins and 3 levels"),
        ({"levels": [0.5, 0.8, 0.9, 1.0]}, "`levels` must be a number from"),
        ({"levels": [], "half_widths": [], "groups": {}}, "`table` must have the columns .* and `levels` one"),
        ({"half_widths": [[-1.0, 0, 0]] * 4}, "`half_widths` and `groups` must not be negative"),
        ({"half_widths": [["1", 0, 0]] * 4}, "`half_widths` must be a list of numbers"),
        ({"table": {}}, "`table` must have the columns"),
        ({"min_pearson": 2}, "`min_pearson` must be a number from -1 to 1"),
        ({"num_left_out": -1}, "`num_left_out` must be a whole number"),
        ({"deviations": [1.0, 1.0, 1.0]}, "`deviations` and `relative_half_widths` must fit the proteins and levels"),
        (
            {"deviations": [1.0, 1.0, -1.0], "relative_half_widths": [[1.0, 0, 0]] * 4},
            "`deviations` and `relative_half_widths` must not be negative",
        ),
    ],
)
def test_damage_is_refused(written, tmp_path, change, message):
    path = tmp_path / PROTEIN_INTERVALS
    path.write_text(json.dumps(json.loads(write_intervals(written)) | change))
    with pytest.raises(ValueError, match=rf"protein_intervals.json': .*{message}"):
        read_intervals(path)


def test_cells_are_counted_in_whole_numbers(written, tmp_path):
    content = json.loads(write_intervals(written))
    for number in (1.5, None, -1):
        content["table"]["n"][0] = number
        (tmp_path / PROTEIN_INTERVALS).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"`table\['n'\]` must hold whole numbers of cells"):
            read_intervals(tmp_path / PROTEIN_INTERVALS)
