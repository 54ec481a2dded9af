"""Calibration of a fitted classifier: on its own cells, by what is shown; types left out are told from the others."""

import dataclasses

import numpy as np
import pytest
from make_cells import TYPES

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.evaluation.baselines.annotation import LOGISTIC
from scfusion_fm.evaluation.calibration.unknown import SCORES
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.annotation.calibrate import (
    calibrate_annotation,
    describe_calibration,
    describe_open_set,
    limit_classes,
    score_open_set,
)
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, fit_annotation
from scfusion_fm.tasks.splits import split_cells
from scfusion_fm.tasks.weights import Weights

SETTINGS = AnnotationSettings(FinetuneOptimConfig(epochs=2, batch_size=32, lr=0.02, threads=1), modality_dropout=0.3)


@pytest.fixture(scope="module")
def data(model_dir, paired_file):
    cells, aligned = read_aligned(paired_file, load_extractor(model_dir))
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    partition = split_cells(cells.obs, SplitConfig(val_fraction=0.3, test_fraction=0.2))
    return LabelledCells(aligned, load_extractor(model_dir), labels), partition.set_apart_calibration(0.5, 0)


@pytest.fixture(scope="module")
def fitted(model_dir, data):
    return fit_annotation(Weights(model_dir), *data, SETTINGS)


def test_large_classes_lose_cells_and_rare_ones_keep_theirs():
    rows, codes = np.arange(10, 100), np.repeat([0, 1, 2], [60, 36, 4])
    kept = limit_classes(rows, codes, 20)
    assert np.bincount(codes[kept]).tolist() == [20, 20, 4]
    assert set(kept) <= set(rows)
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(limit_classes(rows, codes, 60), rows)


@pytest.mark.parametrize("score", ["energy", "mahalanobis"])
def test_every_input_is_calibrated_on_calibration_cells_alone(fitted, data, score):
    cells, partition = data
    found = calibrate_annotation(fitted, cells, partition, score)
    assert set(found.inputs) == {"rna", "adt", "rna+adt"}
    assert {x.n for x in found.inputs.values()} == {len(partition.calibration)}
    fewer = dataclasses.replace(partition, val=partition.val[:1], test=partition.test[:1])
    untouched = calibrate_annotation(fitted, cells, fewer, score)
    assert untouched.to_json() == found.to_json()
    told = describe_calibration(found, fitted, cells, partition.test)
    assert told["unknown_score"] == score
    both = told["inputs"]["rna+adt"]
    assert both["test_cells"] == len(partition.test)
    assert 0 <= both["ece"] <= 1
    assert list(both["false_reject"].values()) == sorted(both["false_reject"].values())
    logits = fitted.predict(cells.aligned, partition.test, ("rna",))
    assert np.array_equal(found.scale(logits, "rna"), logits / found.inputs["rna"].temperature)
    assert found.scale(logits, "none") is logits


def test_inputs_without_calibration_cells_are_left_out(fitted, data):
    cells, partition = data
    present = cells.aligned.adt_present.copy()
    present[partition.calibration] = False
    part = LabelledCells(dataclasses.replace(cells.aligned, adt_present=present), cells.extractor, cells.labels)
    assert set(calibrate_annotation(fitted, part, partition).inputs) == {"rna"}
    found = calibrate_annotation(fitted, cells, partition)
    none = dataclasses.replace(cells.aligned, adt_present=np.zeros_like(present))
    bare = dataclasses.replace(cells, aligned=none)
    bare.inputs = cells.inputs
    assert "ece" not in describe_calibration(found, fitted, bare, partition.test)["inputs"]["adt"]


def test_types_left_out_are_told_from_the_others(model_dir, data):
    cells, partition = data
    table = score_open_set(Weights(model_dir), cells, partition, SETTINGS, ["Mono"])
    assert set(table["left_out"]) == {"Mono"}
    assert set(table["score"]) == set(SCORES)
    assert (table["n_unknown"] == (cells.labels[partition.test] == "Mono").sum()).all()
    assert table["auroc"].max() > 0.8
    told = describe_open_set(table)
    assert told["chosen_score"] in SCORES
    assert told["false_reject_rate"] == 0.05
    assert [row["method"] for row in told["table"]] == ["model"] * 4 + [LOGISTIC]
    assert set(TYPES) == set(cells.classes)
    without = describe_open_set(table.assign(auroc_val=np.nan))
    assert without["chosen_score"] == "max_softmax"
    assert without["table"][0]["auroc_val"] is None
