"""Hiding proteins of panels, the regression and baselines that fill them in, and partners of batches."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from make_cells import make_modalities

from scfusion_fm.data.files.stack import stack_aligned
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.imputation.baselines import impute_by_baselines
from scfusion_fm.tasks.imputation.cells import PanelCells
from scfusion_fm.tasks.imputation.fit import PanelCollator, PanelDropout
from scfusion_fm.tasks.imputation.regression import choose_penalty, estimate_covariance, fit_regression
from scfusion_fm.tasks.integration import loss as integration_loss
from scfusion_fm.tasks.integration.loss import PairLoss
from scfusion_fm.tasks.integration.pairs import find_pairs


def make_panels(model_dir, change=None):
    """Two studies of which each lacks a protein; `change` is done to the counts of proteins."""
    extractor, parts = load_extractor(Path(model_dir)), []
    for seed, missing in ((70, "CD3"), (71, "CD14")):
        rna, adt = make_modalities(60, seed)
        part = read_aligned(rna, extractor)[1]
        other = read_aligned(adt, extractor, "adt")[1]
        part.adt, part.adt_present = other.adt, other.adt_present
        part.adt_observed = other.adt_observed & (np.array(extractor.protein_names) != missing)
        parts.append(part)
    aligned = stack_aligned(parts, ["a", "b"])
    if change is not None:
        aligned.adt = change(aligned.adt)
    return PanelCells(aligned, extractor, aligned.obs["dataset"].to_numpy(str))


PARTITION = Partition(np.arange(0, 100, 2), np.arange(1, 100, 2), np.arange(100, 120))


def test_every_protein_is_hidden_once_and_alike_in_all_cells_of_a_panel(model_dir):
    data = make_panels(model_dir)
    turns = data.hide_in_turn(2, 0)
    np.testing.assert_array_equal(np.sum(turns, axis=0), data.observed.astype(int))
    for study in "ab":
        for mask in turns:
            assert np.ptp(mask[data.studies == study].astype(int), axis=0).max() == 0
            assert mask[data.studies == study].sum(1).max() == 2  # of four


def test_what_is_hidden_tells_nothing(model_dir):
    data = make_panels(model_dir)
    turns, test = data.hide_in_turn(2, 0), PARTITION.test
    regression = choose_penalty(fit_regression(data, PARTITION.train, 5, 0), data, PARTITION.val, turns)
    hidden = turns[0]

    def spoil(counts):
        counts = counts.copy()
        counts[test] = np.where(hidden[test], 999.0, counts[test])
        return counts

    other = make_panels(model_dir, spoil)
    found = []
    for cells in (data, other):
        batch = PanelCollator(cells, regression.known, hidden)(test)
        shown = batch["adt_observed"] & ~batch["adt_bool_masked_pos"]
        baselines = impute_by_baselines(cells, PARTITION, turns[:1], regression.known, 0)
        found.append(
            [
                torch.where(shown, batch["adt_values"], 0.0).numpy(),
                regression.predict_cells(cells.aligned, test, cells.extractor, hidden[test]),
                *(x.predicted[0] for x in baselines.values()),
            ]
        )
    for before, after in zip(*found, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)
    assert np.abs(found[0][1]).max() > 0.1


def test_training_hides_by_seed_epoch_and_cell_alone(model_dir):
    data, rows = make_panels(model_dir), np.arange(40)
    collate, dropout = PanelCollator(data, np.ones(5, dtype=bool)), PanelDropout(3, 0.5)
    whole = dropout.hide(collate(rows), rows, 1)
    part = dropout.hide(collate(rows[10:20]), rows[10:20], 1)
    for name, values in part.items():
        torch.testing.assert_close(values, whole[name][10:20])
    other = dropout.hide(collate(rows), rows, 2)
    assert (other["adt_bool_masked_pos"] != whole["adt_bool_masked_pos"]).any()
    hidden = whole["adt_bool_masked_pos"]
    assert not (hidden & ~whole["adt_observed"]).any()
    visible = whole["adt_observed"] & ~hidden
    some = visible.any(1)
    means = (whole["adt_values"] * visible).sum(1)[some] / visible.sum(1)[some]
    torch.testing.assert_close(means, torch.zeros(int(some.sum())), atol=1e-5, rtol=0)


def test_covariance_with_gaps_is_that_of_whole_cells():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5))
    cells = rng.normal(size=(4000, 5)) @ mix
    seen = np.ones((4000, 3), dtype=bool)
    whole = estimate_covariance(cells[:, :2], cells[:, 2:], seen)
    np.testing.assert_allclose(whole, cells.T @ cells / 4000, rtol=0.03, atol=0.05)
    seen[:1500, 0] = seen[2500:, 2] = False
    gaps = estimate_covariance(cells[:, :2], np.where(seen, cells[:, 2:], 0.0), seen)
    np.testing.assert_allclose(gaps, whole, atol=0.12 * np.abs(whole).max())


def test_partners_are_mutual_and_of_other_batches():
    rng = np.random.default_rng(1)
    kind, batch = rng.integers(3, size=90), np.arange(90) % 2
    places = 5 * np.eye(3)[kind] + 0.1 * rng.normal(size=(90, 3))
    rows, none = np.arange(80), np.full(90, -1)
    pairs = find_pairs(places, batch, rows, none, 5)
    found = {(i, j) for i in range(90) for j in pairs.partners[pairs.starts[i] : pairs.starts[i + 1]].tolist()}
    assert found
    assert all((j, i) in found and batch[i] != batch[j] and max(i, j) < 80 for i, j in found)
    assert np.mean([kind[i] == kind[j] for i, j in found]) == 1
    drawn = pairs.draw(np.arange(90), rng.random(90))
    assert all((i, j) in found or i == j for i, j in enumerate(drawn.tolist()))
    assert (drawn[80:] == np.arange(80, 90)).all()
    wrong = find_pairs(places, batch, rows, np.arange(90), 5)  # no two cells are of one type
    assert len(wrong.partners) == 0
    assert (wrong.draw(rows, rng.random(80)) == rows).all()


def test_telling_batches_apart_does_not_help_the_loss():
    """Two batches at opposite ends: candidates are of the partner's batch, so that the batch itself tells nothing."""
    batch = torch.tensor([0, 1, 0, 1])
    labels = torch.stack([torch.cat([batch, 1 - batch]), torch.full((8,), -1), torch.arange(8)], 1)
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    outputs = {"pooler_output": ends[labels[:, 0]], "loss": torch.tensor(0.0)}
    loss = PairLoss(0.1, 1.0)(outputs, labels)
    torch.testing.assert_close(loss, torch.log(torch.tensor(2.0)))  # a guess among two
    same = torch.stack(
        [labels[:, 0], torch.zeros(8, dtype=torch.long), labels[:, 2]], 1
    )  # of one type: nothing to keep apart
    torch.testing.assert_close(PairLoss(0.1, 1.0)(outputs, same), torch.tensor(0.0))


