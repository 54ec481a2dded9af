"""The files of a model directory: their checksums and their schemas."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from seal import change_json, copy_model, seal
from transformers import PreTrainedConfig

from scfusion_fm import ScFusionTTTConfig
from scfusion_fm.cli.main import main
from scfusion_fm.inference.inputs import vocabulary_of
from scfusion_fm.inference.model_config import ARCHITECTURES, IGNORED_IN_CONFIG, ConfigFile, ExtractorFile
from scfusion_fm.inference.model_directory import CLASSES, load_extractor
from scfusion_fm.inference.model_files import ModelFiles, read_vocabulary, verify_model
from scfusion_fm.untrusted.checksums import SUMS
from scfusion_fm.untrusted.rules import render


@pytest.fixture
def copy(model_dir, tmp_path):
    return copy_model(model_dir, tmp_path / "model")


def test_vocabulary_is_that_of_the_extractor(model_dir):
    assert read_vocabulary(model_dir) == vocabulary_of(load_extractor(model_dir))


def test_schema_has_the_fields_and_defaults_of_the_configuration():
    known = {f.name for f in dataclasses.fields(PreTrainedConfig)}
    ours = {f.name: f.default for f in dataclasses.fields(ScFusionTTTConfig) if f.name not in known}
    schema = {f.name: f.default for f in dataclasses.fields(ConfigFile)}
    assert ours.keys() <= schema.keys()
    assert schema.keys() - ours.keys() == {"model_type", "architectures", "dtype", "id2label"}
    assert {n: schema[n] for n in ours if schema[n] is not dataclasses.MISSING}.items() <= ours.items()
    assert known <= schema.keys() | set(IGNORED_IN_CONFIG)
    assert tuple(c.__name__ for c in CLASSES) == ARCHITECTURES


def test_what_is_read_can_be_written_and_read(copy):
    files = ModelFiles.open(copy)
    config, extractor = files.read_config(), files.read_extractor()
    (copy / "config.json").write_text(render(config))
    (copy / "preprocessor_config.json").write_text(render(extractor))
    again = ModelFiles.open(seal(copy))
    assert (again.read_config(), again.read_extractor()) == (config, extractor)
    assert isinstance(extractor, ExtractorFile)


def test_directories_that_are_no_model_are_refused(copy, tmp_path):
    with pytest.raises(ValueError, match=r"`model` must be a directory with config.json and preprocessor_config.json"):
        read_vocabulary(tmp_path)
    change_json(copy / "preprocessor_config.json", gene_ids=...)
    with pytest.raises(ValueError, match=r"preprocessor_config.json': `content` must have a field 'gene_ids'"):
        read_vocabulary(copy)
    (copy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config.json': `model_type` must be one of \['scfusion_ttt'\], got 'bert'"):
        read_vocabulary(seal(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, r"`model_type` must be one of \['scfusion_ttt'\], got 'bert'"),
        ({"architectures": ["Other"]}, "`architectures` must be one of"),
        ({"hidden_size": 18}, "`hidden_size` must be `num_attention_heads` times an even head width, got 18 and 2"),
        ({"num_landmarks": 3}, "`num_coordinates` must be at least 1 with `num_landmarks` 3"),
        ({"study_genes": [0]}, "`study_genes` must be null without `num_coordinates`"),
        ({"study_genes": [999], "num_coordinates": 2}, "`study_genes` must be places below"),
        ({"study_genes": [0, 1], "num_coordinates": 2}, "`own_genes` must be -1 or below 2 for each of"),
        ({"projected_proteins": [99]}, "`projected_proteins` must be places below"),
        ({"id2label": {"0": "a", "1": "a"}}, "`id2label` must name each class once"),
        ({"id2label": {"0": "a", "2": "b"}}, "`id2label` must number the classes from 0, got"),
        ({"id2label": {}}, "`id2label` must name each class once"),
        ({"quantization_config": {}}, "`content` must have no unknown field, got .'quantization_config'"),
        ({"rna_patch_size": 3}, "`rna_patch_size`, `num_rna_tokens` and `num_proteins` must be those of"),
        ({"predicted_features": ["CD999"]}, "`predicted_features` must be in preprocessor_config.json, each once"),
    ],
)
def test_config_that_does_not_fit_is_refused(copy, change, message):
    change_json(copy / "config.json", **change)
    with pytest.raises(ValueError, match=rf"config.json': {message}") as caught:
        load_extractor(copy)
    assert "\n" not in str(caught.value)


def test_lists_of_the_vocabulary_must_fit_one_another(copy):
    names = json.loads((copy / "preprocessor_config.json").read_text())["gene_symbols"]
    for change, message in (
        ({"gene_symbols": names[1:]}, "`gene_symbols` must be as long as `gene_ids`"),
        (
            {"gene_chromosomes": (["1", "2"] * len(names))[: len(names)]},
            "`gene_chromosomes` must keep the genes of a chromos",
        ),
    ):
        shutil.copy(copy / "preprocessor_config.json", copy / "kept")
        change_json(copy / "preprocessor_config.json", **change)
        with pytest.raises(ValueError, match=message):
            read_vocabulary(copy)
        shutil.move(copy / "kept", copy / "preprocessor_config.json")


def test_every_export_has_checksums_that_sha256sum_reads(model_dir):
    done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=model_dir, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    listed = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert listed == {p.name for p in model_dir.iterdir()} - {SUMS}


def test_command_verifies_a_model(monkeypatch, capsys, copy):
    monkeypatch.setattr(sys, "argv", ["scfusion", "verify", str(copy)])
    main()
    assert capsys.readouterr().out.endswith("is as it was written\n")
    (copy / "README.md").write_text("other")
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "README.md' must have the checksum that SHA256SUMS" in capsys.readouterr().err
    (copy / SUMS).unlink()
    with pytest.raises(ValueError, match="`model` must have SHA256SUMS, got none"):
        verify_model(copy)


def test_damage_is_an_error_and_no_checksums_a_warning(copy):
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("0.7", "0.8"))
    with pytest.raises(ValueError, match=r"config.json' must have the checksum that SHA256SUMS beside it says"):
        read_vocabulary(copy)
    (copy / SUMS).write_text((seal(copy) / SUMS).read_text().replace("  config.json", "  other.json"))
    with pytest.raises(ValueError, match=r"config.json' must be in SHA256SUMS beside it, got no line for it"):
        read_vocabulary(copy)
    (copy / SUMS).unlink()
    with pytest.warns(UserWarning, match="has no SHA256SUMS, so that damage to its files would not be noticed"):
        read_vocabulary(copy)
