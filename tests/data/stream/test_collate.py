"""Masks: the right number, of observed tokens only, and a function of (seed, epoch, cell)."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config.pretrain import MaskingConfig
from scfusion_fm.data.atlas.atlas import AtlasRows, Measured
from scfusion_fm.data.stream.collate import MaskingCollator, smallest_share

GENES, PROTEINS = 40, 12


@pytest.fixture
def extractor():
    return ScFusionTTTFeatureExtractor(
        [f"g{i}" for i in range(GENES)],
        [f"G{i}" for i in range(GENES)],
        ["1"] * 25 + ["2"] * 15,
        [f"P{i}" for i in range(PROTEINS)],
        [f"g{i}" for i in range(PROTEINS)],
        patch_size=4,
    )


def make_rows(row, rng_seed=0):
    """Cells whose content depends on their row number alone."""
    row = np.asarray(row)
    draws = [np.random.default_rng([rng_seed, r]) for r in row]
    rna = np.stack([d.poisson(1.0, GENES) + 1 for d in draws]).astype(np.float32)
    adt = np.stack([d.poisson(9.0, PROTEINS) + 1 for d in draws]).astype(np.float32)
    observed = np.broadcast_to(np.arange(PROTEINS) < 10, adt.shape)
    everything = Measured(np.ones((1, rna.shape[1]), bool), np.zeros(len(rna), dtype=int))
    return AtlasRows(row, rna, everything, rna.sum(1).astype(float), adt, Measured(observed, np.arange(len(adt))))


def test_share_of_masked_tokens(extractor):
    collate = MaskingCollator(extractor, MaskingConfig(0.3, 0.5, 0.0, 0.0))
    batch = collate(make_rows(range(20)), 0)
    assert (batch["rna_bool_masked_pos"].sum(1) == round(0.3 * extractor.num_rna_tokens)).all()
    assert (batch["adt_bool_masked_pos"].sum(1) == 5).all()
    assert not (batch["adt_bool_masked_pos"] & ~batch["adt_observed"]).any()


def test_masks_depend_on_seed_epoch_and_cell_alone(extractor):
    collate = MaskingCollator(extractor, MaskingConfig(0.3, 0.3, 0.2, 0.2), seed=1)
    together = collate(make_rows([3, 8, 5]), np.array([0, 1, 1]))
    alone = collate(make_rows([5]), 1)
    for name in ("rna_bool_masked_pos", "adt_bool_masked_pos"):
        assert together[name][2:].equal(alone[name])
    other_epoch, other_seed = (
        collate(make_rows([5]), 2),
        MaskingCollator(extractor, MaskingConfig(0.3, 0.3), seed=2)(make_rows([5]), 1),
    )
    for other in (other_epoch, other_seed):
        assert not other["rna_bool_masked_pos"].equal(alone["rna_bool_masked_pos"])


def test_model_reads_the_same_with_the_lengths_of_the_collator_as_without(extractor):
    config = ScFusionTTTConfig(
        num_rna_tokens=extractor.num_rna_tokens,
        rna_patch_size=4,
        num_proteins=PROTEINS,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_decoder_layers=1,
        ttt_mini_batch_size=2,
    )
    torch.manual_seed(0)
    model = ScFusionTTTForPreTraining(config).eval()
    for masking in (MaskingConfig(0.5, 0.3, 0.3, 0.3), MaskingConfig(0.5, 0.5, 0.0, 0.0)):
        batch = MaskingCollator(extractor, masking)(make_rows(range(9)), 0)
        counted = model(**{name: x for name, x in batch.items() if name != "max_lengths"})
        assert all(torch.equal(x, counted[name]) for name, x in model(**batch).items())


def test_whole_modalities_are_hidden_as_often_as_asked(extractor):
    collate = MaskingCollator(extractor, MaskingConfig(0.15, 0.15, 0.25, 0.5))
    batch = collate(make_rows(range(400)), 0)
    no_rna = (batch["rna_bool_masked_pos"] | ~batch["rna_observed"].any(-1)).all(1)
    no_adt = (batch["adt_bool_masked_pos"] | ~batch["adt_observed"]).all(1)
    assert abs(no_rna.float().mean() - 0.25) < 0.08
    assert abs(no_adt.float().mean() - 0.5) < 0.08
    assert not (no_rna & no_adt).any()


def test_cells_with_one_modality_keep_it(extractor):
    rows = make_rows(range(50))
    rows = replace(rows, adt_measured=Measured(rows.adt_observed & False, np.arange(len(rows.row))))
    batch = MaskingCollator(extractor, MaskingConfig(0.15, 0.15, 0.5, 0.5))(rows, 0)
    assert (batch["rna_observed"].any(-1) & ~batch["rna_bool_masked_pos"]).any(1).all()
    assert not batch["adt_bool_masked_pos"].any()


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"), [(0, 0.5, 0), (1, 0.5, 0), (2, 0.1, 1), (10, 0.99, 9), (10, 0, 0)]
)
def test_never_all_tokens_and_at_least_one(tokens, ratio, expected):
    seen = np.arange(12)[None] < tokens
    masked = smallest_share(np.random.default_rng(0).random((1, 12)), seen, ratio)
    assert masked.sum() == expected
    assert not (masked & ~seen).any()


def test_marked_tokens_have_the_smallest_draws():
    chance = np.random.default_rng(3)
    draw, seen = chance.random((50, 30)), chance.random((50, 30)) < chance.random((50, 1))
    masked = smallest_share(draw, seen, 0.3)
    for d, s, m in zip(draw, seen, masked, strict=True):
        smallest = np.flatnonzero(s)[np.argsort(d[s])][: m.sum()]
        assert set(np.flatnonzero(m)) == set(smallest)
