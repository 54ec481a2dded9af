"""Batches in which proteins have levels of their own: brought to one level, from training cells alone."""

from pathlib import Path

import numpy as np
import pytest
from make_cells import write_h5mu
from scipy.sparse import diags

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.data.files.stack import stack_aligned
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.cross_modal.fit import TargetCollator, fit_cross_modal
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.weights import Weights

LEVELS = {"a": 1.0, "b": 8.0, "c": 3.0}


@pytest.fixture(scope="module")
def data(model_dir, tmp_path_factory):
    """Three batches that differ in how much of an antibody sticks to every cell; `a` lacks another, and genes."""
    folder, extractor = tmp_path_factory.mktemp("batches"), load_extractor(Path(model_dir))
    parts = []
    for seed, name in enumerate(LEVELS):
        part = read_aligned(write_h5mu(folder / f"{name}.h5mu", 60, seed=30 + seed), extractor)[1]
        first, last = np.flatnonzero(part.adt_observed)[[0, -1]]
        part.adt[:, first] *= LEVELS[name]
        part.adt_observed[last] &= name != "a"
        kept = np.ones(part.rna.shape[1])
        kept[np.argsort(-np.asarray(part.rna.sum(0)).ravel())[:8]] = name != "a"
        part.rna = (part.rna @ diags(kept)).tocsr()
        parts.append(part)
    stacked = stack_aligned(parts, list(LEVELS))
    return PairedCells(stacked, extractor, batches=stacked.obs["dataset"].to_numpy(object))


def batch_means(data, rows, batch):
    own = rows[data.batches[rows] == batch]
    return data.measured[own].mean(0)


def test_batches_come_to_one_level_and_keep_what_differs_within_them(data):
    rows = np.flatnonzero(np.isin(data.batches, ["a", "b"]))[::2]
    levelled, offsets = data.level(rows)
    before = [batch_means(data, rows, x) for x in "ab"]
    after = [batch_means(levelled, rows, x) for x in "ab"]
    shared = data.observed[rows].all(0)
    assert shared.sum() == 4
    assert np.abs(before[0] - before[1])[shared].max() > 0.3
    np.testing.assert_allclose(after[0][shared], after[1][shared], atol=1e-5)
    np.testing.assert_allclose(after[0][shared], ((before[0] + before[1]) / 2)[shared], atol=1e-5)
    np.testing.assert_allclose(after[1][~shared], before[1][~shared], atol=1e-5)  # only one batch has it
    for name in "ab":
        assert np.ptp(offsets[data.batches == name], axis=0).max() == 0
    assert not offsets[data.batches == "c"].any()  # none of the rows is of it
    np.testing.assert_array_equal(levelled.measured, data.measured - offsets)
    plain = PairedCells(data.aligned, data.extractor)
    assert plain.level(rows)[0] is plain


def test_a_batch_that_is_predicted_does_not_change_the_level(data):
    rows = np.flatnonzero(data.batches != "c")
    before = data.level(rows)[1]
    changed = PairedCells(data.aligned, data.extractor, batches=data.batches)
    changed.measured = np.where((data.batches == "c")[:, None], 1e6, data.measured)
    np.testing.assert_array_equal(changed.level(rows)[1], before)


def test_models_learn_the_level_and_predict_at_it(data, model_dir):
    known = np.flatnonzero(data.batches != "c")
    partition = Partition(known[::2], known[1::2])
    levelled, offsets = data.level(partition.train)
    batch = TargetCollator(data, offsets)(partition.train)
    observed = data.observed[partition.train]
    values = batch["adt_values"].numpy()[:, data.panel]
    np.testing.assert_allclose(values[observed], levelled.measured[partition.train][observed], atol=1e-6)

    optim = FinetuneOptimConfig(epochs=2, batch_size=16, lr=0.01, threads=1)
    learned = []
    for cells in (data, PairedCells(data.aligned, data.extractor)):
        fitted = fit_cross_modal(Weights(Path(model_dir), from_scratch=True), cells, partition, FitSettings(optim))
        predicted = fitted.predict(partition.val)[:, 0]
        between = [predicted[data.batches[partition.val] == x].mean() for x in "ab"]
        learned.append(abs(between[0] - between[1]))
    assert learned[0] < 0.3 * learned[1]  # genes tell the batch, and so the antibody


def test_every_paired_cell_needs_a_batch(data):
    batches = data.batches.copy()
    batches[[0, 5]] = None
    with pytest.raises(ValueError, match="`background_key` must name the group of every paired cell, got 2 without"):
        PairedCells(data.aligned, data.extractor, batches=batches)
