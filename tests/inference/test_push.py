"""Uploads to the Hub, which is a directory here: what arrives is a model directory whose checksums fit."""

import inspect
import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from seal import copy_model
from transformers import AutoModel

import scfusion_fm
from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining, ScFusionTTTModel, load_pretrained
from scfusion_fm.cli.main import main
from scfusion_fm.inference import model_files
from scfusion_fm.inference.model_files import verify_model
from scfusion_fm.inference.ship import ship_model
from scfusion_fm.model import hub_scfusion_ttt


class FakeHub:
    """What the package uses of `HfApi`; a branch is a directory."""

    def __init__(self, root):
        self.root, self.calls = root, []

    def __call__(self, token=None):
        self.calls.append(token)
        return self

    def create_repo(self, repo_id, private=None, exist_ok=False):
        assert exist_ok
        self.calls.append(private)
        (self.root / "main").mkdir(exist_ok=True)
        return SimpleNamespace(repo_id=f"lab/{repo_id}")

    def create_branch(self, repo_id, branch, exist_ok=False):
        if not (self.root / branch).exists():
            shutil.copytree(self.root / "main", self.root / branch)

    def list_repo_files(self, repo_id, revision=None):
        return [file.name for file in (self.root / (revision or "main")).iterdir()]

    def hf_hub_download(self, repo_id, name, revision=None):
        return str(self.root / (revision or "main") / name)

    def upload_folder(
        self, repo_id, folder_path, commit_message, ignore_patterns, delete_patterns, revision=None, create_pr=False
    ):
        target = self.root / (revision or "main")
        for file in target.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in delete_patterns):
                file.unlink()
        for file in Path(folder_path).iterdir():
            if file.name not in ignore_patterns:
                shutil.copy(file, target)
        self.calls.append(commit_message)
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub_scfusion_ttt, "HfApi", hub)
    return hub


def test_the_fake_is_called_as_the_hub_is():
    for name in ("create_repo", "create_branch", "list_repo_files", "hf_hub_download", "upload_folder"):
        real, fake = (inspect.signature(getattr(x, name)).parameters for x in (HfApi, FakeHub))
        assert {"filename" if p == "name" else p for p in fake} <= set(real)


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_model_directory_arrives_as_it_is(hub, model_dir):
    (hub.root / "main").mkdir()
    (hub.root / "main" / "pytorch_model.bin").write_text("of before")
    found = scfusion_fm.push_to_hub(model_dir, "blood", private=True, token="secret")
    assert found == "https://hub/lab/blood/commit/1"
    assert hub.calls == ["secret", True, "Upload model directory"]
    assert files(hub.root / "main") == files(model_dir)


def test_a_model_of_the_package_arrives_with_the_code_of_its_classes(hub, model_dir, tmp_path, monkeypatch):
    ship_model(model_dir, tmp_path / "shipped" / "small-blood", "its card")
    monkeypatch.setattr(model_files, "SHIPPED", tmp_path / "shipped")
    scfusion_fm.push_to_hub("small-blood", "blood")
    there, here = files(hub.root / "main"), files(tmp_path / "shipped" / "small-blood")
    changed = {"SHA256SUMS", "config.json", "preprocessor_config.json"}  # which name the classes of the code
    assert {name: there[name] for name in here.keys() - changed} == {name: here[name] for name in here.keys() - changed}
    assert {name[-3:] for name in there.keys() - here.keys()} == {".py"}
    verify_model(hub.root / "main")
    assert type(AutoModel.from_pretrained(hub.root / "main")).__name__ == "ScFusionTTTModel"
    assert "auto_map" in json.loads((hub.root / "main" / "config.json").read_text())


