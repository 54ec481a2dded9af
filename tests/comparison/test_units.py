"""Files of units: damage is told of or changes nothing, and those from before checksums are read."""

import json

import numpy as np
import pytest
from make_damage import DAMAGES, all_files, find_silent

from scfusion_fm.comparison.scores import Scores
from scfusion_fm.comparison.units import Recipe, Unit, UnitFile
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.protocol.splits import Fold
from scfusion_fm.records import seal_record


def row(method, kind="baseline", **scores):
    return {"kind": kind, "method": method, "inputs": "rna", "protocol": "held out", **scores}


def build(folder, models=("tiny",), baselines=("majority",)):
    """Describe a unit of made-up cells, as an evaluation does."""
    fold = Fold("fold 1", Partition(np.arange(20), np.arange(20, 25), np.arange(25, 40)))
    unit = Unit("types-seed0-fold1-all", "types", 0, fold, fold, None, [])
    made = {name: {"settings": {"lr": 0.1}, "files": {"config.json": "0"}} for name in models}
    return UnitFile(folder, unit, Recipe({"task": "annotation"}, {"a.h5mu": "0"}, made, list(baselines)))


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    found = build(tmp_path)
    arrays = {"test_rows": np.arange(25, 40), "cells": np.array(["c1", "c22"]), "tiny (rna)": rng.normal(size=(15, 3))}
    found.add(Scores([row("tiny", "model", f1=0.5), row("majority", f1=0.25)], arrays), 1.5)
    return found


def read(file):
    """Give all that an evaluation takes from a unit."""
    changes, missing = file.find_changes(), file.list_missing()
    if changes or any(missing):
        return changes, missing, None, None
    return changes, missing, file.read(), file.read_arrays()


def same(left, right):
    if left[:2] != right[:2] or {**left[2], "crc32c": ""} != {**right[2], "crc32c": ""}:
        return False
    return left[3].keys() == right[3].keys() and all(np.array_equal(left[3][key], right[3][key]) for key in left[3])


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_damage_is_told_of_or_changes_nothing(file, times):
    silent = find_silent(all_files(file.path.parent), DAMAGES * times, lambda: read(file), same)
    assert silent == []


def test_what_is_damaged_is_named_with_what_to_do(file):
    text = file.path.read_text()
    file.path.write_text(text.replace("0.25", "0.75"))
    with pytest.raises(ValueError, match=r"fold1-all.json` must have its checksum, got another.*remove it"):
        file.read()
    record = json.loads(text)
    del record["crc32c"]
    file.path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"fold1-all.json` must be the record of a unit"):
        file.find_changes()
    file.path.write_text(text)
    np.savez(file.path.with_suffix(".npz"), **(file.read_arrays() | {"test_rows": np.arange(15)}))
    with pytest.raises(ValueError, match=r"fold1-all.npz` must be as it was written, got another array 'test_rows'"):
        file.find_changes()
    file.path.with_suffix(".npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"fold1-all.npz` must hold the arrays of its unit, got"):
        file.find_changes()


def test_a_kill_between_the_two_files_leaves_what_was_there(file):
    """New arrays beside the old record."""
    record, arrays = file.path.read_bytes(), file.read_arrays()
    more = build(file.path.parent, baselines=("majority", "other"))
    more.add(Scores([row("other", f1=0.1)], {"other (rna)": np.zeros(15)}), 1.0)
    assert set(more.read_arrays()) == {*arrays, "other (rna)"}
    file.path.write_bytes(record)
    assert more.list_missing() == ([], ["other"])
    assert file.read_arrays().keys() == arrays.keys()


def test_units_from_before_checksums_are_read(file):
    record = {k: v for k, v in json.loads(file.path.read_text()).items() if k not in ("crc32c", "arrays")}
    expected = file.read()["scores"], file.read_arrays()
    file.path.write_text(json.dumps(record))
    assert file.find_changes() == []
    assert file.read()["scores"] == expected[0]
    assert file.read_arrays().keys() == expected[1].keys()
    file.path.write_text(json.dumps(seal_record(record)))
    with pytest.raises(ValueError, match="must be the record of a unit, got another"):
        file.read()
