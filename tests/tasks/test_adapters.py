"""Adapters start as nothing, alone are trained with the head, and are part of the weights in the end."""

import json
import sys

import numpy as np
import pytest
import torch

from scfusion_fm import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
)
from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.inference.export import export_model
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.adapters import SCALE, add_adapters, count_trained, merge_adapters
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, fit_annotation
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.cross_modal.fit import fit_cross_modal
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.splits import split_cells
from scfusion_fm.tasks.weights import Weights
from scfusion_fm.training.checkpoint_store import CheckpointStore

pytest.importorskip("peft")
OPTIM = FinetuneOptimConfig(epochs=2, batch_size=32, lr=0.02, threads=1, lora_rank=2)


@pytest.fixture(params=["linear", "mlp"])
def config(request, tiny_config):
    tiny_config.ttt_layer_type = request.param
    tiny_config.num_labels = 3
    return tiny_config


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "rna_values": torch.rand(4, 11, 3, generator=generator),
        "rna_observed": torch.ones(4, 11, 3, dtype=torch.bool),
        "adt_values": torch.randn(4, 7, generator=generator),
        "adt_observed": torch.ones(4, 7, dtype=torch.bool),
    }


def build(model_class, config):
    torch.manual_seed(0)
    return model_class(config).eval()


def train_a_step(model, batch):
    """Give every trained parameter another value."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("model_class", [ScFusionTTTForCellTypeAnnotation, ScFusionTTTForCrossModalPrediction])
def test_adapters_start_as_nothing_and_merge_into_the_same_outputs(model_class, config, batch):
    model = build(model_class, config)
    before, names = model(**batch).logits, set(model.state_dict())
    add_adapters(model, 2)
    assert torch.equal(model(**batch).logits, before)
    assert set(model.state_dict()) != names
    train_a_step(model, batch)
    unmerged = model(**batch).logits
    assert not torch.allclose(unmerged, before, atol=1e-3)
    merge_adapters(model)
    torch.testing.assert_close(model(**batch).logits, unmerged, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


def test_only_adapters_and_head_have_gradients(config, batch):
    model = build(ScFusionTTTForCellTypeAnnotation, config)
    whole = count_trained(model)
    assert whole == sum(p.numel() for p in model.parameters())
    add_adapters(model, 2)
    model.train()(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {n for n in found if "lora_" not in n} == {"classifier.weight", "classifier.bias"}
    frozen = [p for n, p in model.named_parameters() if "lora_" not in n and not n.startswith("classifier.")]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    # Every second factor that the task uses gets a gradient (the first gets none while the second is 0); projections
    # of a hidden modality are not used here.
    used = {n for n, _ in model.named_parameters() if "lora_B" in n and "projection" not in n}
    assert used <= found
    for layer in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        assert any(layer in name for name in used)
    assert not any("lr_proj.lora" in name for name, _ in model.named_parameters())
    assert count_trained(model) == sum(p.numel() for p in model.parameters() if p.requires_grad) < whole


def test_head_of_a_predictor_is_what_is_outside_base_and_blocks(config):
    model = build(ScFusionTTTForCrossModalPrediction, config)
    add_adapters(model, 2)
    own = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert {"adt_decoder.head_weight", "adt_decoder.head_bias", "adt_decoder.norm.weight"} <= own
    assert all(n.startswith("adt_decoder.") and ".layers." not in n for n in own)


def test_adapters_depend_on_the_seed_alone(config):
    first, second, other = (build(ScFusionTTTForCellTypeAnnotation, config) for _ in range(3))
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        torch.rand(3 + seed)
        add_adapters(model, 2, seed)
    name = next(n for n in first.state_dict() if "lora_A" in n)
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_fitted_model_is_saved_without_adapters_and_gives_the_same(model_dir, paired_file, tmp_path):
    extractor = load_extractor(model_dir)
    cells, aligned = read_aligned(paired_file, extractor)
    partition = split_cells(cells.obs, SplitConfig(val_fraction=0.2, test_fraction=0.2))
    data = LabelledCells(aligned, extractor, cells.obs["cell_type"].astype(str).to_numpy())
    settings = AnnotationSettings(OPTIM, directory=tmp_path / "fit")
    fitted = fit_annotation(Weights(model_dir), data, partition, settings)
    predicted = fitted.predict(aligned, partition.test)
    assert (data.names_of(predicted) == data.labels[partition.test]).mean() > 0.6
    assert 0 < fitted.num_trained < sum(p.numel() for p in fitted.model.parameters())
    export_model(fitted.model, ScFusionTTTFeatureExtractor.from_pretrained(model_dir), tmp_path / "model", {})
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "scfusion_ttt"
    assert not list((tmp_path / "model").glob("adapter*"))
    loaded = ScFusionTTTForCellTypeAnnotation.from_pretrained(tmp_path / "model")
    plain = ScFusionTTTForCellTypeAnnotation.from_pretrained(model_dir, num_labels=3, num_coordinates=50)
    assert set(loaded.state_dict()) == set(plain.state_dict())
    for name, value in plain.state_dict().items():
        frozen = name.startswith("model.") and not name.endswith("proj.weight")
        assert not frozen or torch.equal(loaded.state_dict()[name], value), name
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    # What is merged are the adapters of the best epoch.
    store = CheckpointStore(tmp_path / "fit")
    newest, _ = store.newest()
    best = store.open(newest.manifest["state"]["best_step"])
    layer = next(n for n in best.names if n.endswith("qkv_proj.lora_A.default.weight")).split(".lora_A")[0]
    outputs, inputs = plain.state_dict()[f"{layer}.weight"].shape
    down = best.read("fp32", f"{layer}.lora_A.default.weight", 0, OPTIM.lora_rank * inputs).view(-1, inputs)
    added = best.read("fp32", f"{layer}.lora_B.default.weight", 0, outputs * OPTIM.lora_rank).view(outputs, -1) @ down
    expected = plain.state_dict()[f"{layer}.weight"] + SCALE * added
    torch.testing.assert_close(loaded.state_dict()[f"{layer}.weight"], expected)
    assert added.abs().max() > 1e-4

    paired = PairedCells(aligned, extractor)
    predictor = fit_cross_modal(Weights(model_dir), paired, partition, FitSettings(OPTIM))
    assert np.isfinite(predictor.predict(partition.test)).all()
    assert predictor.num_trained > 0


def test_what_cannot_be_adapted_is_refused(config, monkeypatch):
    with pytest.raises(ValueError, match=r"`optim.token_dropout` must lie in \[0, 1\), got 1.0"):
        FinetuneOptimConfig(token_dropout=1.0)
    with pytest.raises(ValueError, match=r"`optim.lora_rank` must lie in \[0, 1024\], got -1"):
        FinetuneOptimConfig(lora_rank=-1)
    with pytest.raises(
        ValueError, match=r"`optim.lora_rank` must be 0 where parts of the model stay as they are, got 2"
    ):
        AnnotationSettings(OPTIM, trained=("adt_projection",))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"`optim.lora_rank` above 0 needs the package peft, got 2 without it"):
        add_adapters(build(ScFusionTTTForCellTypeAnnotation, config), 2)
