"""The models: what reaches the output, what must not, and what loading keeps."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from scfusion_fm import (
    ScFusionTTTConfig,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
)
from scfusion_fm.model.blocks_scfusion_ttt import mean_squared_error_per_cell
from scfusion_fm.model.configuration_scfusion_ttt import TTT_DIRECTIONS
from scfusion_fm.model.studies_scfusion_ttt import centre_over

CELLS, TOKENS, GENES, PROTEINS = 4, 11, 3, 7


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "rna_values": torch.rand(CELLS, TOKENS, GENES, generator=generator),
        "rna_observed": torch.rand(CELLS, TOKENS, GENES, generator=generator) < 0.8,
        "adt_values": torch.randn(CELLS, PROTEINS, generator=generator),
        "adt_observed": torch.rand(CELLS, PROTEINS, generator=generator) < 0.9,
    }


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(2)
    return {
        "rna_bool_masked_pos": torch.rand(CELLS, TOKENS, generator=generator) < 0.3,
        "adt_bool_masked_pos": torch.rand(CELLS, PROTEINS, generator=generator) < 0.3,
    }


@pytest.fixture(params=sorted(TTT_DIRECTIONS))
def config(request, tiny_config):
    tiny_config.ttt_direction = request.param
    return tiny_config


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return ScFusionTTTModel(config).eval()


@pytest.fixture
def pretraining(config):
    torch.manual_seed(0)
    return ScFusionTTTForPreTraining(config).eval()


def test_each_modality_changes_the_embedding_and_learns(model, batch):
    base = model(**batch).pooler_output
    for name in ("rna_values", "adt_values"):
        changed = batch | {name: batch[name] + 1.0}
        assert (model(**changed).pooler_output - base).abs().max(1).values.min() > 1e-4
    model(**batch).pooler_output.square().sum().backward()
    for embedding in (model.rna_embeddings, model.adt_embeddings):
        assert embedding.weight.grad.abs().sum() > 0


def test_modalities_are_pooled_side_by_side(model, batch):
    pooled = model(**batch).modality_pooler_output
    assert pooled.shape == (CELLS, 4, model.config.hidden_size)
    other = model(**(batch | {"adt_values": batch["adt_values"] + 1.0})).modality_pooler_output
    torch.testing.assert_close(other[:, 2], pooled[:, 2])  # RNA before the fusion
    for part in (0, 1, 3):
        assert (other[:, part] - pooled[:, part]).abs().max() > 1e-5
    alone = model(batch["rna_values"], batch["rna_observed"]).modality_pooler_output
    assert not alone[:, [1, 3]].any()
    torch.testing.assert_close(alone[:, 2], pooled[:, 2])


def test_each_modality_reaches_the_tokens_of_the_other(model, batch):
    base = model(**batch).last_hidden_state
    other = model(**(batch | {"adt_values": batch["adt_values"] + 1.0})).last_hidden_state
    assert not torch.allclose(base[:, :TOKENS], other[:, :TOKENS], atol=1e-5)
    other = model(**(batch | {"rna_values": batch["rna_values"] + 1.0})).last_hidden_state
    assert not torch.allclose(base[:, TOKENS:], other[:, TOKENS:], atol=1e-5)


def test_values_that_were_not_observed_do_not_matter(model, batch):
    base = model(**batch).pooler_output
    spoiled = {
        name: batch[name].masked_fill(~batch[name.replace("values", "observed")], torch.nan)
        for name in ("rna_values", "adt_values")
    }
    assert torch.equal(model(**(batch | spoiled)).pooler_output, base)


def test_absent_protein_is_not_zero_protein(model, batch):
    absent = model(batch["rna_values"], batch["rna_observed"]).pooler_output
    nothing = torch.zeros(CELLS, PROTEINS)
    flagged = model(**(batch | {"adt_values": nothing, "adt_observed": nothing.bool()})).pooler_output
    zero = model(**(batch | {"adt_values": nothing, "adt_observed": ~nothing.bool()})).pooler_output
    torch.testing.assert_close(absent, flagged)
    assert not torch.allclose(absent, zero, atol=1e-4)


def test_cell_without_protein_gives_protein_modules_no_gradient(pretraining, batch, masks):
    batch["adt_observed"] = torch.zeros(CELLS, PROTEINS, dtype=torch.bool)
    masks["adt_bool_masked_pos"] = torch.zeros(CELLS, PROTEINS, dtype=torch.bool)
    output = pretraining(**batch, **masks)
    output.loss.backward()
    assert (output.adt_loss == 0).all()
    for module in (pretraining.model.adt_embeddings, pretraining.adt_decoder, pretraining.model.adt_encoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is None or not parameter.grad.any(), name


def test_embedding_does_not_depend_on_batch_mates(model, batch):
    batch["rna_observed"][0, 3:] = False  # rows of different lengths
    batch["adt_observed"][1] = False
    together = model(**batch).pooler_output
    for i in range(CELLS):
        alone = model(**{k: v[i : i + 1] for k, v in batch.items()}).pooler_output
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)


def test_masked_values_are_invisible(pretraining, batch, masks):
    base = pretraining(**batch, **masks)
    hidden_rna = batch["rna_values"] + 3.0 * masks["rna_bool_masked_pos"].unsqueeze(-1)
    hidden_adt = batch["adt_values"] + 3.0 * masks["adt_bool_masked_pos"]
    other = pretraining(**(batch | {"rna_values": hidden_rna, "adt_values": hidden_adt}), **masks)
    assert torch.equal(base.rna_reconstruction, other.rna_reconstruction)
    assert torch.equal(base.adt_reconstruction, other.adt_reconstruction)
    assert not torch.equal(base.loss, other.loss)


def test_loss_ignores_visible_and_unobserved_values(batch, masks):
    predicted = torch.zeros(CELLS, PROTEINS)
    target = batch["adt_observed"] & masks["adt_bool_masked_pos"]
    target[0, :2] = True
    loss = mean_squared_error_per_cell(predicted, batch["adt_values"], target)
    pairs = zip(batch["adt_values"], target, strict=True)
    by_hand = torch.stack([v[t].square().mean() if t.any() else torch.tensor(0.0) for v, t in pairs])
    torch.testing.assert_close(loss, by_hand)


def test_loss_of_a_batch_is_the_mean_of_its_halves(pretraining, batch, masks):
    everything = batch | masks
    whole = pretraining(**everything).loss
    halves = [pretraining(**{k: v[s] for k, v in everything.items()}).loss for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_hidden_protein_is_predicted_from_rna(pretraining, batch, masks):
    everything = batch | {"adt_bool_masked_pos": torch.ones(CELLS, PROTEINS, dtype=torch.bool)}
    everything["rna_bool_masked_pos"] = torch.zeros(CELLS, TOKENS, dtype=torch.bool)
    base = pretraining(**everything).adt_reconstruction
    other = pretraining(**(everything | {"rna_values": batch["rna_values"].flip(0)})).adt_reconstruction
    assert not torch.allclose(base, other, atol=1e-5)
    pretraining(**everything).adt_loss.sum().backward()
    assert pretraining.model.adt_projection.source_proj.weight.grad.any()


def test_every_parameter_learns(pretraining, batch, masks):
    masks["adt_bool_masked_pos"][0] = True
    masks["rna_bool_masked_pos"][1] = True
    pretraining(**batch, **masks).loss.backward()
    silent = [n for n, p in pretraining.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_order_of_genes_matters(model, batch):
    """A mean-pooled model without order would not notice that the tokens trade places with their projections."""
    base = model(**batch).pooler_output
    with torch.no_grad():
        for parameter in (model.rna_embeddings.weight, model.rna_embeddings.position_embeddings):
            parameter.copy_(parameter.flip(0))
    flipped = {k: v.flip(1) if k.startswith("rna") else v for k, v in batch.items()}
    assert not torch.allclose(model(**flipped).pooler_output, base, atol=1e-5)


def test_cross_modal_prediction_never_sees_its_target(config, batch):
    torch.manual_seed(0)
    model = ScFusionTTTForCrossModalPrediction(config).eval()
    with_target = model(**batch)
    without = model(batch["rna_values"], batch["rna_observed"])
    assert torch.equal(with_target.logits, without.logits)
    assert without.loss is None
    expected = mean_squared_error_per_cell(with_target.logits, batch["adt_values"], batch["adt_observed"]).mean()
    torch.testing.assert_close(with_target.loss, expected)


def test_cross_modal_prediction_of_rna_from_protein(config, batch):
    config.target_modality = "rna"
    model = ScFusionTTTForCrossModalPrediction(config).eval()
    output = model(**batch)
    assert output.logits.shape == batch["rna_values"].shape
    assert torch.equal(output.logits, model(adt_values=batch["adt_values"], adt_observed=batch["adt_observed"]).logits)
    with pytest.raises(ValueError, match="`adt_values` must be given to predict 'rna'"):
        model(batch["rna_values"])


def test_cross_modal_prediction_needs_its_source(config, batch):
    with pytest.raises(ValueError, match="`rna_values` must be given to predict 'adt'"):
        ScFusionTTTForCrossModalPrediction(config)(adt_values=batch["adt_values"])


@pytest.mark.parametrize("target", ["adt", "rna"])
def test_targets_count_as_they_are_weighed(tiny_config, batch, target):
    tiny_config.target_modality = target
    model = ScFusionTTTForCrossModalPrediction(tiny_config).eval()
    plain, values, observed = model(**batch), batch[f"{target}_values"], batch[f"{target}_observed"]
    weight = torch.rand(values.shape[1:]) + 0.5
    model.weigh_targets(weight)
    weighed = model(**batch)
    assert torch.equal(weighed.logits, plain.logits)
    error = (plain.logits - values).square() * observed
    by_hand = (error * weight).flatten(1).sum(1) / observed.flatten(1).sum(1).clamp_min(1)
    torch.testing.assert_close(weighed.loss, by_hand.mean())
    model.weigh_targets(None)
    assert torch.equal(model(**batch).loss, plain.loss)


def test_weights_of_targets_follow_the_model_and_are_not_saved(tiny_config, batch, tmp_path):
    model = ScFusionTTTForCrossModalPrediction(tiny_config).eval()
    plain, names = model(**batch).loss, list(model.state_dict())
    model.weigh_targets(torch.full((PROTEINS,), 2.0))
    assert list(model.state_dict()) == names
    assert model.double().target_weight.dtype == torch.float64
    model.float().save_pretrained(tmp_path)
    loaded = ScFusionTTTForCrossModalPrediction.from_pretrained(tmp_path)
    assert loaded.target_weight is None
    assert torch.equal(loaded(**batch).loss, plain)


def test_weights_that_do_not_fit_the_targets_are_refused(tiny_config):
    model = ScFusionTTTForCrossModalPrediction(tiny_config)
    with pytest.raises(ValueError, match=r"`weight` must have the shape \(7,\) of the targets .* got \(3,\)"):
        model.weigh_targets(torch.ones(3))


def test_annotation_ignores_cells_without_label(config, batch):
    config.num_labels = 3
    model = ScFusionTTTForCellTypeAnnotation(config).eval()
    labels = torch.tensor([0, 2, -100, 1])
    output = model(**batch, labels=labels)
    assert output.logits.shape == (CELLS, 3)
    known = labels >= 0
    expected = torch.nn.functional.cross_entropy(output.logits[known], labels[known])
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.parametrize(
    "model_class",
    [
        ScFusionTTTModel,
        ScFusionTTTForPreTraining,
        ScFusionTTTForCellTypeAnnotation,
        ScFusionTTTForCrossModalPrediction,
    ],
)
def test_tuple_output_on_request(model_class, how, tiny_config, batch, masks):
    inputs = batch | masks if model_class is ScFusionTTTForPreTraining else batch
    model = model_class(tiny_config).eval()
    expected = model(**inputs)
    if how == "config":
        model.config.return_dict = False
        output = model(**inputs)
        assert list(model(**inputs, return_dict=True)) == list(expected)
    else:
        output = model(**inputs, return_dict=False)
    assert isinstance(output, tuple)
    assert all(torch.equal(a, b) for a, b in zip(output, expected.to_tuple(), strict=True))


def test_hidden_state_stands_in_vocabulary_order(model, batch):
    output = model(**batch)
    read = torch.cat((batch["rna_observed"].any(-1), batch["adt_observed"]), 1)
    assert torch.equal(output.attention_mask, read)
    assert (output.last_hidden_state[~read] == 0).all()
    assert (output.last_hidden_state[read].abs().sum(-1) > 0).all()


def test_bfloat16_is_finite_and_near_float32(pretraining, batch, masks):
    expected = pretraining(**batch, **masks).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = pretraining(**batch, **masks).loss
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.0)


def test_wrong_inputs_are_refused(model, batch):
    with pytest.raises(ValueError, match="give at least one modality"):
        model()
    with pytest.raises(ValueError, match=r"`rna_values` must have the shape .* feature extractor"):
        model(batch["rna_values"][:, :5])
    with pytest.raises(ValueError, match="`adt_observed` must have the shape"):
        model(adt_values=batch["adt_values"], adt_observed=batch["adt_observed"][:, :2])
    with pytest.raises(ValueError, match="`rna_bool_masked_pos` must have the shape"):
        model(batch["rna_values"], rna_bool_masked_pos=torch.ones(CELLS, 3, dtype=torch.bool))


def test_a_predictor_reads_genes_in_units_that_fit(tiny_config):
    genes = {"study_genes": torch.randperm(33)[:20].tolist(), "num_coordinates": 2}
    genes["own_genes"] = torch.randint(-1, 20, (tiny_config.num_proteins,)).tolist()
    plain, in_units = (
        ScFusionTTTForCrossModalPrediction(type(tiny_config)(**(tiny_config.to_dict() | more))).double()
        for more in ({}, genes)
    )
    units = torch.rand(2, tiny_config.num_rna_tokens, tiny_config.rna_patch_size, dtype=torch.float64) + 0.1
    with pytest.raises(ValueError, match=r"`adapt` must be left out for a model without `config\.study_genes`"):
        plain.adapt(*units)
    with pytest.raises(ValueError, match=r"must have the shape of the genes in patches, \(N, S\), got \(11, 2\)"):
        in_units.adapt(units[0, :, :2], units[1])
    readout = in_units.study_readout
    for tensor in (readout.coordinates.loadings, readout.levels, readout.deviations, *readout.parameters()):
        tensor.data.normal_()
    values, observed = torch.rand(4, 11, 3, dtype=torch.float64), torch.rand(4, 11, 3) > 0.3
    in_units.adapt(*units)
    moved = in_units(values * 3 + 1, observed).logits
    in_units.adapt((units[0] - 1) / 3, units[1] / 3)
    torch.testing.assert_close(in_units(values, observed).logits, moved)
    assert in_units(values, observed).pooler_output is not None
    assert in_units(values, observed, output_embedding=False).pooler_output is None


def test_levels_are_centred_over_a_panel():
    levels, panel = torch.randn(5, 7), torch.rand(5, 7) > 0.5
    panel[0] = False
    centred = centre_over(levels, panel)
    torch.testing.assert_close(centred.masked_fill(~panel, 0).sum(1), torch.zeros(5), atol=1e-6, rtol=0)
    assert torch.equal(centred[0], levels[0])
    torch.testing.assert_close(centred.diff(), levels.diff())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_proteins": 0}, "`num_proteins` must be at least 1"),
        ({"hidden_size": 10, "num_attention_heads": 4}, "`hidden_size` must be `num_attention_heads` times"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "an even head width"),
        ({"ttt_direction": "sideways"}, "`ttt_direction` must be one of"),
        ({"ttt_layer_type": "cubic"}, "`ttt_layer_type` must be one of"),
        ({"target_modality": "atac"}, "`target_modality` must be one of"),
        ({"classifier_dropout": 1.0}, r"`classifier_dropout` must lie in \[0, 1\)"),
        ({"num_coordinates": -1}, "`num_coordinates` must be at least 0, got -1"),
        ({"num_landmarks": -1}, "`num_landmarks` must be at least 0, got -1"),
        ({"num_landmarks": 5}, "`num_coordinates` must be at least 1 with `num_landmarks` 5, got 0"),
        ({"study_genes": [5]}, "`study_genes` must be None without `num_coordinates`"),
        ({"study_genes": [4000], "num_coordinates": 2}, "`study_genes` must be places below 4000, got 4000"),
        (
            {"study_genes": [5], "num_coordinates": 2},
            "`own_genes` must be -1 or below 1 for each of 64 proteins",
        ),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ScFusionTTTConfig(**fields)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_model_can_be_compiled(tiny_config, batch, masks, backend):
    layers = dict.fromkeys(("num_hidden_layers", "num_fusion_layers", "num_decoder_layers"), 1)
    config = type(tiny_config)(**(tiny_config.to_dict() | layers | {"ttt_direction": "gated"}))
    model = ScFusionTTTForPreTraining(config)
    expected = model(**batch, **masks)
    expected.loss.mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()  # or it gives up on code that it has compiled for many models
    got = torch.compile(model, backend=backend)(**batch, **masks)
    got.loss.mean().backward()
    torch.testing.assert_close(got.loss, expected.loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("triton", ["0", "1"])
def test_a_model_on_a_gpu_equals_that_on_the_cpu_in_outputs_and_gradients(batch, masks, monkeypatch, triton):
    monkeypatch.setenv("SCFUSION_TRITON", triton)
    sizes = {"num_rna_tokens": TOKENS, "rna_patch_size": GENES, "num_proteins": PROTEINS}
    torch.manual_seed(0)
    model = ScFusionTTTForPreTraining(ScFusionTTTConfig(**sizes, hidden_size=64, num_attention_heads=2))
    batch, results = batch | masks, []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        output = model(**{name: x.to(device) for name, x in batch.items()})
        output.loss.backward()
        found = [output.rna_reconstruction, output.adt_reconstruction, *(p.grad for p in model.parameters())]
        results.append([x.detach().to("cpu", copy=True) for x in found])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4 * max(here.abs().max().item(), 1e-3))
