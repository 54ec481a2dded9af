"""Which parts of which parameters a rank trains: the one place that knows how DeepSpeed lays out its partitions.

Parameters that are not trained are in none. To write to the values of a live fragment is to set the weights and moments
that the optimizer works on.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scfusion_fm.training.checkpoint import MOMENTS, WEIGHT, Fragment
from scfusion_fm.training.collectives import count_ranks, own_rank


class Engine(Protocol):
    """What is read of an engine: DeepSpeed's, or `scfusion_fm.training.plain_engine.PlainEngine`."""

    module: nn.Module
    basic_optimizer: Any
    optimizer: Any

    def zero_optimization_stage(self) -> int:
        """Give the ZeRO stage."""


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the parameters that are trained, by name."""
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def live_fragments(engine: Engine) -> Iterator[Fragment]:
    """Give the fragments that this rank updates; under stage 0, those are all, on every rank."""
    stage = engine.zero_optimization_stage()
    return (_whole, _flat, _flat, _partitioned)[stage](engine)


def own_fragments(engine: Engine) -> Iterator[Fragment]:
    """Give the fragments that this rank saves: together, the ranks give every element once."""
    shared = engine.zero_optimization_stage() == 0
    for number, fragment in enumerate(live_fragments(engine)):
        if not shared or number % count_ranks() == own_rank():
            yield fragment


def check_layout(engine: Engine) -> None:
    """
    Compare the fragments of a new engine with the parameters that they are said to belong to.

    Raises
    ------
    ValueError
        If they differ, as with settings or versions of DeepSpeed that lay out partitions in another way.
    """
    parameters = dict(engine.module.named_parameters())
    partitioned = engine.zero_optimization_stage() == 3
    for fragment in live_fragments(engine):
        parameter, weights = parameters[fragment.name], fragment.values[WEIGHT]
        here = parameter.ds_tensor if partitioned else parameter.detach().view(-1)[fragment.start :]
        here = here.view(-1)[: len(weights)]
        if not torch.equal(here.cpu(), weights.to(here.dtype).cpu()):
            raise ValueError(
                f"`deepspeed` must lay out its partitions as they are known here, got another layout at "
                f"{fragment.name!r}: checkpoints would be wrong. Use settings of configs/deepspeed and DeepSpeed 0.19."
            )


def set_updates(engine: Engine, updates: int) -> None:
    """Set the number of updates that AdamW has made, which its bias correction depends on."""
    for state in engine.basic_optimizer.state.values():
        if torch.is_tensor(state["step"]):
            state["step"].fill_(updates)
        else:
            state["step"] = updates


def _moments(engine: Engine, weights: Tensor) -> dict[str, Tensor]:
    """Give the moments of a tensor of the optimizer, made as AdamW makes them at its first update."""
    state = engine.basic_optimizer.state[weights]
    if not state:
        state["step"] = engine.basic_optimizer.first_step()
        for key in MOMENTS:
            state[key] = torch.zeros_like(weights, memory_format=torch.preserve_format)
    return {key: state[key] for key in MOMENTS}


def _whole(engine: Engine) -> Iterator[Fragment]:
    """Stage 0: every rank holds everything."""
    for name, weight in trained_parameters(engine.module):
        values = {WEIGHT: weight.detach()} | _moments(engine, weight)
        yield Fragment(name, 0, {key: value.view(-1) for key, value in values.items()})


def _flat(engine: Engine) -> Iterator[Fragment]:
    """Stages 1 and 2: the parameters of a group stand in a row, of which a rank updates one piece."""
    groups = engine.basic_optimizer.param_groups
    for name, parameter in trained_parameters(engine.module):
        mapping = parameter._hp_mapping  # None: another rank updates it
        if mapping is None:
            continue
        (weights,) = groups[mapping.param_group_index]["params"]
        where = mapping.hp_fragment_address
        values = {WEIGHT: weights.detach()} | _moments(engine, weights)
        yield Fragment(
            name,
            mapping.lp_fragment_address.start,
            {key: value.narrow(0, where.start, where.numel) for key, value in values.items()},
        )


def _partitioned(engine: Engine) -> Iterator[Fragment]:
    """Stage 3: every parameter is cut into equal parts, one per rank; the last ones may be short or empty."""
    optimizer = engine.optimizer
    for name, parameter in trained_parameters(engine.module):
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        weights = optimizer.fp32_partitioned_groups_flat[group]
        start = size * own_rank()
        length = min(size, parameter.ds_numel - start)
        if length <= 0:
            continue
        values = {WEIGHT: weights.detach()} | _moments(engine, weights)
        yield Fragment(name, start, {key: value.narrow(0, offset, length) for key, value in values.items()})
