"""`scfusion pretrain`, `export`, `finetune`, `configs`: the scripts by other names, with settings of the package."""

import shutil

import pytest
from launch import ROOT

from scfusion_fm.cli import training
from scfusion_fm.cli.main import build_parser
from scfusion_fm.config import shipped
from scfusion_fm.config.loading import load_config
from scfusion_fm.config.pretrain import PretrainConfig
from scfusion_fm.training.settings import read_deepspeed_settings

NEEDED = ["--model", "m", "--data", "a.h5mu", "--output", "out"]
LABELS = ["annotation", "transfer"]


def call(*words):
    args = build_parser().parse_args(words)
    args.run(args)


@pytest.mark.parametrize("name", training.TASKS)
def test_tasks_run_with_their_settings(name, monkeypatch, capsys):
    task, given = training.TASKS[name], []
    load = training._load
    monkeypatch.setattr(training, "_load", lambda place: given.append if place == task.run else load(place))
    call("finetune", name, *NEEDED, *(["--labels-key", "type"] if name in LABELS else []), "seed=3")
    assert (type(given[0]), given[0].model, given[0].seed) == (load(task.schema), "m", 3)
    assert callable(load(task.run))
    assert (ROOT / f"finetune/{task.script}.py").read_text().count(f'finetune("{name}")') == 1
    assert (ROOT / f"configs/finetune/{task.script}.yaml").is_file()
    with pytest.raises(SystemExit, match="0"):
        call("finetune", name, "--help")
    assert f"scfusion finetune {name} {task.example}" in capsys.readouterr().out


def test_pretraining_runs_with_its_settings(monkeypatch, capsys):
    from scfusion_fm.pretraining import run

    given = []
    monkeypatch.setattr(run, "run_pretraining", given.append)
    call("pretrain", "--local_rank=0", "--config", "configs/pretrain/demo.yaml", "optim.lr=0.5")
    assert given[0].optim.lr == 0.5
    with pytest.raises(SystemExit, match="2"):
        call("--local_rank=0", "pretrain")
    assert "scfusion pretrain: error:" in capsys.readouterr().err


def test_settings_of_the_package_are_found_wherever_one_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert load_config(PretrainConfig, "configs/pretrain/demo.yaml").seed == 0
    assert "zero_optimization" in read_deepspeed_settings("configs/deepspeed/zero2.json")
    for path in ("configs/pretrain/none.yaml", "configs/../pyproject.toml", "other/pretrain/demo.yaml"):
        assert str(shipped.find_settings(path)) == path
    call("configs")
    listed = capsys.readouterr().out.split()
    assert {"configs/pretrain/demo.yaml", "configs/deepspeed/zero2.json"} < set(listed)
    call("configs", "--copy", "mine")
    assert (tmp_path / "mine/pretrain/demo.yaml").read_text() == (ROOT / "configs/pretrain/demo.yaml").read_text()
    with pytest.raises(ValueError, match=r"`--copy` must be a new directory, got 'mine', which exists"):
        call("configs", "--copy", "mine")
    shutil.copytree("mine", "configs")
    (tmp_path / "configs/pretrain/demo.yaml").write_text("seed: 7\noutput_dir: o\natlas: a\n")
    assert load_config(PretrainConfig, "configs/pretrain/demo.yaml").seed == 7  # one's own come first


def test_settings_lie_in_the_installed_package(tmp_path, monkeypatch):
    (tmp_path / "scfusion_fm/configs/pretrain").mkdir(parents=True)
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "scfusion_fm")
    assert shipped.shipped_settings() == tmp_path / "scfusion_fm/configs"
