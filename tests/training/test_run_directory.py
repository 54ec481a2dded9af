"""The directory of a run, as a run of one rank sees it."""

import operator

import pytest
from make_damage import DAMAGES, find_silent

from scfusion_fm.config.loading import config_differences
from scfusion_fm.config.pretrain import RunConfig
from scfusion_fm.training import run_directory
from scfusion_fm.training.checkpoint import publish, start_checkpoint, write_rank
from scfusion_fm.training.run_directory import RunDirectory
from scfusion_fm.training.run_files import CHECKPOINTS, IDENTITY

# A run holds its lock until the process ends; here, until nobody knows it any more.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(run_directory, "LOCK_PATIENCE_S", 0.0)


def open_run(path, lr=0.1):
    return RunDirectory(path, {"optim": {"lr": lr}}, RunConfig())


def write_checkpoint(path, step):
    scratch = start_checkpoint(path / CHECKPOINTS, step)
    return publish(scratch, {"step": step, "files": [write_rank(scratch, 0, [])]})


def test_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"`output_dir` must be new, empty or a run to resume, got .* other files"):
        open_run(tmp_path)


def test_settings_may_change_until_there_is_a_checkpoint(tmp_path):
    open_run(tmp_path / "run", lr=0.1)
    open_run(tmp_path / "run", lr=0.2)
    write_checkpoint(tmp_path / "run", 3)
    open_run(tmp_path / "run", lr=0.2)
    with pytest.raises(ValueError, match=r"holds a run with other settings: optim\.lr: 0\.2 -> 0\.3\. Choose another"):
        open_run(tmp_path / "run", lr=0.3)


def test_settings_that_cannot_be_read_are_named(tmp_path):
    open_run(tmp_path)
    write_checkpoint(tmp_path, 3)
    (tmp_path / IDENTITY).write_text('{"optim": ')
    with pytest.raises(ValueError, match=r"run\.json` must be complete JSON"):
        open_run(tmp_path)


def test_damage_to_the_settings_is_told_of_or_changes_nothing(tmp_path):
    run = open_run(tmp_path)
    run._held.close()
    expected = run._read_identity()

    def read():
        changed = config_differences(run._read_identity(), expected)
        if changed:
            raise ValueError(changed[0])  # as a run does
        return True

    assert find_silent([tmp_path / IDENTITY], DAMAGES * 20, read, operator.eq) == []


def test_directory_in_use_is_refused(tmp_path):
    first = open_run(tmp_path)
    with pytest.raises(ValueError, match=r"`output_dir` must not be in use, got .* going on: process \d+ on host"):
        open_run(tmp_path)
    del first
    open_run(tmp_path)


def test_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def fail(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_directory.fcntl, "flock", fail)
    open_run(tmp_path)
    assert "cannot be locked against a second run: [Errno 95]" in capsys.readouterr().err


def test_newest_intact_checkpoint_is_found(tmp_path, capsys):
    run = open_run(tmp_path)
    assert run.newest() is None
    for step in (3, 12):
        write_checkpoint(tmp_path, step)
    assert run.newest().step == 12
    (run.checkpoints / "step_00000012" / "rank_00000.safetensors").unlink()
    assert run.newest().step == 3
    assert "warning: checkpoint step_00000012 is damaged and not used" in capsys.readouterr().err
    (run.checkpoints / "step_00000003" / "rank_00000.safetensors").unlink()
    with pytest.raises(ValueError, match="must hold at least one intact checkpoint, got 2 damaged ones"):
        run.newest()


def test_what_a_killed_run_left_is_removed(tmp_path):
    open_run(tmp_path)
    start_checkpoint(tmp_path / CHECKPOINTS, 5)
    assert list(open_run(tmp_path).checkpoints.iterdir()) == []
