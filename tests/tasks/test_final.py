"""A model that is kept may learn from all cells: as long as the tested one, at the same rates, with what that chose."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import scfusion_fm as sf
from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation
from scfusion_fm.config.finetune import AnnotationConfig, FinetuneOptimConfig
from scfusion_fm.config.imputation import ImputationConfig
from scfusion_fm.config.integration import IntegrationConfig
from scfusion_fm.data.fingerprints.seen import SeenCells
from scfusion_fm.evaluation.calibration.classifier import AnnotationCalibration
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.tasks import epochs
from scfusion_fm.tasks.annotation.fit import FittedAnnotation
from scfusion_fm.tasks.epochs import EpochLoop, Objective
from scfusion_fm.tasks.memory import identify_run
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights

OPTIM = FinetuneOptimConfig(epochs=4, batch_size=10, lr=0.01, threads=1)
SMALL = {"epochs": 1, "batch_size": 32, "lr": 0.01, "threads": 1, "num_coordinates": 5, "report": False}


class Killed(Exception):
    """Stands for a kill: nothing of ours runs after it."""


@pytest.fixture(scope="module")
def collator(model_dir, paired_file):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    cells, aligned = read_aligned(paired_file, extractor)
    return CellCollator(aligned, extractor, pd.factorize(cells.obs["cell_type"].astype(str))[0])


@pytest.fixture(scope="module")
def begin(model_dir):
    model = Weights(model_dir).build(ScFusionTTTForCellTypeAnnotation, 0, num_labels=3)
    return lambda: copy.deepcopy(model)


def fit(model, collator, partition, monkeypatch, scores=(), **rest):
    """Train; give what it tells, and the learning rate of each step."""
    rates, told = [], iter(scores)
    monkeypatch.setattr(epochs, "set_learning_rate", lambda _, rate: rates.append(rate))
    objective = Objective(lambda _: {"score": next(told)})
    return train_best(model, partition, collator, objective, FitSettings(OPTIM), **rest), rates


def test_all_cells_are_learned_from_as_long_and_at_the_same_rates(begin, collator, monkeypatch):
    scores = (0.1, 0.2, 0.5, 0.4, 0.3)  # of the start and of four epochs: the second is best
    trained, rates = fit(begin(), collator, Partition(range(20), range(20, 25)), monkeypatch, scores)
    assert trained.epochs == 2
    assert len(rates) == 8
    again, same = fit(begin(), collator, Partition(range(20)), monkeypatch, epochs=trained.epochs)
    assert again == trained
    assert same == rates[:4]
    more, longer = fit(begin(), collator, Partition(range(30)), monkeypatch, epochs=trained.epochs)
    assert more == trained
    assert len(longer) == 6  # 3 in an epoch
    np.testing.assert_allclose(longer[3], rates[2], rtol=0.1)  # where the second epoch begins
    assert longer[-1] > 0.3 * OPTIM.lr  # and not at the end of a schedule of two


def test_the_start_is_kept_where_it_was_best(begin, collator, monkeypatch):
    trained, _ = fit(begin(), collator, Partition(range(10), range(20, 25)), monkeypatch, (0.9, 0.1, 0.1, 0.1, 0.1))
    assert trained.epochs == 0
    model = begin()
    assert fit(model, collator, Partition(range(30)), monkeypatch, epochs=0.0)[0].epochs == 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in begin().state_dict().items())


@pytest.mark.parametrize("length", [0.3, 2.5, 7 / 3])
def test_parts_of_an_epoch_are_as_many_steps_of_as_many_cells(length):
    engine, settings = type("Engine", (), {"device": None}), FitSettings(OPTIM)
    loop = EpochLoop(engine, Partition(range(30)), None, None, settings, None, None, length)
    assert loop.last_step == int(np.ceil(round(3 * length, 6)))
    assert loop.total_steps == 12


@pytest.fixture(scope="module")
def annotate_all(model_dir, paired_file):
    def run(output):
        return sf.finetune.annotation(
            paired_file, labels_key="cell_type", model=model_dir, output_dir=output, final=True, **SMALL
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scfusion_fm.tasks.splits.MOST_TEST_CELLS", 20)
        yield run


@pytest.fixture(scope="module")
def undisturbed(annotate_all, tmp_path_factory):
    return annotate_all(tmp_path_factory.mktemp("final") / "run")


def test_kept_model_has_seen_all_cells_and_says_that_it_was_not_tested(undisturbed, model_dir, paired_file):
    results, cells = undisturbed.results, undisturbed.results["cells"]
    final = results["final"]
    assert final["cells"] == 160 > sum(cells.values())  # a test needs no more of them
    assert f"learned from {cells['train']} cells; the model that is kept learned anew from all 160" in final["told"]
    assert final["told"] in str(undisturbed)
    assert final["told"] in (undisturbed.model / "README.md").read_text()
    assert SeenCells.load(undisturbed.model / "seen_cells.npz").parts[-1].num_cells == 160
    again = {"labels_key": "cell_type", "model": undisturbed.model, "output_dir": undisturbed.output_dir / "again"}
    with pytest.raises(ValueError, match="`data` must hold test cells that the model was not trained on"):
        sf.finetune.annotation(paired_file, **again, **SMALL)


def test_calibration_is_of_the_tested_model_with_features_of_the_kept_one(undisturbed, paired_file, monkeypatch):
    found = AnnotationCalibration.load(undisturbed.model / "annotation_calibration.json").inputs["rna+adt"]
    told = undisturbed.results["calibration"]["inputs"]["rna+adt"]
    assert found.temperature == told["temperature"]
    assert found.n == undisturbed.results["cells"]["calibration"]
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(undisturbed.model)
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(undisturbed.model)
    cells, aligned = read_aligned(paired_file, extractor)
    embedding = FittedAnnotation(model, extractor, ("rna", "adt"), 0).embed(aligned, np.arange(160))
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    means = [embedding[labels == name].mean(0) for name in undisturbed.results["classes"]]
    np.testing.assert_allclose(found.gaussians.means, means, rtol=1e-4, atol=1e-5)


def test_killed_while_the_kept_model_learns_it_goes_on_to_the_same_bits(
    undisturbed, annotate_all, tmp_path, monkeypatch, capsys
):
    step, seen = EpochLoop._train_step, []

    def die_late(self):
        seen.append(self.epochs)
        if len(seen) - seen.count(None) == 4:
            raise Killed
        return step(self)

    monkeypatch.setattr(epochs, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(EpochLoop, "_train_step", die_late)
    with pytest.raises(Killed):
        annotate_all(tmp_path / "run")
    first = len(seen)
    monkeypatch.setattr(EpochLoop, "_train_step", lambda self: (seen.append(self.epochs), step(self))[1])
    done = annotate_all(tmp_path / "run")
    assert seen[first:] == [1.0, 1.0]  # of five steps; and the tested model is not trained again
    assert "training is done already, by step" in capsys.readouterr().err
    assert done.results == undisturbed.results | {"data": done.results["data"]}
    weights, wanted = (load_file(run.model / "model.safetensors") for run in (done, undisturbed))
    assert all(torch.equal(value, weights[name]) for name, value in wanted.items())
    names = ("annotation_calibration.json", "README.md")
    assert all((done.model / name).read_bytes() == (undisturbed.model / name).read_bytes() for name in names)


def test_what_was_trained_for_a_test_alone_is_gone_on_with(model_dir):
    config = AnnotationConfig(str(model_dir), "cells.h5mu", "out")
    wanted = identify_run(config, "cells")
    assert identify_run(dataclasses.replace(config, final=True), "cells") == wanted
    assert "final" not in wanted["settings"]


@pytest.mark.parametrize("schema", [ImputationConfig, IntegrationConfig])
def test_other_tasks_refuse_it(schema):
    with pytest.raises(ValueError, match=r"`final` must be false for .*, got true: it is for cell types and"):
        schema("model", "cells.h5mu", "out", final=True)
