"""Settings of any kind: they are what they say, or one line tells what is wrong; nothing else is ever raised."""

import dataclasses
from math import isfinite

import pytest
from launch import ROOT

from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.finetune import AnnotationConfig, CrossModalConfig, UnimodalTransferConfig
from scfusion_fm.config.imputation import ImputationConfig
from scfusion_fm.config.integration import IntegrationConfig
from scfusion_fm.config.loading import load_config
from scfusion_fm.config.prepare import PrepareConfig
from scfusion_fm.config.pretrain import PretrainConfig
from scfusion_fm.config.ranges import check_ranges

FILES = {
    PrepareConfig: "configs/data/demo.yaml",
    PretrainConfig: "configs/pretrain/demo.yaml",
    AnnotationConfig: "configs/finetune/cell_type_annotation.yaml",
    CrossModalConfig: "configs/finetune/cross_modal_prediction.yaml",
    UnimodalTransferConfig: "configs/finetune/unimodal_transfer.yaml",
    ImputationConfig: "configs/finetune/protein_imputation.yaml",
    IntegrationConfig: "configs/finetune/batch_integration.yaml",
    EvaluateConfig: "configs/evaluate/demo.yaml",
}
STRANGE = ["", "null", "-1", "1e400", "nan", "[1, 2]", "{a: 1}", "abc", "9" * 30, "é\u202e", "${x}", "'${'", "[[[]]]"]
STRANGE += ["!!python/object/apply:os.system [id]", "{", "\x00", "[" * 2000]
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
BOMB += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


def names_of(settings, prefix=""):
    for field in dataclasses.fields(settings):
        yield prefix + field.name
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from names_of(value, f"{prefix}{field.name}.")


def assert_sane(settings):
    """No number that nothing can be done with."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            assert_sane(value)
        elif isinstance(value, int | float):
            assert isfinite(value), field.name
            assert -1 < value <= 1e12, field.name


def read_or_refuse(schema, path, override):
    try:
        return load_config(schema, path, [override])
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("schema", FILES)
def test_strange_values_are_read_or_refused_in_one_line(schema, every):
    path = ROOT / FILES[schema]
    for number, name in enumerate(names_of(load_config(schema, path))):
        for value in STRANGE[number % every :: every]:
            found = read_or_refuse(schema, path, f"{name}={value}")
            if isinstance(found, str):
                assert len(found.splitlines()) == 1, (name, value, found)
            elif schema is not EvaluateConfig:  # its defaults are checked in the experiments that take them
                assert_sane(found)


FILES_THAT_ARE_NONE = {
    "": "experiments|MISSING|missing|Missing|must hold|must be given",
    "- a\n- b\n": "must hold settings as `key: value`, got a list",
    "a: 1\na: 2\n": "must be readable YAML, .*duplicate key",
    "a: !!python/object/apply:os.system [id]\n": "must be readable YAML",
    BOMB: "must be readable YAML, .*more than 1,000,000 letters or entries",
    "a: &a [*a]\n": "must be readable YAML",
    "a: " + "[" * 5000: "must be readable YAML",
    "x" * 2_000_000: "must be readable YAML, .*more than 1,000,000 letters or entries",
    "a: ${b}\nb: ${a}\n": "Unknown setting `a`",
    "output_dir: ${data_dir}\ndata_dir: ${output_dir}\nexperiments: {x: 1}\n": "experiments",
    "experiments: {x: [1]}\n": "experiments",
    "defaults: 3\n": "Merge error: int is not a subclass of ExperimentConfig",
}


@pytest.mark.parametrize("number", range(len(FILES_THAT_ARE_NONE)))
def test_files_that_are_no_settings_are_refused_in_one_line(number, tmp_path):
    text, message = list(FILES_THAT_ARE_NONE.items())[number]
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        load_config(EvaluateConfig, tmp_path / "run.yaml")
    assert len(str(refusal.value).splitlines()) == 1
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be readable YAML"):
        load_config(EvaluateConfig, tmp_path / "run.yaml")


@pytest.mark.parametrize(("text", "inside", "outside"), [("[0, 1)", (0, 0.5), (1, -1)), ("(0, 1]", (1,), (0, 2))])
def test_ends_of_ranges_are_as_they_are_written(text, inside, outside):
    @dataclasses.dataclass
    class Settings:
        x: float

    for value in (*inside, None):
        check_ranges(Settings(value), {"x": text})
    for value in (*outside, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`run\.x` must lie in "):
            check_ranges(Settings(value), {"x": text}, "run.")
