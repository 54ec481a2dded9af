"""What users of transformers expect of any model: each test runs over the four classes."""

import copy

import accelerate
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from scfusion_fm import (
    ScFusionTTTConfig,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
)
from scfusion_fm.model.blocks_scfusion_ttt import FixedModule

CELLS, TOKENS, GENES, PROTEINS = 3, 11, 3, 7
FIELDS = {
    ScFusionTTTModel: {},
    ScFusionTTTForPreTraining: {"ttt_direction": "alternating"},
    ScFusionTTTForCellTypeAnnotation: {"num_labels": 3, "num_coordinates": 2, "ttt_direction": "gated"},
    ScFusionTTTForCrossModalPrediction: {"num_coordinates": 2, "num_landmarks": 5, "ttt_layer_type": "mlp"},
}


@pytest.fixture(params=FIELDS, ids=lambda c: c.__name__.removeprefix("ScFusionTTT"))
def model_class(request):
    return request.param


@pytest.fixture
def config(model_class, tiny_config):
    small = {"num_hidden_layers": 1, "classifier_dropout": 0.0, "id2label": None, "label2id": None}
    return ScFusionTTTConfig(**(tiny_config.to_dict() | small | FIELDS[model_class]))


@pytest.fixture
def model(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    for buffer in model.buffers():  # a fine-tuning fits them
        buffer.copy_(torch.rand_like(buffer))
    return model


@pytest.fixture
def inputs(model_class):
    """Cells with all of both modalities, with some, and without protein."""
    generator = torch.Generator().manual_seed(1)
    cells = {
        "rna_values": torch.rand(CELLS, TOKENS, GENES, generator=generator),
        "rna_observed": torch.rand(CELLS, TOKENS, GENES, generator=generator) < 0.9,
        "adt_values": torch.randn(CELLS, PROTEINS, generator=generator),
        "adt_observed": torch.rand(CELLS, PROTEINS, generator=generator) < 0.9,
    }
    cells["rna_observed"][0, 4:] = False
    cells["adt_observed"][1] = False
    if model_class is ScFusionTTTForPreTraining:
        cells["rna_bool_masked_pos"] = torch.rand(CELLS, TOKENS, generator=generator) < 0.3
        cells["adt_bool_masked_pos"] = torch.rand(CELLS, PROTEINS, generator=generator) < 0.3
        cells["rna_bool_masked_pos"][2] = cells["adt_bool_masked_pos"][0] = True  # each is projected from the other
    return cells


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def outputs(model, inputs):
    """Give what a model gives that has a row for each cell."""
    with torch.no_grad():
        found = model(**inputs)
    return {name: x.float() for name, x in found.items() if x.ndim > 0}


def loss(model, inputs):
    if isinstance(model, ScFusionTTTForCellTypeAnnotation):
        return model(**inputs, labels=torch.arange(CELLS) % 3).loss
    found = model(**inputs)
    return found.loss if "loss" in found else found.pooler_output.square().sum()


def gradients(model, inputs):
    model.zero_grad()
    loss(model, inputs).backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None and x.grad.any()}


def test_what_was_saved_is_loaded(model_class, model, saved, inputs):
    expected = outputs(model, inputs)
    loaded, told = model_class.from_pretrained(saved, output_loading_info=True)
    assert not any(told.values())
    assert not loaded.training
    torch.testing.assert_close(outputs(loaded, inputs), expected, rtol=0, atol=0)
    torch.testing.assert_close(outputs(loaded, inputs), expected, rtol=0, atol=0)  # and again the same
    base = ScFusionTTTModel.from_pretrained(saved)  # whatever the head
    assert all(torch.equal(x, model.base_model.state_dict()[name]) for name, x in base.state_dict().items())
    changed = dict.fromkeys(("_name_or_path", "transformers_version", "auto_map"))
    assert loaded.config.to_dict() | changed == model.config.to_dict() | changed


