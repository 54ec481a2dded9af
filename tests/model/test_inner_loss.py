"""The inner losses of a model: they cost the other outputs nothing, and belong to one cell and its visible tokens."""

import pytest
import torch

from scfusion_fm import ScFusionTTTModel
from scfusion_fm.model.configuration_scfusion_ttt import TTT_DIRECTIONS
from scfusion_fm.model.ttt_layers import TTTLayer

CELLS, TOKENS, GENES, PROTEINS = 4, 11, 3, 7


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "rna_values": torch.rand(CELLS, TOKENS, GENES, generator=generator),
        "rna_observed": torch.rand(CELLS, TOKENS, 1, generator=generator).expand(-1, -1, GENES) < 0.7,
        "adt_values": torch.randn(CELLS, PROTEINS, generator=generator),
        "adt_observed": torch.rand(CELLS, PROTEINS, generator=generator) < 0.8,
    }


@pytest.fixture(params=[(d, "linear") for d in sorted(TTT_DIRECTIONS)] + [("alternating", "mlp")], ids="-".join)
def model(request, tiny_config):
    tiny_config.ttt_direction, tiny_config.ttt_layer_type = request.param
    torch.manual_seed(0)
    return ScFusionTTTModel(tiny_config).eval()


def test_other_outputs_are_the_same_and_tokens_that_are_not_visible_have_none(model, batch):
    plain, told = model(**batch), model(**batch, output_inner_loss=True)
    assert plain.inner_loss is None
    assert list(plain) == ["last_hidden_state", "attention_mask", "pooler_output", "modality_pooler_output"]
    for name in plain:
        assert torch.equal(plain[name], told[name])
    assert ((told.inner_loss > 0) == told.attention_mask).all()
    rna, adt = told.inner_loss.split([TOKENS, PROTEINS], 1)
    counts = told.attention_mask.split([TOKENS, PROTEINS], 1)
    expected = torch.stack([rna.sum(1) / counts[0].sum(1), adt.sum(1) / counts[1].sum(1)], 1)
    torch.testing.assert_close(told.modality_inner_loss, expected)
    assert not told.inner_loss.requires_grad


def test_batch_mates_and_values_that_were_not_observed_do_not_matter(model, batch):
    whole = model(**batch, output_inner_loss=True)
    other = dict(batch, rna_values=batch["rna_values"].masked_fill(~batch["rna_observed"], 99.0))
    for i in range(CELLS):
        alone = model(**{k: v[i : i + 1] for k, v in other.items()}, output_inner_loss=True)
        torch.testing.assert_close(alone.inner_loss[0], whole.inner_loss[i], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.modality_inner_loss[0], whole.modality_inner_loss[i], rtol=1e-4, atol=1e-6)


def test_a_modality_that_is_absent_or_hidden_has_none(model, batch):
    adt = ("adt_values", "adt_observed")
    without = model(**{k: v for k, v in batch.items() if k not in adt}, output_inner_loss=True)
    assert (without.inner_loss[:, TOKENS:] == 0).all()
    assert (without.modality_inner_loss[:, 1] == 0).all()
    assert (without.modality_inner_loss[:, 0] > 0).all()
    hidden = torch.ones(CELLS, PROTEINS, dtype=torch.bool)
    masked = model(**batch, adt_bool_masked_pos=hidden, output_inner_loss=True)
    assert masked.attention_mask[:, TOKENS:].all()  # projected, so read by the fusion, but nothing that was measured
    assert (masked.inner_loss[:, TOKENS:] == 0).all()


def test_it_is_the_loss_of_the_layers(model, batch):
    seen = []
    layers = [*model.adt_encoder.layers, *model.adt_fusion.layers]
    hooks = [x.ttt.register_forward_hook(lambda m, a, out: seen.append(out.inner_loss.mean(-1))) for x in layers]
    told = model(**batch, output_inner_loss=True)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(layers) == 3
    for i in range(CELLS):
        count = int(batch["adt_observed"][i].sum())
        own = [x[i, :count] for x in seen[:2]] + [x[i, -seen[0].shape[1] :][:count] for x in seen[2:]]
        expected = torch.stack(own).mean(0)
        torch.testing.assert_close(told.inner_loss[i, TOKENS:][batch["adt_observed"][i]], expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_keeps_losses_and_gradients_and_computes_layers_again(model, batch, use_reentrant):
    found, calls = [], []
    for module in model.modules():
        if isinstance(module, TTTLayer):
            module.register_forward_hook(lambda *arguments: calls.append(1))
    for enabled in (False, True):
        if enabled:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train().zero_grad()
        told = model(**batch, output_inner_loss=True)
        assert not told.inner_loss.requires_grad
        told.pooler_output.sin().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([told.inner_loss, told.modality_inner_loss, told.pooler_output, *gradients])
    assert len(calls) == 6 + 2 * 6
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