@pytest.mark.parametrize("shares", [([0, 1, 2], [3, 4]), ([0], [1], [0])], ids=["unequal", "one without a cell"])
def test_ranks_give_the_loss_and_the_gradient_of_all_cells(shares, monkeypatch):
    embedding = torch.randn(2, 5, 4, generator=torch.manual_seed(0))
    cells = sorted({cell for share in shares for cell in share})
    labels = torch.stack([torch.tensor([[0, 1, 0, 1, 1], [1, 0, 1, 0, 0]]), torch.full((2, 5), -1)], 2)
    labels = torch.cat([labels, torch.arange(5).expand(2, 5)[..., None]], 2)

    def run(share, own):
        outputs = {"pooler_output": own[:, share].flatten(0, 1), "loss": torch.tensor(0.0)}
        return PairLoss(0.5, 2.0)(outputs, labels[:, share].flatten(0, 1))

    whole = embedding.clone().requires_grad_()
    wanted = run(cells, whole)
    wanted.backward()
    unit = torch.nn.functional.normalize(embedding, dim=2)
    every = torch.cat([unit[:, share] for share in shares], 1)
    found = torch.zeros_like(embedding)
    for rank, share in enumerate(shares):
        fakes = {
            "count_ranks": lambda: len(shares),
            "own_rank": lambda rank=rank: rank,
            "gather": lambda _: [labels[:, share] for share in shares],
            "add_up": lambda _: every,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(integration_loss, name, fake)
        own = embedding.clone().requires_grad_()
        loss = run(share, own)
        torch.testing.assert_close(loss, wanted)
        counted = 0 if rank == 2 else len(share)
        (loss * counted / len(cells)).backward()
        found += own.grad
    torch.testing.assert_close(found, whole.grad)


def test_cells_without_proteins_are_refused(model_dir):
    data = make_panels(model_dir)
    bare = dataclasses.replace(data.aligned, adt_present=np.zeros(120, dtype=bool))
    with pytest.raises(ValueError, match="`data` must hold cells with proteins, got none"):
        PanelCells(bare, data.extractor, data.studies)
