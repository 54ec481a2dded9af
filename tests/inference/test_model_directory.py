"""Weights are loaded where they fit, and nothing of a directory is run."""

import json
import pickle
import shutil
import struct
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from seal import change_json, copy_model, seal

from scfusion_fm import ScFusionTTTForCellTypeAnnotation, ScFusionTTTForPreTraining, ScFusionTTTModel
from scfusion_fm.cli.main import main
from scfusion_fm.inference.model_directory import load_config, load_pretrained, load_weights
from scfusion_fm.model import ScFusionTTTConfig
from scfusion_fm.untrusted.checksums import SUMS

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(model_dir, tmp_path):
    return copy_model(model_dir, tmp_path / "model")


@pytest.mark.parametrize("model_class", [ScFusionTTTModel, ScFusionTTTForPreTraining])
def test_weights_and_configuration_are_those_that_transformers_loads(model_dir, model_class):
    ours, theirs = load_pretrained(model_dir, model_class)[0], model_class.from_pretrained(model_dir)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in ours.state_dict().items())
    assert ours.config.to_dict() | {"auto_map": None} == theirs.config.to_dict() | {"auto_map": None}
    assert not ours.training


def test_a_fresh_head_is_drawn_as_transformers_draws_it(model_dir):
    settings = {"num_labels": 3, "num_coordinates": 2}
    found = []
    for load in (load_weights, lambda path, kind, **given: kind.from_pretrained(path, **given)):
        torch.manual_seed(5)
        found.append(load(model_dir, ScFusionTTTForCellTypeAnnotation, **settings).state_dict())
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())
    assert load_config(model_dir, num_labels=3).num_labels == 3
    assert isinstance(load_config(model_dir), ScFusionTTTConfig)


def test_a_model_that_will_be_trained_takes_nothing_else_of_the_directory(copy, tmp_path):
    (copy / "annotation_calibration.json").write_text("{}")
    seal(copy)
    load_weights(copy, ScFusionTTTModel).save_pretrained(tmp_path / "checkpoint")
    names = {file.name for file in (tmp_path / "checkpoint").iterdir() if file.suffix != ".py"}
    assert names == {"config.json", "model.safetensors", "SHA256SUMS"}


def test_whole_numbers_stand_for_fractions(copy):
    change_json(copy / "config.json", adt_loss_weight=1, rope_theta=10000)
    assert load_config(copy).adt_loss_weight == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 65536}, "must hold the weights that config.json beside it says, got .* for `"),
        ({"hidden_size": 10**9}, "`hidden_size` must be a whole number from 1 to 65536, got 1000000000"),
        (
            {"num_hidden_layers": 256},
            "must hold the weights that config.json beside it says, got [0-9]+ for 514 layers",
        ),
        ({"num_hidden_layers": 2}, "got none for `model.adt_encoder.layers.1.*`, which is"),
        ({"num_hidden_layers": "1"}, "`num_hidden_layers` must be a whole number"),
        ({"architectures": []}, "`architectures` in config.json must name one of"),
        ({"ttt_layer_type": "mlp"}, "must hold the weights that config.json beside it says"),
        ({"architectures": ["ScFusionTTTModel"]}, "must hold the weights that config.json beside it says"),
    ],
)
def test_sizes_are_compared_with_the_header_before_anything_is_allocated(copy, monkeypatch, change, message):
    monkeypatch.setattr("safetensors.torch.load_file", None)
    change_json(copy / "config.json", **change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(copy, ScFusionTTTModel)


def test_every_flipped_bit_and_every_cut_is_noticed(copy):
    path = copy / WEIGHTS
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 14):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"model.safetensors'"):
            load_pretrained(copy, ScFusionTTTModel)
    (copy / SUMS).unlink()
    for content in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", struct.pack("<Q", 1 << 60) + whole[8:]):
        path.write_bytes(content)
        with (
            pytest.warns(UserWarning, match="has no SHA256SUMS"),
            pytest.raises(ValueError, match=r"model.safetensors': must"),
        ):
            load_pretrained(copy, ScFusionTTTModel)


def test_weights_that_are_no_numbers_are_refused(copy):
    weights = load_file(copy / WEIGHTS)
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, copy / WEIGHTS)
    with pytest.raises(ValueError, match=rf"must hold finite weights, got others in `{name}`"):
        load_pretrained(seal(copy), ScFusionTTTModel)
    save_file({n: x.long() for n, x in weights.items()}, copy / WEIGHTS)
    with pytest.raises(ValueError, match=r".dtype` must be one of \['F64', 'F32', 'F16', 'BF16'\], got 'I64'"):
        load_pretrained(seal(copy), ScFusionTTTModel)


class Trap:
    def __reduce__(self):
        return open, (TRAP, "w")


def test_code_pickles_adapters_and_other_files_are_left_alone(copy, model_dir, tmp_path, monkeypatch):
    global TRAP
    TRAP = str(tmp_path / "trapped")
    code = f"open({TRAP!r}, 'w')\n"
    for name in ("evil.py", "modeling_scfusion_ttt.py", "configuration_scfusion_ttt.py"):
        (copy / name).write_text(code)
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/model"}))
    change_json(copy / "config.json", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
    change_json(copy / "preprocessor_config.json", auto_map={"AutoFeatureExtractor": "evil.Evil"})
    loaded = load_pretrained(copy, ScFusionTTTModel)[0].state_dict()
    assert all(
        torch.equal(x, loaded[n]) for n, x in load_pretrained(model_dir, ScFusionTTTModel)[0].state_dict().items()
    )
    shutil.move(copy / WEIGHTS, tmp_path / "kept")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../kept"}}))
    with pytest.raises(ValueError, match=r"`model` must hold all weights in model.safetensors, got none in .* pickles"):
        load_pretrained(seal(copy), ScFusionTTTModel)
    (copy / SUMS).write_text(f"{'0' * 64}  {WEIGHTS}\n" + (copy / SUMS).read_text())
    with pytest.raises(ValueError, match=r"model.safetensors"):
        load_pretrained(copy, ScFusionTTTModel)
    assert not (tmp_path / "trapped").exists()


def test_damage_is_one_line_and_exit_code_2(monkeypatch, capsys, copy, rna_file, tmp_path):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-5])
    words = ["embed", copy, rna_file, tmp_path / "out.h5ad"]
    monkeypatch.setattr(sys, "argv", ["scfusion", *map(str, words)])
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "model.safetensors" in line
