"""Which parts of parameters a rank trains."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scfusion_fm.training.fragments import check_layout
from scfusion_fm.training.optimizer import SkippingAdamW


def engine_of_stage_2(weights):
    """What fragments look at: a parameter whose elements 2 to 4 this rank updates, from place 1 of its partition on."""
    parameter = nn.Parameter(torch.arange(6.0).view(2, 3))
    address = SimpleNamespace
    parameter._hp_mapping = SimpleNamespace(
        param_group_index=0,
        hp_fragment_address=address(start=1, numel=2),
        lp_fragment_address=address(start=2, numel=2),
    )
    optimizer = SkippingAdamW([torch.tensor(weights)])
    return SimpleNamespace(
        zero_optimization_stage=lambda: 2,
        module=SimpleNamespace(named_parameters=lambda: [("a", parameter)]),
        basic_optimizer=optimizer,
    )


def test_layout_that_is_not_known_is_refused():
    check_layout(engine_of_stage_2([9.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="got another layout at 'a'"):
        check_layout(engine_of_stage_2([9.0, 3.0, 2.0]))
