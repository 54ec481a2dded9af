"""Learning rate, groups of parameters, and updates that are left out."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from scfusion_fm import ScFusionTTTForPreTraining
from scfusion_fm.config.pretrain import OptimConfig
from scfusion_fm.training.optimizer import (
    BETAS,
    ClippingAdamW,
    Schedule,
    SkippingAdamW,
    build_schedule,
    parameter_groups,
    set_learning_rate,
)


def test_schedule_warms_up_and_decays_to_its_last_value():
    schedule = Schedule(total_steps=100, warmup_steps=10, lr=2.0, min_ratio=0.1)
    rates = np.array([schedule.at(s) for s in range(101)])
    assert rates[9] == 2.0
    assert np.allclose(np.diff(rates[:10]), 0.2)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[100] == pytest.approx(0.2)
    assert Schedule(5, 0, 1.0, 0.0).at(0) == 1.0


def test_wsd_is_constant_between_warm_up_and_a_linear_way_down():
    schedule = Schedule(100, 10, 2.0, 0.1, "wsd", 20)
    rates = np.array([schedule.at(s) for s in range(101)])
    assert np.allclose(rates[9:81], 2.0)
    assert np.allclose(np.diff(rates[80:]), -0.09)
    assert rates[100] == pytest.approx(0.2)


def test_schedules_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`schedule` must be one of .*, got 'linear'"):
        Schedule(10, 1, 1.0, 0.1, "linear")
    with pytest.raises(ValueError, match="must be at most 1 together, got 6 and 5 of 10 steps"):
        Schedule(10, 6, 1.0, 0.1, "wsd", 5)


def test_schedule_of_a_run_follows_from_its_cells():
    optim = OptimConfig(epochs=2, global_batch_size=16, lr=0.5, warmup_ratio=0.1, schedule="wsd", decay_ratio=0.2)
    assert build_schedule(optim, 100) == Schedule(13, 2, 0.5, optim.min_lr_ratio, "wsd", 3)
    assert build_schedule(OptimConfig(epochs=2, global_batch_size=16), 100).decay_steps == 0
    with pytest.raises(ValueError, match=r"`optim\.epochs` must make at least one step, got 0"):
        build_schedule(OptimConfig(epochs=0), 100)


def test_groups_learn_at_their_share_of_the_rate():
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [], "lr_ratio": 0.25}])
    set_learning_rate(optimizer, 2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 0.5]


def test_only_matrices_of_linear_layers_decay(tiny_config):
    model = ScFusionTTTForPreTraining(tiny_config)
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in linear}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_embeddings_of_values_may_learn_at_a_rate_of_their_own(tiny_config):
    model = ScFusionTTTForPreTraining(tiny_config)
    *_, slow = parameter_groups(model, 0.1, embedding_lr_ratio=0.25)
    assert {id(p) for p in slow["params"]} == {
        id(model.model.rna_embeddings.weight),
        id(model.model.adt_embeddings.weight),
    }
    assert (slow["lr_ratio"], slow["weight_decay"]) == (0.25, 0.0)


def loss_of(model, scale=1.0):
    x = torch.linspace(-1, 1, 12).view(3, 4)
    return scale * model(x).square().sum()


def train(model, optimizer, scale=1.0):
    optimizer.zero_grad()
    loss_of(model, scale).backward()
    optimizer.step()


@pytest.mark.parametrize("max_norm", [0.0, 0.05])
def test_clipping_optimizer_equals_torch(max_norm):
    torch.manual_seed(0)
    ours = nn.Linear(4, 2)
    theirs = copy.deepcopy(ours)
    mine = ClippingAdamW(ours.parameters(), max_norm, lr=0.1, betas=BETAS)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=BETAS)
    for _ in range(3):
        train(ours, mine)
        plain.zero_grad()
        loss_of(theirs).backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm or float("inf"))
        plain.step()
        assert mine._global_grad_norm == pytest.approx(float(norm))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def everything(model, optimizer):
    state = [x.clone() for s in optimizer.state.values() for x in s.values()]
    return [p.detach().clone() for p in model.parameters()] + state


@pytest.mark.parametrize("kind", ["skipped", "not finite"])
def test_update_that_is_left_out_changes_nothing(kind):
    model = nn.Linear(4, 2)
    if kind == "skipped":
        optimizer = SkippingAdamW(model.parameters(), lr=0.1)
    else:
        optimizer = ClippingAdamW(model.parameters(), 1.0, lr=0.1)
    train(model, optimizer)
    before = everything(model, optimizer)
    optimizer.skip = kind == "skipped"
    train(model, optimizer, float("nan") if kind == "not finite" else 1.0)
    for a, b in zip(before, everything(model, optimizer), strict=True):
        assert torch.equal(a, b)
    if kind == "not finite":
        assert optimizer.overflow
    optimizer.skip = False
    train(model, optimizer)
    assert not torch.equal(before[0], everything(model, optimizer)[0])
