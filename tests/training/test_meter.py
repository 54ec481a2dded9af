"""What the losses of cells add up to, and how fast steps are."""

from types import SimpleNamespace

import pytest
import torch

from scfusion_fm.training import meter
from scfusion_fm.training.meter import Speed, Tally

WEIGHTS = SimpleNamespace(rna_loss_weight=2.0, adt_loss_weight=0.5)
# Three cells of two RNA tokens and one protein: paired, RNA alone, and protein alone.
BATCH = {
    "rna_observed": torch.tensor([[[True], [True]], [[True], [True]], [[False], [False]]]),
    "rna_bool_masked_pos": torch.tensor([[True, False], [True, True], [False, False]]),
    "adt_observed": torch.tensor([[True], [False], [True]]),
    "adt_bool_masked_pos": torch.tensor([[True], [False], [False]]),
}
OUTPUT = SimpleNamespace(rna_loss=torch.tensor([1.0, 3.0, 0.0]), adt_loss=torch.tensor([4.0, 0.0, 0.0]))


def tally_of(*weights, stop_asked=False):
    """Count the batch once with each of the weights."""
    tally = Tally(torch.device("cpu"), WEIGHTS)
    for weight in weights:
        tally.add(OUTPUT, BATCH, weight)
    tally.reduce(stop_asked)
    return tally


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(meter.comm, "all_reduce", lambda sums: None)


def test_losses_are_means_over_cells_and_over_cells_with_targets():
    tally = tally_of(None)
    assert tally.losses == {"loss": (2 * 4 + 0.5 * 4) / 3, "rna_loss": 2, "adt_loss": 4}
    assert tally.tokens == [1, 3, 1, 1]
    assert str(tally) == "loss 3.3333 rna 2.0000 adt 4.0000"


def test_cells_of_weight_0_do_not_count():
    tally = tally_of(None, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert tally.cells == 4
    assert tally.losses["rna_loss"] == 7 / 3
    protein = tally_of(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    assert protein.losses == {"loss": 0, "rna_loss": None, "adt_loss": None}


def test_other_ranks_are_told_of_a_request_to_stop(monkeypatch):
    assert not tally_of(None).stop_asked
    assert tally_of(None, stop_asked=True).stop_asked
    monkeypatch.setattr(meter.comm, "all_reduce", lambda sums: sums.mul_(0).add_(1))
    assert tally_of(None).stop_asked


def test_speed_is_that_of_training_alone(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(meter.time, "monotonic", lambda: clock.now)
    speed = Speed(step=10, stall_seconds=5.0)
    for _ in range(2):
        with speed.training():
            clock.now += 2.0
        speed.add(tally_of(None), 5.0 + clock.now / 4)
        clock.now += 4.0  # a checkpoint
    assert (speed.cells_per_s, speed.tokens_per_s) == (6 / 4, 12 / 4)
    assert speed.tokens_per_cell == [1 / 3, 1, 1 / 3, 1 / 3]
    assert speed.stall == (8.0 / 4) / 4
    assert speed.seconds_per_step(12) == 12.0 / 2