def test_missing_and_unexpected_weights_are_told(model_class, model, tmp_path):
    weights = model.state_dict()
    name = "adt_embeddings.weight" if model_class is ScFusionTTTModel else "model.adt_embeddings.weight"
    del weights[name]
    weights["rna_fusion.layers.7.mlp_norm.weight"] = torch.ones(16)
    model.save_pretrained(tmp_path / "odd", state_dict=weights)
    loaded, told = model_class.from_pretrained(tmp_path / "odd", output_loading_info=True)
    assert told["missing_keys"] == {name}
    assert told["unexpected_keys"] == {"rna_fusion.layers.7.mlp_norm.weight"}
    assert 0.1 < loaded.state_dict()[name].std() < 0.3  # drawn at `initializer_range`


def test_every_weight_is_drawn_from_the_seed(model_class, config):
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        model = model_class._from_config(config)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(torch.nan)
            tensor._is_hf_initialized = False
        model.apply(lambda module: setattr(module, "_is_hf_initialized", False))
        model.init_weights()
        drawn.append(model.state_dict())
    for name, value in drawn[0].items():
        assert value.isfinite().all(), name
        assert torch.equal(value, drawn[1][name]), name
        assert value.unique().numel() == 1 or abs(value.std() / config.initializer_range - 1) < 0.5, name
    if model_class is ScFusionTTTModel:
        torch.manual_seed(3)
        assert isinstance(AutoModel.from_config(config), ScFusionTTTModel)


def test_a_cell_alone_is_a_cell_in_a_batch(model, inputs):
    together = outputs(model, inputs)
    for i in range(CELLS):
        alone = outputs(model, {name: x[i : i + 1] for name, x in inputs.items()})
        expected = {name: x[i : i + 1] for name, x in together.items()}
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fewer_bits_give_nearly_the_same(model_class, model, saved, inputs, dtype):
    expected = outputs(model, inputs)
    loaded = model_class.from_pretrained(saved, dtype=dtype)
    assert loaded.dtype == dtype
    cast = model.to(dtype)
    for other in (loaded, cast):
        assert {x.dtype for x in other.buffers()} <= {torch.float32}
        assert {x.dtype for x in other.parameters()} == {dtype}
        for name, value in outputs(other, inputs).items():
            error = (value - expected[name]).square().mean().sqrt() / expected[name].square().mean().sqrt()
            assert error < (0.1 if dtype == torch.bfloat16 else 0.01), (name, error)
    torch.testing.assert_close(outputs(loaded, inputs), outputs(cast, inputs), rtol=0, atol=0)
    cast.save_pretrained(saved)
    again = model_class.from_pretrained(saved, dtype="auto")
    torch.testing.assert_close(outputs(again, inputs), outputs(cast, inputs), rtol=0, atol=0)


def test_fast_weights_stay_in_float32(model_class, model, inputs):
    kinds = set()
    for module in model.to(torch.bfloat16).modules():
        if hasattr(module, "initial_state"):
            module.register_forward_hook(lambda module, _, output: kinds.update(x.dtype for x in output.state[:-1]))
    outputs(model, inputs)
    assert kinds == {torch.float32}


