"""A fine-tuning that was stopped or killed goes on to the bits of one that was not; one of other settings does not."""

import copy
import dataclasses
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation
from scfusion_fm.config.finetune import AnnotationConfig, CrossModalConfig, FinetuneOptimConfig, ScriptOptimConfig
from scfusion_fm.config.integration import IntegrationConfig
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.notices import ScFusionWarning
from scfusion_fm.tasks import epochs
from scfusion_fm.tasks.dropout import InputDropout
from scfusion_fm.tasks.epochs import Objective
from scfusion_fm.tasks.given import read_given
from scfusion_fm.tasks.memory import (
    NOT_TRAINED,
    claim_memory,
    fingerprint_aligned,
    fingerprint_directory,
    identify_run,
)
from scfusion_fm.tasks.ranks import by_all_ranks
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights
from scfusion_fm.training.stop import STOPPED, Stopped

OPTIM = FinetuneOptimConfig(epochs=2.5, batch_size=30, lr=0.01, threads=1)
CELLS = Partition(range(100), range(100, 140))
STEPS = 10  # 4 in an epoch


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


def fit(model, collator, directory, at=None, what=None):
    """Train; at a step something happens. Give the weights, and how many steps were taken."""
    steps, labels = [], collator.labels[CELLS.val]

    def loss(outputs, truth):
        steps.append(1)
        if len(steps) == at:
            what()
        return torch.nn.functional.cross_entropy(outputs.logits, truth)

    objective = Objective(
        lambda logits: {"score": -np.abs(np.eye(3)[labels] - logits).mean()}, loss, InputDropout(0, 0.3, 0.3)
    )
    train_best(model, CELLS, collator, objective, FitSettings(OPTIM, directory=directory))
    return model.state_dict(), len(steps)


@pytest.fixture(scope="module")
def undisturbed(begin, collator):
    weights, steps = fit(begin(), collator, None)
    assert steps == STEPS
    assert not torch.equal(weights["classifier.weight"], begin().classifier.weight)
    return weights


def die():
    raise Killed


@pytest.mark.parametrize("at", [4, 7])
def test_stop_is_followed_by_the_same_bits(begin, collator, undisturbed, tmp_path, at):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        Stopped, match=f"stopped at step {at} of at most 10; the same command goes on from there"
    ) as stop:
        fit(begin(), collator, tmp_path / "fit", at, lambda: signal.raise_signal(signal.SIGINT))
    assert stop.value.code == STOPPED
    assert signal.getsignal(signal.SIGINT) is before
    weights, steps = fit(begin(), collator, tmp_path / "fit")
    assert steps == STEPS - at
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights.items())
    assert fit(begin(), collator, tmp_path / "fit")[1] == 0  # it is done
    assert len(list((tmp_path / "fit").iterdir())) <= 2


def test_end_without_a_word_is_followed_by_the_same_bits(begin, collator, undisturbed, tmp_path, monkeypatch):
    for at in (3, 6):
        with pytest.raises(Killed):
            fit(begin(), collator, tmp_path / "fit", at, die)
    assert [p.name for p in (tmp_path / "fit").iterdir()] == ["step_00000004"]
    monkeypatch.setattr(epochs, "SAVE_EVERY_S", -1.0)
    with pytest.raises(Killed):
        fit(begin(), collator, tmp_path / "fit", 3, die)  # two steps further
    weights, steps = fit(begin(), collator, tmp_path / "fit")
    assert steps == STEPS - 6
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights.items())


def test_damaged_checkpoints_are_not_used(begin, collator, undisturbed, tmp_path, capsys):
    with pytest.raises(Stopped):
        fit(begin(), collator, tmp_path / "fit", 7, lambda: signal.raise_signal(signal.SIGTERM))
    best, newest = (tmp_path / "fit" / f"step_{step:08d}" / "rank_00000.safetensors" for step in (4, 7))
    shutil.copytree(tmp_path / "fit", tmp_path / "other")
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    weights, steps = fit(begin(), collator, tmp_path / "fit")
    assert steps == STEPS - 4
    assert "warning: checkpoint step_00000007 is damaged and not used" in capsys.readouterr().err
    (tmp_path / "other" / best.parent.name / best.name).unlink()
    with pytest.warns(ScFusionWarning, match="step_00000004 is damaged, so the training starts anew: .* is missing"):
        again, steps = fit(begin(), collator, tmp_path / "other")
    assert steps == STEPS
    for found in (weights, again):
        assert all(torch.equal(value, undisturbed[name]) for name, value in found.items())


