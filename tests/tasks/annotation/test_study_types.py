"""Types learned from several studies, and named in one that was left out: other units, other genes, other shares."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scfusion_fm.config.finetune import AnnotationConfig, FinetuneOptimConfig
from scfusion_fm.config.flags import read_settings
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.annotation.calibrate import calibrate_annotation
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, fit_annotation
from scfusion_fm.tasks.annotation.study_types import (
    StudyCells,
    StudyReadout,
    complete_means,
    fit_study_types,
    limit_studies,
    read_studies,
)
from scfusion_fm.tasks.splits import split_cells
from scfusion_fm.tasks.weights import Weights

GENES, TYPES = 60, 3
SHARES = [(0.4, 0.3, 0.3), (0.3, 0.5, 0.2), (0.2, 0.3, 0.5), (0.7, 0.2, 0.1)]


def make_study(number):
    """Draw 150 cells of a study with a level and a length of its own for each gene."""
    rng = np.random.default_rng(number)
    codes = rng.choice(TYPES, 150, p=SHARES[number])
    profile = np.random.default_rng(9).gamma(2.0, 1.0, (TYPES, GENES))
    values = profile[codes] + 0.7 * rng.normal(size=(150, GENES))
    return np.maximum(values * rng.uniform(0.5, 1.5, GENES) + rng.uniform(1, 2, GENES), 0.01), codes


@pytest.fixture(scope="module")
def studies():
    """Three studies, of which the last measured two thirds of the genes."""
    parts = [make_study(number) for number in range(3)]
    measured = np.ones((3, GENES), bool)
    measured[2, ::3] = False
    values = np.concatenate([x * measured[s] for s, (x, _) in enumerate(parts)])
    codes = np.concatenate([codes for _, codes in parts])
    return StudyCells(csr_matrix(values), np.repeat(np.arange(3), 150), measured, codes, TYPES)


def test_types_of_a_new_study_are_named(studies):
    types = fit_study_types(studies)
    values, codes = make_study(3)
    measured = np.arange(GENES) % 4 != 0
    values = (values * measured)[:, types.genes]
    found = types.adapt(values, measured[types.genes]).logits(values).argmax(1)
    assert (found == codes).mean() > 0.95
    np.testing.assert_allclose(types.shares.sum(), 1, rtol=1e-5)


def test_the_order_of_cells_does_not_matter(studies):
    order = np.random.default_rng(0).permutation(len(studies.codes))
    other = dataclasses.replace(
        studies, values=studies.values[order], study=studies.study[order], codes=studies.codes[order]
    )
    first, second = fit_study_types(studies), fit_study_types(other)
    np.testing.assert_allclose(first.means, second.means, atol=1e-4)
    covariances = [x.factors @ x.factors.T + np.diag(x.noise) for x in (first, second)]
    np.testing.assert_allclose(*covariances, atol=0.05)


def test_studies_without_any_difference_are_refused(studies):
    alike = dataclasses.replace(studies, values=csr_matrix(np.ones(studies.values.shape)))
    with pytest.raises(ValueError, match="`study_key` must name studies in which genes tell types apart"):
        fit_study_types(alike)


def test_means_that_no_study_measured_follow_those_of_other_types():
    means = np.random.default_rng(0).normal(size=(4, 50))
    means[3] = 0.5 * (means[0] + means[1])
    seen = np.ones((4, 50), bool)
    seen[3, 30:] = False
    given = np.where(seen, means, 0.0)
    filled = complete_means(given, seen)
    np.testing.assert_array_equal(filled[seen], given[seen])
    assert np.corrcoef(filled[3, 30:], means[3, 30:])[0, 1] > 0.98


def test_large_studies_lose_cells(monkeypatch):
    monkeypatch.setattr("scfusion_fm.tasks.annotation.study_types.MOST_CELLS", 10)
    names = np.repeat(["a", "b"], [30, 5])
    kept = limit_studies(np.arange(35), names)
    assert pd.Series(names[kept]).value_counts().to_dict() == {"a": 10, "b": 5}
    assert (np.diff(kept) > 0).all()


def test_columns_of_studies_are_checked():
    obs = pd.DataFrame({"study": ["a", "b", "a"]})
    assert read_studies(obs, None) is None
    assert read_studies(obs, "study").tolist() == ["a", "b", "a"]
    with pytest.raises(ValueError, match="`study_key` must be a column of obs, got 'lab'"):
        read_studies(obs, "lab")


def test_unknown_cells_of_new_studies_are_recognised_by_energy_unless_something_else_is_set():
    given = {"model": "m", "data": ["a"], "output_dir": "o"}
    assert read_settings(AnnotationConfig, given).unknown_score == "mahalanobis"
    assert read_settings(AnnotationConfig, given | {"study_key": "dataset"}).unknown_score == "energy"
    own = given | {"study_key": "dataset", "unknown_score": "max_softmax"}
    assert read_settings(AnnotationConfig, own).unknown_score == "max_softmax"


@pytest.fixture(scope="module")
def fitted(model_dir, paired_file):
    extractor = load_extractor(model_dir)
    cells, aligned = read_aligned(paired_file, extractor)
    data = LabelledCells(aligned, extractor, cells.obs["cell_type"].astype(str).to_numpy())
    partition = split_cells(cells.obs, SplitConfig(val_fraction=0.3, test_fraction=0.2)).set_apart_calibration(0.5, 0)
    optim = FinetuneOptimConfig(epochs=0.1, batch_size=32, lr=0.01, threads=1)
    settings = AnnotationSettings(optim, studies=cells.obs["donor"].to_numpy(str))
    return fit_annotation(Weights(model_dir), data, partition, settings), data, partition


def test_rna_alone_is_named_in_units_of_studies_and_proteins_by_the_network(fitted):
    model, data, partition = fitted
    expected = model.readout.logits(data.aligned, partition.test)
    np.testing.assert_array_equal(model.predict(data.aligned, partition.test, ("rna",)), expected)
    network = dataclasses.replace(model, readout=None)
    for shown in (("adt",), ("rna", "adt")):
        predictions = [m.predict(data.aligned, partition.test, shown) for m in (model, network)]
        np.testing.assert_array_equal(*predictions)
    assert (data.names_of(expected) == data.labels[partition.test]).mean() > 0.8


def test_calibration_is_by_what_was_learned_without_the_study(fitted):
    model, data, partition = fitted
    logits, known = model.readout.logits_when_left_out(partition.calibration)
    assert known.all()
    own = model.readout.studies[partition.calibration] == model.readout.studies[partition.calibration][0]
    trained = model.readout.trained
    others = trained[model.readout.studies[trained] != model.readout.studies[partition.calibration][0]]
    alone = StudyReadout.fit(data, model.readout.studies, others)
    silent = data.aligned.rna_present.copy()
    silent[model.readout.studies == model.readout.studies[0]] = False
    without = dataclasses.replace(data.aligned, rna_present=silent)
    assert not alone.logits(without, np.array([0])).any()
    np.testing.assert_allclose(logits[own], alone.logits(data.aligned, partition.calibration[own]))
    found = calibrate_annotation(model, data, partition, "energy")
    assert found.inputs["rna"].n == len(partition.calibration)
    one = dataclasses.replace(model.readout, studies=np.full(len(data.labels), "a"))
    assert not one.logits_when_left_out(partition.calibration)[1].any()
    with pytest.raises(ValueError, match="`study_key` must give training cells with RNA of at least two studies"):
        StudyReadout.fit(data, one.studies, trained)
