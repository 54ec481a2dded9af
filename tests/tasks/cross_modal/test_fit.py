"""Batches in which proteins have levels of their own: brought to one level, from training cells alone."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from make_cells import write_h5mu
from scipy.sparse import csr_matrix, diags

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.data.files.stack import stack_aligned
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.cross_modal.fit import fit_cross_modal, measure_studies
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.starts.studies import Studies
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


def batch_spreads(data, rows, batch):
    return data.measured[rows[data.batches[rows] == batch]].std(0)


def test_batches_come_to_one_level_and_spread_and_keep_what_differs_within_them(data):
    rows = np.flatnonzero(np.isin(data.batches, ["a", "b"]))[::2]
    levelled, level, deviation = data.level(rows)
    shared = data.observed[rows].all(0)
    assert shared.sum() == 4
    before, spreads = ([f(data, rows, x)[shared] for x in "ab"] for f in (batch_means, batch_spreads))
    assert np.abs(before[0] - before[1]).max() > 0.3
    assert np.abs(spreads[0] - spreads[1]).max() > 0.02
    for statistic in (batch_means, batch_spreads):
        after = [statistic(levelled, rows, x)[shared] for x in "ab"]
        np.testing.assert_allclose(*after, atol=1e-5)
        np.testing.assert_allclose(after[0], (level if statistic is batch_means else deviation)[shared], atol=1e-5)
    for name in "ab":  # a line for each protein and batch, but for the centre of the cell
        own = rows[data.batches[rows] == name]
        centre = data.measured[own][:, shared].mean(1, keepdims=True)
        for before, after in zip((data.measured[own] - centre).T, levelled.measured[own].T, strict=True):
            if np.ptp(before) > 0 and np.ptp(after) > 0:
                assert np.corrcoef(before, after)[0, 1] > 1 - 1e-5


def test_another_panel_does_not_change_the_targets_of_a_cell(data):
    """The centre of a cell is that of the anchors, which no other protein moves."""
    rows = np.flatnonzero(np.isin(data.batches, ["a", "b"]))
    more = PairedCells(data.aligned, data.extractor, batches=data.batches)
    extra = ~data.observed[rows].all(0)  # only `b` measured it
    shift = np.where(data.batches == "b", 0.7, 0.0).astype(np.float32)[:, None]
    more.measured = data.measured + np.where(extra, 5.0, -shift)  # as if it had weighed more in the centre
    shared = ~extra
    np.testing.assert_allclose(
        more.level(rows)[0].measured[:, shared], data.level(rows)[0].measured[:, shared], atol=1e-5
    )


def test_a_batch_that_is_predicted_does_not_change_the_units(data):
    rows = np.flatnonzero(data.batches != "c")
    before = data.level(rows)[0]
    changed = PairedCells(data.aligned, data.extractor, batches=data.batches)
    changed.measured = np.where((data.batches == "c")[:, None], 1e6, data.measured)
    np.testing.assert_array_equal(changed.level(rows)[0].measured[rows], before.measured[rows])


def test_genes_are_read_in_units_of_the_study_and_proteins_centred_over_the_panel(data, model_dir):
    known = np.flatnonzero(data.batches != "c")
    partition = Partition(known[::2], known[1::2])
    settings = FitSettings(FinetuneOptimConfig(epochs=1, batch_size=16, lr=0.01, threads=1))
    fitted = fit_cross_modal(Weights(Path(model_dir), from_scratch=True), data, partition, settings)
    assert fitted.model.config.study_genes
    new = np.flatnonzero(data.batches == "c")
    before = fitted.predict(new)
    panel = data.observed[new] & fitted.learned
    np.testing.assert_allclose(np.where(panel, before, 0).sum(1), 0, atol=1e-4)
    # Another laboratory: genes are found twice as often, or half as often. The library size stays.
    other = copy.copy(data)
    other.aligned = copy.copy(data.aligned)
    values = data.extractor.normalise_rna(data.aligned.rna.toarray(), data.aligned.rna_total_counts)
    factor = np.where(np.arange(values.shape[1]) % 2, 0.5, 2.0) * (data.batches == "c")[:, None]
    values = np.where((data.batches == "c")[:, None], values * factor, values)
    scale = data.extractor.target_sum / data.aligned.rna_total_counts
    other.aligned.rna = csr_matrix((np.expm1(values) / scale[:, None]).astype(np.float32))
    moved = dataclasses.replace(fitted, data=other, studies=Studies(fitted.studies.names, measure_studies(other)))
    np.testing.assert_allclose(moved.predict(new), before, atol=1e-3)
    usual = dataclasses.replace(moved, studies=fitted.studies)  # without its own units
    assert np.abs(usual.predict(new) - before).max() > 0.05


@pytest.mark.parametrize("settings", [{"num_coordinates": 0}, {"lora_rank": 2}, {"deepspeed": "zero.json"}])
def test_settings_of_a_training_that_there_is_not_are_refused(data, model_dir, settings):
    optim = FinetuneOptimConfig(threads=1, **settings)
    with pytest.raises(ValueError, match=r"`background_key` needs `optim\.num_coordinates`, and neither"):
        fit_cross_modal(Weights(Path(model_dir)), data, Partition(data.paired[::2]), FitSettings(optim))


def test_every_paired_cell_needs_a_batch(data):
    batches = data.batches.copy()
    batches[[0, 5]] = None
    with pytest.raises(ValueError, match="`background_key` must name the group of every paired cell, got 2 without"):
        PairedCells(data.aligned, data.extractor, batches=batches)
