"""Commands that read files can be ended by limits of memory and time, with one line and exit code 2."""

import os
import subprocess
import sys
from argparse import Namespace

import pytest
from make_cells import write_h5mu

from scfusion_fm.cli import limits
from scfusion_fm.cli.main import build_parser
from scfusion_fm.config.command import run_command

ASKED = Namespace(limit_memory=1.0, limit_seconds=60.0)


@pytest.mark.parametrize("command", ["prepare --config c", "doctor f", "embed m i o", "annotate m i o", "seen m f"])
def test_commands_that_read_files_take_limits(command):
    args = build_parser().parse_args([*command.split(), "--limit-memory", "4", "--limit-seconds", "2.5"])
    assert (args.limit_memory, args.limit_seconds) == (4, 2.5)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_limits_are_positive(value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        build_parser().parse_args(["doctor", "f", "--limit-seconds", value])
    assert exit_info.value.code == 2
    assert "--limit-seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "args", "told"),
    [
        ("import time; time.sleep(60)", Namespace(limit_seconds=0.5), "`--limit-seconds` must be enough .*, got 0.5"),
        ("import os; os.kill(os.getpid(), 11)", ASKED, "the command was ended by SIGSEGV"),
    ],
)
def test_a_command_that_hangs_or_crashes_is_told_in_one_line(monkeypatch, code, args, told):
    monkeypatch.setattr(limits, "CODE", code)
    with pytest.raises(ValueError, match=told):
        limits.run_limited(args)


def test_the_exit_code_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(limits, "CODE", "raise SystemExit(1)")
    with pytest.raises(SystemExit) as exit_info:
        limits.run_limited(ASKED)
    assert exit_info.value.code == 1
    assert not limits.run_limited(Namespace())


def test_doctor_under_limits_says_what_it_says_without(tmp_path):
    path = tmp_path / "in.h5mu"
    write_h5mu(path)
    code = "from scfusion_fm.cli.main import main; main()"
    command = [sys.executable, "-c", code, "doctor", str(path), "--limit-memory", "8", "--limit-seconds", "120"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert "in.h5mu: " in found.stdout
    assert found.returncode in (0, 1)


def test_memory_that_does_not_suffice_is_one_line(capsys, monkeypatch):
    def fail():
        raise MemoryError("Unable to allocate 1 TiB")

    with pytest.raises(SystemExit) as exit_info:
        run_command(fail)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: the memory does not suffice (Unable to allocate 1 TiB)")
    monkeypatch.setitem(os.environ, "SCFUSION_TRACEBACK", "1")
    with pytest.raises(MemoryError, match="1 TiB"):
        run_command(fail)