@pytest.mark.parametrize("device_map", ["cpu", "auto", "split"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_device_maps_place_the_model(model_class, model, saved, inputs, device_map, tmp_path):
    expected = outputs(model, inputs)
    if device_map == "split":  # by a third of the memory that it needs, the rest on disk
        memory = {"cpu": model.get_memory_footprint() // 3, "disk": 1 << 40}
        device_map = accelerate.infer_auto_device_map(model, memory, model._no_split_modules)
        assert set(device_map.values()) == {"cpu", "disk"}
    loaded = model_class.from_pretrained(saved, device_map=device_map, offload_folder=tmp_path / "off")
    torch.testing.assert_close(outputs(loaded, inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_gradient_checkpointing_changes_no_gradient(model, inputs, use_reentrant):
    expected = gradients(model.train(), inputs)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(gradients(model, inputs), expected)


def test_all_that_an_output_depends_on_learns(model_class, model, inputs):
    silent = {name.removeprefix("model.").split(".")[0] for name, _ in model.named_parameters()}
    silent -= {name.removeprefix("model.").split(".")[0] for name in gradients(model.train(), inputs)}
    unused = {
        ScFusionTTTModel: {"rna_projection", "adt_projection"},  # nothing is hidden
        ScFusionTTTForPreTraining: set(),
        ScFusionTTTForCellTypeAnnotation: {"rna_projection", "adt_projection"},
        ScFusionTTTForCrossModalPrediction: {"adt_embeddings", "adt_encoder", "rna_projection", "rna_fusion"},
    }
    assert silent == unused[model_class]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_adapters_learn_under_reentrant_checkpointing_too(model, inputs):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["qkv_proj", "o_proj"], r=2, init_lora_weights=False)
    wrapped = peft.get_peft_model(copy.deepcopy(model), settings)
    expected = gradients(wrapped, inputs)
    assert expected
    wrapped.enable_input_require_grads()
    wrapped.base_model.model.activation_checkpointing_enable({"use_reentrant": True})
    torch.testing.assert_close(gradients(wrapped.train(), inputs), expected)
    wrapped.disable_input_require_grads()
    wrapped.base_model.model.activation_checkpointing_disable()
    there, merged = outputs(wrapped.eval(), inputs), outputs(wrapped.merge_and_unload(), inputs)
    torch.testing.assert_close(merged, there, rtol=1e-4, atol=1e-4)


def test_a_head_of_another_size_starts_anew_if_asked(model_class, model, saved):
    if model_class is not ScFusionTTTForCellTypeAnnotation:
        pytest.skip("it has no classes")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        model_class.from_pretrained(saved, num_labels=5)
    loaded = model_class.from_pretrained(saved, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.classifier.out_features == loaded.config.num_labels == len(loaded.config.id2label) == 5
    assert torch.equal(loaded.model.rna_embeddings.weight, model.model.rna_embeddings.weight)


def test_what_does_not_apply_is_refused(model, config, inputs):
    assert not model.can_generate()
    assert model.get_input_embeddings() is model.base_model.rna_embeddings
    assert model.get_output_embeddings() is None
    for refused in (lambda: model.resize_token_embeddings(20), lambda: model.set_input_embeddings(torch.nn.ReLU())):
        with pytest.raises(ValueError, match="Input embeddings must stay those of the vocabulary"):
            refused()
    for name in ("output_hidden_states", "output_attentions", "head_mask"):
        with pytest.raises(TypeError, match=f"forward.* got an unexpected keyword argument '{name}'"):
            model(**inputs, **{name: None})
    for fields, message in (
        ({"output_attentions": True}, "`output_attentions` must be False"),
        ({"output_hidden_states": True}, "`output_hidden_states` must be False"),
        ({"problem_type": "regression"}, "`problem_type` must be single_label_classification or None, got 'regr"),
    ):
        with pytest.raises((StrictDataclassError, ValueError), match=message):
            type(config)(**(config.to_dict() | fields))
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        type(model)._from_config(config, attn_implementation="sdpa")


def test_names_of_sizes_are_those_of_transformers(model, config):
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 1, 2)
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert model.num_parameters() == sum(x.numel() for x in model.parameters())
    assert len({x.data_ptr() for x in model.parameters()}) == len(list(model.parameters()))  # none is tied


def test_what_was_fitted_in_closed_form_is_kept_in_float32_by_name(model):
    fixed = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, FixedModule)}
    assert fixed <= set(model._keep_in_fp32_modules_strict)


@pytest.mark.slow
def test_models_with_known_lengths_can_be_exported_to_a_graph(tiny_config):
    model = ScFusionTTTModel(tiny_config).eval()
    cells = {"rna_values": torch.rand(CELLS, TOKENS, GENES), "adt_values": torch.rand(CELLS, PROTEINS)}
    cells["max_lengths"] = {"rna_encoder": TOKENS, "adt_encoder": PROTEINS}
    with torch.no_grad():
        graph = torch.export.export(model, (), cells).module()
    torch.testing.assert_close(outputs(graph, cells), outputs(model, cells))