def test_interruption_says_how_to_go_on():
    @by_all_ranks
    def run(config, error):
        raise error

    config = AnnotationConfig("model", "cells.h5mu", "out")
    with pytest.raises(KeyboardInterrupt, match="interrupted; the same command goes on from the newest checkpoint"):
        run(config, KeyboardInterrupt())
    with pytest.raises(Stopped, match="at step 3"):
        run(config, Stopped("at step 3"))


def test_progress_is_told_with_the_time_left(begin, collator, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(epochs, "TELL_EVERY_S", -1.0)
    fit(begin(), collator, tmp_path / "fit")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == STEPS
    assert lines[0].startswith("epoch 0.2 of 2.5 | loss ")
    assert "| score -" in lines[3]
    assert lines[-1].endswith("| at most 0:00:00 left")
    fit(begin(), collator, tmp_path / "fit")
    assert capsys.readouterr().err == "training is done already, by step 10 of at most 10\n"


def test_without_cells_that_choose_the_end_is_kept(begin, collator, tmp_path):
    model, objective = begin(), Objective(lambda logits: die())
    train_best(model, Partition(range(100)), collator, objective, FitSettings(OPTIM))
    assert not torch.equal(model.classifier.weight, begin().classifier.weight)


def test_memory_is_of_one_run_and_of_no_other(tmp_path, capsys):
    memory, identity = tmp_path / "memory", {"settings": {"optim": {"lr": 0.1}}, "cells": "a"}
    claim_memory(memory, identity)
    (memory / "main").mkdir()
    claim_memory(memory, identity)
    assert (memory / "main").exists()
    assert capsys.readouterr().err == ""
    claim_memory(memory, identity | {"cells": "b"})
    assert not (memory / "main").exists()
    assert "is not gone on with (cells: 'a' -> 'b'): starting anew" in capsys.readouterr().err
    (memory / "run.json").write_text("{")
    claim_memory(memory, identity)
    assert "run.json cannot be read" in capsys.readouterr().err


def test_everything_that_decides_the_weights_is_compared_and_nothing_else(collator, model_dir, tmp_path):
    config = AnnotationConfig(str(model_dir), "cells.h5mu", "out")
    aligned: AlignedCells = collator.aligned
    found = identify_run(config, "cells")
    moved = {"output_dir": "other", "data": "moved.h5mu", "report": False, "memory_gib": 3, "unknown_score": "energy"}
    moved["model"] = str(shutil.copytree(model_dir, tmp_path / "model"))
    elsewhere = dataclasses.replace(config, **moved, optim=ScriptOptimConfig(threads=7))
    assert identify_run(elsewhere, "cells") == found
    assert identify_run(dataclasses.replace(config, seed=1), "cells") != found
    assert identify_run(config, "others") != found
    schemas = (AnnotationConfig, CrossModalConfig, IntegrationConfig)
    assert {field.name for schema in schemas for field in dataclasses.fields(schema)} >= set(NOT_TRAINED)
    others = {fingerprint_aligned(aligned)}
    obs, rna = aligned.obs.copy(), aligned.rna.copy()
    obs.iloc[3, 0] = obs.iloc[(obs.iloc[:, 0] != obs.iloc[3, 0]).argmax(), 0]
    rna.data[5] += 1
    for change in ({"obs": obs}, {"rna": rna}, {"rna": sp.csr_matrix(aligned.rna.shape)}, {"adt": aligned.adt + 1}):
        others.add(fingerprint_aligned(dataclasses.replace(aligned, **change)))
    assert len(others) == 5


def test_it_does_not_matter_where_the_counts_of_an_atlas_are(atlas_path, paired_file, model_dir):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)

    def read(memory_gib, *data):
        return read_given(
            AnnotationConfig(str(model_dir), [str(x) for x in data], "out", memory_gib=memory_gib), extractor
        )

    for data in ([atlas_path], [atlas_path, paired_file]):
        on_disk, in_memory = read(0, *data), read(1, *data)
        assert sp.issparse(in_memory.aligned.rna)
        assert not sp.issparse(on_disk.aligned.rna)
        assert on_disk.fingerprint == in_memory.fingerprint
    assert read(0, atlas_path).fingerprint != read(0, atlas_path, paired_file).fingerprint


def test_every_file_of_a_model_counts(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    before = fingerprint_directory(tmp_path)
    (tmp_path / "code" / "a.py").write_text("2")
    assert fingerprint_directory(tmp_path) != before
