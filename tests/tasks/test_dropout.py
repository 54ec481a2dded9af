"""What training cells lose depends on seed, epoch and cell alone, and nothing that is learned is lost."""

import numpy as np
import pytest
import torch

from scfusion_fm import ScFusionTTTFeatureExtractor
from scfusion_fm.inference.batches import CellCollator
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.tasks.dropout import FeatureDropout, InputDropout, draw_features, order_cells, tell_cells

ROWS = np.arange(160)


@pytest.fixture(scope="module")
def batch(model_dir, paired_file):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    return CellCollator(read_aligned(paired_file, extractor)[1], extractor)(ROWS)


def take(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def test_modality_dropout_hides_one_modality_of_a_paired_cell(batch):
    less = InputDropout(modality_dropout=0.5).hide(batch, ROWS, 0)
    rna, adt = less["rna_observed"].flatten(1).any(1), less["adt_observed"].any(1)
    assert (rna | adt).all()
    assert 0.15 < (~rna).float().mean() < 0.35
    assert 0.15 < (~adt).float().mean() < 0.35
    assert torch.equal(less["rna_values"], batch["rna_values"])


def test_cells_lose_tokens_but_nothing_that_is_learned(batch):
    less = InputDropout(token_dropout=0.8, spared="adt_observed").hide(batch, ROWS, 0)
    tokens, kept = batch["rna_observed"].any(-1), less["rna_observed"].any(-1)
    assert 0.3 < kept.sum() / tokens.sum() < 0.9
    assert not (kept & ~tokens).any()
    assert torch.equal(less["rna_observed"], batch["rna_observed"] & kept.unsqueeze(-1))
    assert torch.equal(less["adt_observed"], batch["adt_observed"])
    assert InputDropout(token_dropout=0.8).hide(batch, ROWS, 0)["adt_observed"].sum() < batch["adt_observed"].sum()


@pytest.mark.parametrize("dropout", [InputDropout(3, 0.5, 0.5), InputDropout(3, 0.0, 0.9)])
def test_losses_of_a_cell_are_the_same_in_any_batch(batch, dropout):
    whole, some = dropout.hide(batch, ROWS, 2), np.array([70, 3, 150])
    part = dropout.hide(take(batch, some), some, 2)
    assert all(torch.equal(part[name], value[some]) for name, value in whole.items())
    later = dropout.hide(batch, ROWS, 3)
    assert not torch.equal(later["rna_observed"], whole["rna_observed"])


def test_features_are_dropped_by_cell_in_training_alone():
    model = torch.nn.Sequential(torch.nn.Dropout(0.25), torch.nn.Identity())
    draw_features(model, seed=1)
    assert isinstance(model[0], FeatureDropout)
    x = torch.ones(160, 40)
    assert torch.equal(model.eval()(x), x)
    model.train()
    tell_cells(model, ROWS, 0)
    whole = model(x)
    assert 0.2 < (whole == 0).float().mean() < 0.3
    torch.testing.assert_close(whole.max(), torch.tensor(1 / 0.75))
    tell_cells(model, ROWS[90:], 0)
    assert torch.equal(model(x[90:]), whole[90:])
    tell_cells(model, ROWS, 1)
    assert not torch.equal(model(x), whole)


def test_order_of_an_epoch_has_every_cell_once():
    rows = np.arange(10, 400, 3)
    first, second = order_cells(rows, 0, 0), order_cells(rows, 0, 1)
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist() != rows.tolist()
    assert order_cells(rows, 0, 0).tolist() == first.tolist()


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"`modality_dropout` must lie in \[0, 1\], got 1.5"):
        InputDropout(modality_dropout=1.5)
