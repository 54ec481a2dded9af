"""What the plain files of a model directory tell."""

import json
import shutil

import pytest

from scfusion_fm.inference.inputs import vocabulary_of
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.inference.model_files import read_config, read_vocabulary


def test_vocabulary_is_that_of_the_extractor(model_dir):
    assert read_vocabulary(model_dir) == vocabulary_of(load_extractor(model_dir))


def test_directories_that_are_no_model_are_refused(model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"`model` must be a directory with config.json and preprocessor_config.json"):
        read_vocabulary(tmp_path)
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(model_dir / name, copy)
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    del settings["gene_ids"]
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"`model` must tell its vocabulary.*got none of \['gene_ids'\]"):
        read_vocabulary(copy)
    (copy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="`model` must be a scfusion_ttt model, got 'bert'"):
        read_config(copy)
