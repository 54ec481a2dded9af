"""What is saved beside weights and settings, and what is not read."""

import json
import re

import pytest
import torch

from scfusion_fm import ScFusionTTTForCellTypeAnnotation, ScFusionTTTForPreTraining, ScFusionTTTModel
from scfusion_fm.inference.model_files import verify_model
from scfusion_fm.model.files_scfusion_ttt import CALIBRATIONS, CHECKSUMS, SEEN_CELLS, Place

CALIBRATION = CALIBRATIONS[0]
HEADS = {"AutoModelForSequenceClassification", "AutoModelForMaskedLM"}


@pytest.fixture
def source(tiny_config, tmp_path):
    """A model with fingerprints of cells and a calibration, which nothing here reads."""
    ScFusionTTTForCellTypeAnnotation(tiny_config).save_pretrained(tmp_path / "source")
    for name in (SEEN_CELLS, CALIBRATION):
        (tmp_path / "source" / name).write_text(name)
    return tmp_path / "source"


def listed(path):
    verify_model(path)
    return {file.name for file in path.iterdir()}


def learn(model):
    with torch.no_grad():
        next(model.parameters()).add_(1.0)


def test_an_unchanged_model_keeps_its_calibration(source, tmp_path):
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(source)
    for path in (tmp_path / "copy", tmp_path / "copy", source):  # new, over itself, and where it is from
        model.save_pretrained(path)
        assert {SEEN_CELLS, CALIBRATION} <= listed(path)
    assert (tmp_path / "copy" / CALIBRATION).read_text() == CALIBRATION


@pytest.mark.parametrize("change", ["weights", "settings", "class", "dtype"])
def test_a_changed_model_loses_its_calibration_with_a_warning(source, tmp_path, change):
    model_class = ScFusionTTTModel if change == "class" else ScFusionTTTForCellTypeAnnotation
    model = model_class.from_pretrained(source, dtype="bfloat16" if change == "dtype" else None)
    if change == "weights":
        learn(model)
    elif change == "settings":
        model.config.ttt_base_lr = 0.5
    for path in (tmp_path / "new", source):
        with pytest.warns(UserWarning, match=rf"{CALIBRATION} of .*source' is not in .*{path.name}': weights or sett"):
            model.save_pretrained(path)
        assert CALIBRATION not in listed(path)
        assert SEEN_CELLS in listed(path)


def test_a_calibration_of_another_model_does_not_stay(source, tiny_config):
    with pytest.warns(UserWarning, match=f"{CALIBRATION} of .*source' is not in"):
        ScFusionTTTForCellTypeAnnotation(tiny_config).save_pretrained(source)
    assert CALIBRATION not in listed(source)


def test_what_was_saved_holds_the_code_and_says_which_class_is_which(source):
    found = json.loads((source / "config.json").read_text())["auto_map"]
    assert set(found) == {"AutoConfig", "AutoModel", "AutoModelForPreTraining", *HEADS}
    for target in found.values():
        module, name = target.split(".")
        assert f"class {name}(" in (source / f"{module}.py").read_text()


def test_models_on_the_hub_are_found_in_its_cache_by_revision(source, tiny_config, tmp_path, monkeypatch):
    """The layout of the cache, made by hand: a folder for each commit, and files with the commits of branches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    repo = tmp_path / "cache" / "models--lab--blood"
    commits = {"main": "a" * 40, "v1": "b" * 40}
    (repo / "refs").mkdir(parents=True)
    (repo / "snapshots").mkdir()
    other = ScFusionTTTForCellTypeAnnotation(tiny_config)
    other.save_pretrained(repo / "snapshots" / commits["main"])
    source.rename(repo / "snapshots" / commits["v1"])
    for name, commit in commits.items():
        (repo / "refs" / name).write_text(commit)
    source = repo / "snapshots" / commits["v1"]
    for revision in ("v1", commits["v1"]):
        loaded = ScFusionTTTForCellTypeAnnotation.from_pretrained("lab/blood", revision=revision)
        expected = ScFusionTTTForCellTypeAnnotation.from_pretrained(source).state_dict()
        assert all(torch.equal(x, expected[name]) for name, x in loaded.state_dict().items())
    newest = ScFusionTTTForCellTypeAnnotation.from_pretrained("lab/blood")
    assert torch.equal(newest.classifier.weight, other.classifier.weight)
    loaded.save_pretrained(tmp_path / "v1")  # with what belongs to this commit
    assert {SEEN_CELLS, CALIBRATION} <= listed(tmp_path / "v1")
    with pytest.warns(UserWarning, match=f"{SEEN_CELLS}, .* was not found at 'lab/blood'"):
        newest.save_pretrained(tmp_path / "newest")
    assert not {SEEN_CELLS, CALIBRATION} & listed(tmp_path / "newest")
    assert Place("lab/nothing").find("config.json") is None


def test_pickles_are_neither_read_nor_written(source, tmp_path):
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(source)
    with pytest.raises(ValueError, match="`safe_serialization` must be True, got False"):
        model.save_pretrained(tmp_path / "no", safe_serialization=False)
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValueError, match="`use_safetensors` must be True, got False"):
        ScFusionTTTForCellTypeAnnotation.from_pretrained(source, use_safetensors=False)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        ScFusionTTTForCellTypeAnnotation.from_pretrained(source)
    index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), "pytorch_model.bin")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=re.escape("Weights must be in safetensors, got")):
        ScFusionTTTForCellTypeAnnotation.from_pretrained(source)


def test_weights_in_several_files_are_loaded_and_belong_to_no_calibration(source, tmp_path):
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(source)
    with pytest.warns(UserWarning, match=f"{CALIBRATION} of"):
        model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    loaded = ScFusionTTTForPreTraining.from_pretrained(tmp_path / "parts")
    assert torch.equal(loaded.model.rna_embeddings.weight, model.model.rna_embeddings.weight)


def test_adapters_are_saved_alone_and_loaded(source, tmp_path):
    peft = pytest.importorskip("peft")
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(source)
    model.add_adapter(peft.LoraConfig(target_modules=["qkv_proj"], r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    assert listed(tmp_path / "adapter") == {"adapter_config.json", "adapter_model.safetensors", CHECKSUMS}
    other = ScFusionTTTForCellTypeAnnotation.from_pretrained(source)
    other.load_adapter(str(tmp_path / "adapter"))
    expected = model.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in other.state_dict().items())


def test_other_processes_write_nothing_of_it(source, tmp_path):
    ScFusionTTTModel.from_pretrained(source).save_pretrained(tmp_path / "none", is_main_process=False)
    assert list((tmp_path / "none").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        ScFusionTTTModel.from_pretrained(source).save_pretrained(tmp_path / "file")
