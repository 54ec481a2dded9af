"""The file gives back the intervals, those of earlier releases too, and damage is refused."""

import json

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals
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


def test_files_of_earlier_releases_are_read(written, tmp_path):
    content = json.loads(write_intervals(written)) | {"scaled": False}
    del content["num_left_out"]
    path = tmp_path / PROTEIN_INTERVALS
    path.write_text(json.dumps(content))
    read = read_intervals(path)
    assert read.num_left_out == 0
    assert np.array_equal(read.half_widths, written.half_widths)


def test_damage_is_refused(written, tmp_path):
    path, text = tmp_path / PROTEIN_INTERVALS, write_intervals(written)
    for damage in ("{", "[]", text.replace('"half_widths"', '"half"'), text.replace("a", ""), text.replace('"a",', "")):
        path.write_text(damage)
        with pytest.raises(
            ValueError, match=r"`protein_intervals.json` must be a file that fine-tuning wrote, got a dam"
        ):
            read_intervals(path)
