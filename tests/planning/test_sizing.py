"""Operations, parameters and activations that follow from a configuration are those of the real model."""

import importlib.util

import pytest
import torch
from launch import ROOT
from torch.utils.flop_counter import FlopCounterMode

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTForPreTraining
from scfusion_fm.planning.sizing import activation_bytes, count_parameters, forward_flops, train_flops
from scfusion_fm.planning.tokens import TokenCounts

_spec = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks" / "memory.py")
memory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(memory)

SMALL = {
    "num_rna_tokens": 64,
    "rna_patch_size": 6,
    "num_proteins": 32,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_fusion_layers": 2,
    "num_decoder_layers": 1,
}
KINDS = [
    {},
    {"ttt_layer_type": "mlp"},
    {"ttt_direction": "alternating", "ttt_use_gate": False},
    {"ttt_direction": "gated"},
    {"ttt_direction": "gated", "ttt_layer_type": "mlp", "ttt_mini_batch_size": 8},
    {"num_attention_heads": 4, "ttt_mini_batch_size": 32, "rna_patch_size": 1},
]


def _baddbmm_(self, first, second, *rest, **options):
    """Count what the counter of torch does not know: the product in place."""
    return 2 * first[0] * first[1] * first[2] * second[2]


def counted(config, cells, rna_masked, adt_masked, backward=False):
    """Let torch count the operations of real passes."""
    model = ScFusionTTTForPreTraining(config)
    *seen, rna, adt = memory.make_cells(config, cells)
    rna[:, :rna_masked] = True
    adt[:, :adt_masked] = True
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _baddbmm_}) as counter:
        loss = model(*seen, rna, adt).loss
        if backward:
            loss.backward()
    return counter.get_total_flops() / cells


@pytest.mark.parametrize("kind", KINDS)
def test_forward_flops_are_those_that_torch_counts(kind):
    config = ScFusionTTTConfig(**SMALL | kind)
    expected = counted(config, 2, 32, 0)
    assert forward_flops(config, TokenCounts(32, 32, 32, 0)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_forward_and_backward_take_about_three_times_the_forward(kind):
    config = ScFusionTTTConfig(**SMALL | kind)
    tokens = TokenCounts(64, 0, 32, 0)
    assert train_flops(config, tokens) == 3 * forward_flops(config, tokens)
    assert train_flops(config, tokens) == pytest.approx(counted(config, 2, 0, 0, backward=True), rel=0.06)


def test_parameters_are_those_of_the_model():
    for kind in KINDS:
        config = ScFusionTTTConfig(**SMALL | kind)
        model = ScFusionTTTForPreTraining(config)
        counts = count_parameters(config)
        assert counts.total == sum(p.numel() for p in model.parameters())
        assert counts.blocks == sum(p.numel() for n, p in model.named_parameters() if "layers" in n.split("."))
        features = (model.rna_decoder.head_weight, model.model.rna_embeddings.weight, model.model.adt_embeddings.weight)
        assert counts.features > sum(p.numel() for p in features)
        assert counts.other > 0


def test_parameters_of_a_large_model_take_no_memory():
    config = ScFusionTTTConfig(hidden_size=8192, num_attention_heads=128, intermediate_size=32768)
    with memory.LiveBytes() as counter, torch.device("meta"):
        ScFusionTTTForPreTraining(config)
    assert count_parameters(config).total > 10**10
    assert counter.peak > 10**10  # of meta tensors, which a process of this machine could not hold


PAPER = memory.PAPER
GATED = PAPER | {"ttt_direction": "gated", "num_hidden_layers": 2}
MLP = PAPER | {"ttt_layer_type": "mlp", "num_hidden_layers": 1, "num_decoder_layers": 1}
BASE = memory.BASE_LIKE
CASES = [
    (PAPER, 1, True, torch.bfloat16),
    (PAPER, 8, False, torch.float32),
    (GATED, 4, False, torch.bfloat16),
    (GATED, 8, True, torch.float32),
    (MLP, 2, False, torch.float32),
    (MLP, 2, True, torch.bfloat16),
    (BASE, 1, False, torch.float32),
]
OTHER = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}
MORE = [(*case, OTHER[dtype]) for *case, dtype in CASES]
MORE += [(*case, dtype) for case in ((PAPER, 8, True), (BASE, 2, True)) for dtype in OTHER]


def measured(config, cells, checkpointing, dtype):
    """Give the peak of activations: all tensors but the weights and their gradients, which are there before."""
    model = ScFusionTTTForPreTraining(config).to(dtype)
    if checkpointing:
        model.activation_checkpointing_enable()
    counter = memory.LiveBytes()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        counter.add(parameter)
        counter.add(parameter.grad)
    weights = counter.live
    with counter:
        model(*memory.make_cells(config, cells)).loss.backward()
    return counter.peak - weights


@pytest.mark.parametrize(
    ("fields", "cells", "checkpointing", "dtype"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_activations_are_those_of_a_real_pass(fields, cells, checkpointing, dtype):
    config = ScFusionTTTConfig(**fields)
    expected = measured(config, cells, checkpointing, dtype)
    found = activation_bytes(config, memory.all_visible(config), cells, checkpointing, dtype.itemsize)
    assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("case", [1, *(pytest.param(case, marks=pytest.mark.slow) for case in (4, 5))])
def test_estimates_of_training_are_within_15_percent(case):
    _, fields, cells, checkpointing = memory.CASES[case]
    config = ScFusionTTTConfig(**fields)
    cells = min(cells, 8 if case == 1 else 2)
    found = memory.estimate(config, cells, checkpointing)
    assert found == pytest.approx(memory.tensor_peak(config, cells, checkpointing), rel=0.15)
