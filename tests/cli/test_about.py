"""`scfusion env`, `--version`, examples in help texts, and completion: what users and reports of bugs need."""

import json
import re
import shlex
import subprocess
from importlib import metadata

import pytest
import torch

import scfusion_fm
from scfusion_fm.cli import environment
from scfusion_fm.cli.completion import SHELLS, write_completion
from scfusion_fm.cli.examples import EXAMPLES
from scfusion_fm.cli.main import build_parser
from scfusion_fm.cli.training import TASKS


def call(*words):
    args = build_parser().parse_args(words)
    args.run(args)


def show_help(capsys, *words):
    with pytest.raises(SystemExit, match="0"):
        call(*words, "--help")
    return capsys.readouterr().out


def test_version_names_what_matters(capsys):
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args(["--version"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"scfusion {scfusion_fm.__version__} (Python 3.")
    assert f"torch {metadata.version('torch')}" in printed


def test_env_tells_versions_and_settings_and_no_paths(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SCFUSION_COMPILED", "0")
    monkeypatch.setenv("SCFUSION_SHARED_DATA", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    call("env", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["anndata"] == metadata.version("anndata")
    assert {"OMP_NUM_THREADS": "1", "SCFUSION_COMPILED": "0"}.items() <= found["variables"].items()
    assert found["devices"][0].startswith(f"CPU, {torch.get_num_threads()} threads")
    call("env")
    printed = capsys.readouterr().out
    assert "scfusion-human-blood-types" in printed
    assert "secret" not in printed
    assert str(tmp_path) not in printed


def test_env_tells_what_is_missing(monkeypatch):
    monkeypatch.setattr(environment, "MATTERING", ("no-such-package",))
    assert environment.describe_version().endswith("no-such-package missing)")


def test_help_of_each_command_has_an_example_that_can_be_typed(capsys):
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    assert set(EXAMPLES) | {"pretrain", "finetune"} == set(commands.choices)
    for name, example in EXAMPLES.items():
        words = shlex.split(re.sub(r" > \S+", "", example))
        assert words[:2] == ["scfusion", name]
        build_parser().parse_args(words[1:])
        assert show_help(capsys, name).endswith(f"example:\n  {example}\n")
    assert "scfusion pretrain --config" in show_help(capsys, "pretrain")
    for task in TASKS:
        assert f"scfusion finetune {task} --model" in show_help(capsys, "finetune", task)


def complete(script, *words):
    """Give what bash offers for the last word."""
    typed = " ".join(map(shlex.quote, ("scfusion", *words)))
    code = f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _scfusion; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", script + code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_choices_and_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.h5ad").touch()
    script = write_completion(build_parser(), "bash")
    assert complete(script, "anno") == ["annotate"]
    assert complete(script, "annotate", "--re") == ["--reject-rate"]
    assert complete(script, "annotate", "--modality", "a") == ["auto", "adt"]
    assert complete(script, "annotate", "scfusion-human-blood-t") == ["scfusion-human-blood-types"]
    assert complete(script, "annotate", "m", "my") == ["my.h5ad"]
    assert complete(script, "finetune", "transf") == ["transfer"]
    assert complete(script, "finetune", "annotation", "--labels") == ["--labels-key"]
    assert "--local_rank" not in script


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_of_each_shell_has_every_command(shell, capsys):
    call("completion", shell)
    printed = capsys.readouterr().out
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    assert all(name in printed for name in commands.choices)
    assert printed.startswith({"bash": "_scfusion() {", "zsh": "autoload", "fish": "complete -c scfusion"}[shell])
