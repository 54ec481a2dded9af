"""In inference mode less is calculated, by other routines; what comes out is the same."""

import pytest
import torch
from torch.nn import functional as F

from scfusion_fm import ScFusionTTTForCellTypeAnnotation, ScFusionTTTForCrossModalPrediction, ScFusionTTTModel
from scfusion_fm.inference.batches import leave_out
from scfusion_fm.model.linear_scfusion_ttt import Linear, gelu_of, is_plain, multiply, runs_on_onednn
from scfusion_fm.tasks.adapters import add_adapters

CELLS, TOKENS, GENES, PROTEINS = 5, 11, 3, 7
PROJECTIONS = {"rna_projection", "adt_projection"}


def make_inputs(*names):
    generator = torch.Generator().manual_seed(1)
    batch = {
        "rna_values": torch.rand(CELLS, TOKENS, GENES, generator=generator),
        "rna_observed": torch.rand(CELLS, TOKENS, GENES, generator=generator) < 0.3,
        "adt_values": torch.randn(CELLS, PROTEINS, generator=generator),
        "adt_observed": torch.rand(CELLS, PROTEINS, generator=generator) < 0.5,
    }
    return {name: x for name, x in batch.items() if name[:3] in names}


def called_modules(model, **inputs):
    """Run a model in inference mode; its output, and the names of its parts that were called."""
    called = []
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, part in model.named_children()
    ]
    with torch.inference_mode():
        output = model(**inputs)
    for handle in handles:
        handle.remove()
    return output, set(called)


@pytest.mark.parametrize(
    ("shown", "hidden", "idle"),
    [
        (("rna", "adt"), None, PROJECTIONS),
        (("rna",), None, PROJECTIONS | {"adt_embeddings", "adt_fusion"}),
        (("adt",), None, PROJECTIONS | {"rna_embeddings", "rna_fusion"}),
        (("rna",), "adt", {"adt_embeddings", "rna_projection"}),
        (("adt",), "rna", {"rna_embeddings", "adt_projection"}),
    ],
)
@pytest.mark.parametrize("layer", ["linear", "mlp"])
def test_what_has_no_tokens_is_left_out_and_changes_nothing(tiny_config, shown, hidden, idle, layer):
    torch.manual_seed(0)
    tiny_config.ttt_layer_type = layer
    model = ScFusionTTTModel(tiny_config).eval()
    inputs = make_inputs(*shown) | {"output_inner_loss": True}
    if hidden:
        number = {"rna": TOKENS, "adt": PROTEINS}[hidden]
        inputs[f"{hidden}_bool_masked_pos"] = torch.ones(CELLS, number, dtype=torch.bool)
    with torch.no_grad():
        expected = model(**inputs)
    found, called = called_modules(model, **inputs)
    assert {name for name, _ in model.named_children()} - called == idle
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "field", "others"),
    [
        (ScFusionTTTModel, "pooler_output", {"last_hidden_state", "attention_mask"}),
        (ScFusionTTTModel, "last_hidden_state", set()),
        (ScFusionTTTForCrossModalPrediction, "logits", {"pooler_output"}),
        (ScFusionTTTForCrossModalPrediction, "pooler_output", set()),
        (ScFusionTTTForCellTypeAnnotation, "logits", set()),
    ],
)
def test_what_nobody_asked_for_is_left_out(tiny_config, model_class, field, others):
    torch.manual_seed(0)
    model, inputs = model_class(tiny_config).eval(), make_inputs("rna")
    with torch.inference_mode():
        whole, part = model(**inputs), model(**inputs, **leave_out(model, (field,)))
    assert set(whole) - set(part) == others
    assert torch.equal(whole[field], part[field])


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear(24, 16)


@torch.inference_mode()
def test_layers_without_gradient_are_those_with_one(layer):
    x = torch.randn(3, 50, 24)
    assert runs_on_onednn(x, layer.weight)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gelu_of(layer, x), F.gelu(expected, approximate="tanh"), rtol=1e-5, atol=1e-6)
    silu = multiply(x, layer.weight, layer.bias, "silu")
    torch.testing.assert_close(silu, F.silu(expected), rtol=1e-5, atol=1e-6)
    for other in (x.mT.contiguous().mT, x[:0]):
        assert not runs_on_onednn(other, layer.weight)
        torch.testing.assert_close(layer(other), F.linear(other, layer.weight, layer.bias))


def test_layers_that_learn_are_those_of_torch(layer):
    x = torch.randn(3, 24, requires_grad=True)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(gelu_of(layer, x), F.gelu(layer(x), approximate="tanh"))
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_adapters_are_not_passed_over(tiny_config):
    pytest.importorskip("peft")
    model, inputs = ScFusionTTTForCellTypeAnnotation(tiny_config).eval(), make_inputs("rna", "adt")
    add_adapters(model, 2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert not any(is_plain(block.gate_proj) for block in model.modules() if hasattr(block, "gate_proj"))
    with torch.no_grad():
        expected = model(**inputs).logits
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
