"""Temperatures are found again, the file gives back what was calibrated, and damage is refused."""

import json

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.classifier import (
    AnnotationCalibration,
    InputCalibration,
    calibrate_input,
    fit_temperature,
)
from scfusion_fm.evaluation.calibration.unknown import CellOutputs, ClassGaussians
from scfusion_fm.evaluation.metrics.probabilities import expected_calibration_error


def draw(n=3000, scale=4.0, seed=0):
    """Outputs that are `scale` times too sure."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 4)) * 1.5
    shares = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    codes = (shares.cumsum(1) > rng.random((n, 1))).argmax(1)
    return CellOutputs(true * scale, rng.normal(size=(n, 3)) + codes[:, None]), codes


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_temperature_is_found_again_and_mends_the_probabilities(scale):
    cells, codes = draw(scale=scale)
    assert fit_temperature(cells.logits, codes) == pytest.approx(scale, rel=0.1)
    found = AnnotationCalibration(list("abcd"), "energy", {"rna": calibrate_input(cells, codes, "energy")})
    fresh, truth = draw(scale=scale, seed=1)
    told = found.probabilities(fresh.logits, ["rna"] * 3000)
    assert np.array_equal(told.argmax(1), fresh.logits.argmax(1))
    assert expected_calibration_error(told, list("abcd"), np.array(list("abcd"))[truth]) < 0.04
    plain = found.probabilities(fresh.logits, ["adt"] * 3000)  # not calibrated
    np.testing.assert_allclose(plain, np.exp(fresh.logits) / np.exp(fresh.logits).sum(1, keepdims=True))


def test_temperature_of_flawless_cells_is_bounded():
    assert 0.04 < fit_temperature(np.eye(3), [0, 1, 2]) < 0.06


@pytest.mark.parametrize("score", ["max_softmax", "energy", "mahalanobis"])
def test_file_gives_the_same_answers(score, tmp_path):
    cells, codes = draw(300)
    gaussians = ClassGaussians.fit(cells.embedding, codes)
    few = cells.take(np.arange(30))
    inputs = {
        "rna": calibrate_input(cells, codes, score, gaussians),
        "rna+adt": calibrate_input(few, codes[:30], score, gaussians),
    }
    found = AnnotationCalibration(list("abcd"), score, inputs)
    (tmp_path / "c.json").write_text(found.to_json())
    again = AnnotationCalibration.load(tmp_path / "c.json")
    assert again.classes == found.classes
    assert again.rates == [0.01, 0.02, 0.05, 0.1, 0.2]
    assert (again.inputs["rna"].gaussians is not None) == (score == "mahalanobis")
    fresh, _ = draw(500, seed=2)
    kinds = np.array(["rna", "rna+adt", "adt", "rna", "rna"] * 100)
    scores = found.unknown_scores(fresh, kinds)
    assert np.array_equal(scores, again.unknown_scores(fresh, kinds), equal_nan=True)
    assert np.array_equal(np.isnan(scores), kinds == "adt")
    np.testing.assert_allclose(found.probabilities(fresh.logits, kinds), again.probabilities(fresh.logits, kinds))
    for rate in again.rates:
        assert np.array_equal(found.is_unknown(scores, kinds, rate), again.is_unknown(scores, kinds, rate))
    assert np.isinf(again.inputs["rna+adt"].thresholds[0.01])
    assert not again.is_unknown(scores, kinds, 0.01)[kinds != "rna"].any()
    assert not again.is_unknown(scores, kinds, 0.2)[kinds == "adt"].any()
    assert 0.1 < again.is_unknown(scores, kinds, 0.2)[kinds == "rna"].mean() < 0.3


def test_mistakes_and_damage_are_refused(tmp_path):
    cells, codes = draw(20)
    for logits, wrong in ((cells.logits, codes[:5]), (cells.logits[:0], []), (cells.logits, codes + 4)):
        with pytest.raises(ValueError, match="`codes` must give one of 4 classes"):
            fit_temperature(logits, wrong)
    with pytest.raises(ValueError, match="`unknown_score` must be one of"):
        AnnotationCalibration(["a"], "knn", {})
    found = AnnotationCalibration(list("abcd"), "energy", {"rna": InputCalibration(20, 1.0, {0.1: 0.5})})
    with pytest.raises(ValueError, match=r"`reject_rate` must be one of the calibrated \[0.1\], got 0.3"):
        found.is_unknown([0.0], ["rna"], 0.3)


G = {"means": [[0.0, 1.0]], "whitening": [[1.0, 0.0], [0.0, 1.0]]}


@pytest.mark.parametrize(
    ("change", "of_input", "message"),
    [
        ({"classes": ["a", "a"]}, {}, "`classes` must hold each value once"),
        ({"score": "knn"}, {}, "`score` must be one of"),
        ({"inputs": {"dna": {"n": 1, "temperature": 1, "thresholds": {}, "gaussians": None}}}, {}, "`inputs` must be"),
        ({}, {"n": 0}, r"`inputs\['rna'\].n` must be a whole number"),
        ({}, {"temperature": 0}, r"`inputs\['rna'\].temperature` must be a number from 1e-06"),
        ({}, {"thresholds": {"2": 1.0}}, "`thresholds` must have the same rates for all inputs"),
        ({}, {"thresholds": {"x": 1.0}}, "`thresholds` must have the same rates for all inputs"),
        ({}, {"gaussians": G}, "`gaussians` must be there for the score mahalanobis alone, got the score energy"),
        ({"score": "mahalanobis"}, {}, "`gaussians` must be there for the score mahalanobis alone"),
        ({}, {"gaussians": G | {"means": [[0.0]]}}, "`means` and `whitening` must fit one another"),
        ({}, {"gaussians": G | {"means": [["0", "1"]]}}, "`inputs.*means` must be a list of numbers"),
        ({"score": "mahalanobis"}, {"gaussians": G | {"means": [[0.0, 1.0]] * 5}}, "`gaussians` must have one width"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, of_input, message):
    found = AnnotationCalibration(list("abcd"), "energy", {"rna": InputCalibration(20, 1.0, {0.1: 0.5})})
    content = json.loads(found.to_json())
    content["inputs"]["rna"] |= of_input
    path = tmp_path / "annotation_calibration.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=rf"annotation_calibration.json': {message}"):
        AnnotationCalibration.load(path)
