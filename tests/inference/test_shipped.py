"""Models that come with the package: smaller, without code, found by name wherever a model is named."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel

import scfusion_fm as sf
from scfusion_fm import ScFusionTTTForCellTypeAnnotation, ScFusionTTTForCrossModalPrediction, ScFusionTTTModel
from scfusion_fm.cli.main import main
from scfusion_fm.inference import model_files, ship
from scfusion_fm.inference.model_files import find_model, verify_model
from scfusion_fm.inference.ship import round_weights, ship_model
from scfusion_fm.tasks.weights import Weights

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture(scope="module")
def shelf(model_dir, annotator, predictor, tmp_path_factory):
    """A directory of shipped models."""
    path = tmp_path_factory.mktemp("shipped")
    for name, source in (("blood", model_dir), ("blood-types", annotator), ("blood-proteins", predictor)):
        ship_model(source, path / name, CARD)
    return path


@pytest.fixture
def shipped(shelf, monkeypatch, tmp_path):
    monkeypatch.setattr(model_files, "SHIPPED", shelf)
    monkeypatch.chdir(tmp_path)
    return shelf


def test_a_shipped_model_is_as_it_was_but_for_rounding(shelf, annotator, paired_file):
    before, after = (sf.load(path).model for path in (annotator, shelf / "blood-types"))
    for (name, x), (_, y) in zip(before.state_dict().items(), after.state_dict().items(), strict=True):
        assert y.dtype == torch.float32
        assert torch.allclose(x, y, rtol=2**-8, atol=0), name
    assert before.config.id2label == after.config.id2label
    sizes = [(path / "model.safetensors").stat().st_size for path in (annotator, shelf / "blood-types")]
    assert sizes[1] < 0.6 * sizes[0]
    assert not list((shelf / "blood-types").glob("*.py"))
    verify_model(shelf / "blood-types")
    x, y = (sf.embed(paired_file, path).obsm["X_scfusion_ttt"] for path in (annotator, shelf / "blood-types"))
    assert np.allclose(x, y, atol=0.05 * np.std(x))


def test_what_was_fitted_in_closed_form_is_not_rounded(tiny_config):
    tiny_config.num_coordinates, tiny_config.num_landmarks = 2, 3
    model = ScFusionTTTForCrossModalPrediction(tiny_config)
    dtypes = {name: values.dtype for name, values in round_weights(model).items()}
    assert dtypes.keys() == model.state_dict().keys()
    assert {dtypes[name] for name in dtypes if "coordinates" in name or "readout" in name} == {torch.float32}
    assert dtypes["model.rna_embeddings.weight"] == torch.bfloat16


def test_a_model_that_is_too_large_is_refused(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "LARGEST_SHIPPED", 1000)
    with pytest.raises(ValueError, match=r"`model` must have at most 1,000 bytes to come with the package, got "):
        ship_model(model_dir, tmp_path / "model", CARD)
    assert not (tmp_path / "model").exists()


def test_a_name_is_found_and_a_directory_of_that_name_comes_first(shipped, tmp_path):
    assert find_model("blood-types") == shipped / "blood-types"
    assert sf.load("blood-types").path == shipped / "blood-types"
    assert isinstance(sf.load_pretrained("blood-types", ScFusionTTTForCellTypeAnnotation)[0].config.num_labels, int)
    assert isinstance(Weights(find_model("blood")).build(ScFusionTTTModel, 0), ScFusionTTTModel)
    assert isinstance(AutoModel.from_pretrained(sf.find_model("blood")), ScFusionTTTModel)
    with pytest.raises(ValueError, match="`revision` must be left out where `model` is a directory, got 'main'"):
        find_model("blood", "main")
    (tmp_path / "blood").mkdir()
    assert find_model("blood").absolute() == tmp_path / "blood"


def test_an_unknown_name_is_told_the_names_there_are(shipped, monkeypatch, tmp_path):
    told = r"`model` must be a directory or one that comes with the package \(blood, blood-proteins, blood-types\)"
    with pytest.raises(ValueError, match=told + ", got 'bloody', which is neither."):
        sf.load("bloody")
    monkeypatch.setattr(model_files, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="`model` must be a directory or a `group/name` on the hub, got 'bloody'"):
        sf.load("bloody")
    assert str(sf.list_models()) == "this copy of the package comes without models"


def test_the_list_tells_purpose_size_and_licence(shipped, monkeypatch, capsys):
    found = sf.list_models()
    assert [model.name for model in found] == ["blood", "blood-proteins", "blood-types"]
    assert {model.licence for model in found} == {"apache-2.0"}
    assert "3 cell types, and unknown: B, T, Mono" in str(found)
    assert "a start for fine-tuning" in str(found)
    assert "<td>blood</td>" in found._repr_html_()
    monkeypatch.setattr(sys, "argv", ["scfusion", "models"])
    main()
    assert capsys.readouterr().out == f"{found}\n"
    monkeypatch.setattr(sys, "argv", ["scfusion", "models", "--json"])
    main()
    assert json.loads(capsys.readouterr().out)[0]["name"] == "blood"


def test_commands_take_a_name(shipped, paired_file, monkeypatch, capsys, tmp_path):
    for words in (
        ["verify", "blood"],
        ["embed", "blood", str(paired_file), str(tmp_path / "out.h5mu")],
        ["doctor", str(paired_file), "--model", "blood"],
    ):
        monkeypatch.setattr(sys, "argv", ["scfusion", *words])
        main()
    assert "blood is as it was written" in capsys.readouterr().out
    assert (tmp_path / "out.h5mu").is_file()