def test_model_and_extractor_arrive_one_after_the_other(hub, model_dir):
    model, extractor = load_pretrained(model_dir, ScFusionTTTForPreTraining)
    for part in (model, extractor, model):
        part.push_to_hub("blood", revision="v1")
    assert list((hub.root / "main").iterdir()) == []
    there = hub.root / "v1"
    verify_model(there)
    assert (there / "README.md").read_bytes() == (model_dir / "README.md").read_bytes()
    loaded, _ = load_pretrained(there, ScFusionTTTForPreTraining)
    assert torch.equal(loaded.rna_decoder.head_weight, model.rna_decoder.head_weight)
    assert {"Upload model", "Upload feature extractor"} <= set(hub.calls)


def test_a_changed_model_gets_a_new_card_that_spares_one_on_the_hub(hub, model_dir):
    model = ScFusionTTTModel.from_pretrained(model_dir)
    model.push_to_hub("blood")
    there = hub.root / "main"
    assert "# ScFusionTTTModel\n" in (there / "README.md").read_text()
    assert f"- parameters: {model.num_parameters():,}\n" in (there / "README.md").read_text()
    verify_model(there)
    (there / "README.md").write_text("written on the Hub")
    (there / "annotation_calibration.json").write_text("of before")
    model.push_to_hub("blood")
    assert (there / "README.md").read_text() == "written on the Hub"
    assert not (there / "annotation_calibration.json").exists()


def test_saving_can_push(hub, model_dir, tmp_path):
    model, extractor = load_pretrained(model_dir, ScFusionTTTModel)
    model.save_pretrained(tmp_path / "blood", push_to_hub=True, commit_message="mine")
    extractor.save_pretrained(tmp_path / "blood", push_to_hub=True, repo_id="blood", commit_message="too")
    assert files(hub.root / "main") == files(tmp_path / "blood")
    verify_model(hub.root / "main")
    assert {"mine", "too"} <= set(hub.calls)


def test_what_should_not_be_pushed_is_refused(hub, model_dir, tmp_path):
    copy_model(model_dir, tmp_path / "model")
    with pytest.raises(ValueError, match=r"`push_to_hub` has the options .*, got \['tags'\]"):
        scfusion_fm.push_to_hub(tmp_path / "model", "blood", tags=["cells"])
    np.save(tmp_path / "model" / "mine.npy", np.ones(2))
    with pytest.raises(ValueError, match=r"`model` must hold files that are in its SHA256SUMS alone, got \['mine.npy'"):
        scfusion_fm.push_to_hub(tmp_path / "model", "blood")
    (tmp_path / "model" / "README.md").write_text("other")
    with pytest.raises(ValueError, match=r"README.md' must have the checksum that SHA256SUMS"):
        scfusion_fm.push_to_hub(tmp_path / "model", "blood")
    ScFusionTTTModel.from_pretrained(model_dir).save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    ScFusionTTTFeatureExtractor.from_pretrained(model_dir).save_pretrained(tmp_path / "parts")
    with pytest.raises(ValueError, match=r"`model` must hold all weights in model.safetensors, got none in"):
        scfusion_fm.push_to_hub(tmp_path / "parts", "blood")
    assert not (hub.root / "main").exists()


def test_the_command_pushes_as_the_verb_does(hub, model_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scfusion", "push", str(model_dir), "blood", "--private"])
    main()
    assert capsys.readouterr().out == "https://hub/lab/blood/commit/1\n"
    assert hub.calls == [None, True, "Upload model directory"]
    assert files(hub.root / "main") == files(model_dir)


@pytest.mark.parametrize("error", [OSError("Token is required\nto write"), HFValidationError("Token is required")])
def test_who_may_not_write_is_told_in_one_line(hub, model_dir, monkeypatch, capsys, error):
    def refuse(*given, **how):
        raise error

    monkeypatch.setattr(hub, "create_repo", refuse)
    monkeypatch.setattr(sys, "argv", ["scfusion", "push", str(model_dir), "blood"])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = "error: `repo_id` must be a name on the Hugging Face Hub that you may write to, got 'blood' "
    assert capsys.readouterr().err == told + "(Token is required). `hf auth login` logs in.\n"
