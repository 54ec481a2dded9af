"""Flags are names for settings: they say what YAML files and `key=value` say, and the help tells all of them."""

import sys

import pytest

from scfusion_fm.config.finetune import AnnotationConfig, CrossModalConfig, ScriptOptimConfig, UnimodalTransferConfig
from scfusion_fm.config.flags import list_settings, name_flags, parse_flags, read_settings
from scfusion_fm.config.loading import load_config

SCHEMAS = [AnnotationConfig, CrossModalConfig, UnimodalTransferConfig]
NEEDED = ["--model", "m", "--data", "a.h5mu", "b.h5ad", "--output", "out"]


@pytest.fixture
def parse(monkeypatch):
    def parse(*words, schema=AnnotationConfig):
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        return parse_flags(schema, "What it does.")

    return parse


def test_flags_overrides_and_files_say_the_same(parse, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: m\ndata: [a.h5mu, b.h5ad]\noutput_dir: out\nlabels_key: type\nreport: false\nmemory_gib: null\n"
        "optim: {epochs: 3}\nsplit: {seed: 4, group_key: donor}\n"
    )
    expected = load_config(AnnotationConfig, tmp_path / "run.yaml")
    flags = ["--labels-key", "type", "--no-report", "--epochs", "3", "--split-seed", "4", "--memory-gib", "null"]
    assert parse(*NEEDED, *flags, "split.group_key=donor") == expected
    by_override = [*NEEDED[:2], *NEEDED[5:], "data=[a.h5mu,b.h5ad]", "split.group_key=donor"]
    assert parse(*flags, *by_override) == expected
    assert parse("--config", str(tmp_path / "run.yaml")) == expected
    replaced = parse("--config", str(tmp_path / "run.yaml"), "--epochs", "5", "optim.lr=0.1")
    assert (replaced.optim.epochs, replaced.optim.lr, replaced.split) == (5, 0.1, expected.split)
    given = {"model": "m", "data": ["a.h5mu", "b.h5ad"], "output_dir": "out", "labels_key": "type", "report": False}
    assert (
        read_settings(AnnotationConfig, given | {"epochs": 3, "split": {"seed": 4}, "group_key": "donor"}) == expected
    )


def test_overrides_may_stand_behind_a_list_and_one_file_is_a_list(parse):
    config = parse(*NEEDED[:4], "optim.lr=1", "a=b.h5ad", "--output", "out", "seed=2")
    assert (config.data, config.optim.lr, config.seed) == (["a.h5mu", "a=b.h5ad"], 1.0, 2)
    assert CrossModalConfig("m", "a.h5mu", "out").data == ["a.h5mu"]
    assert load_config(CrossModalConfig, None, ["data=a.h5mu", "model=m", "output_dir=x"]).data == ["a.h5mu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label-key", "x"], "Unknown setting `label_key` in the settings. It is called labels_key now"),
        (["--model", "m"], "`data` must be given, as a flag or in a file for --config, got nothing"),
        ([*NEEDED, "--epochs", "few"], r"In the settings: Value 'few' .* \(`optim.epochs`\)"),
        ([*NEEDED, "--epochs", "0"], r"`optim.epochs` must lie in \(0, 1e12\], got 0.0"),
        ([*NEEDED, "--data"], "`data` must name a file or an atlas, got none"),
        ([*NEEDED, "--data", "a", "a"], "`data` must name each file once"),
        ([*NEEDED, "--split-column", "s", "--split-group-key", "g"], "`split.column` and `split.group_key` each say"),
    ],
)
def test_mistakes_are_named(parse, words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_help_tells_every_setting_once(schema, parse, capsys):
    with pytest.raises(SystemExit):
        parse("--help", schema=schema)
    told = capsys.readouterr().out
    settings = list(list_settings(schema))
    flags = [flag for found in name_flags(settings).values() for flag in found]
    assert len(flags) == len(set(flags))
    assert [flag for flag in flags if f"--{flag}" not in told] == []
    assert [setting.name for setting in settings if not setting.text] == []


def test_what_is_not_set_is_chosen_by_the_number_of_cells():
    settled = {number: ScriptOptimConfig(lr=None).settle(number, 1e-3) for number in (100, 40_000, 1_000_000)}
    assert [found.epochs for found in settled.values()] == [20.0, 5.0, 1.0]
    assert [found.batch_size for found in settled.values()] == [32, 32, 128]
    assert ScriptOptimConfig(epochs=2.0, batch_size=7).settle(100, 1e-3) == type(settled[100])(2.0, 7, 1e-3)
