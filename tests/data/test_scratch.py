"""A result has its name when all of it is there, and what a killed process left is in nobody's way."""

import errno
import fcntl
import threading

import pytest

from scfusion_fm.data.scratch import Scratch, check_destination, leave_scratch


def test_result_gets_its_name_when_it_is_done(tmp_path):
    scratch = Scratch(tmp_path / "deep" / "run")
    assert list(tmp_path.iterdir()) == []
    with scratch:
        scratch.path.mkdir()
        (scratch.path / "results.json").write_text("{}")
        assert not scratch.output.exists()
        scratch.publish()
    assert list(scratch.output.parent.iterdir()) == [scratch.output]
    assert (scratch.output / "results.json").read_text() == "{}"


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), Scratch(tmp_path / "run") as scratch:
        (scratch.path / "file").write_text("the directory was not made")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_replaced(tmp_path):
    left = tmp_path / ".run.unfinished"
    (left / "run" / "trainer").mkdir(parents=True)
    (left / "other").write_text("half")
    (tmp_path / "precious").mkdir()
    (left / "link").symlink_to(tmp_path / "precious")
    with Scratch(tmp_path / "run") as scratch:
        assert list(left.iterdir()) == []
        scratch.path.write_text("whole")
        scratch.publish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious", "run"]


def test_what_others_use_or_made_is_left_alone(tmp_path):
    first, second = Scratch(tmp_path / "run", "output_dir"), Scratch(tmp_path / "run", "output_dir")
    first.open()
    first.path.write_text("first")
    with pytest.raises(ValueError, match="`output_dir` must not be in use"):
        second.open()
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="`output_dir` must not exist yet"):
        first.publish()
    assert first.path.read_text() == "first"
    first.close()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_place_that_a_call_left_by_an_error_is_for_the_next_one_of_its_thread(tmp_path):
    first, second = Scratch(tmp_path / "run"), Scratch(tmp_path / "run")
    first.open()
    first.memory.mkdir()
    other = threading.Thread(target=leave_scratch, args=[tmp_path / "run"])
    other.start()
    other.join()
    with pytest.raises(ValueError, match="`output` must not be in use"):
        second.open()
    leave_scratch(tmp_path / "run")
    leave_scratch(tmp_path / "run")
    second.open()
    assert second.memory.is_dir()
    first.close()  # it has nothing any more
    assert second.memory.is_dir()
    second.close()


def test_directory_that_was_removed_while_it_was_opened_is_made_again(monkeypatch, tmp_path):
    first, second, lock = Scratch(tmp_path / "run"), Scratch(tmp_path / "run"), fcntl.flock
    first.open()

    def publish_first(*arguments):
        monkeypatch.setattr(fcntl, "flock", lock)
        first.close()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", publish_first)
    with second:
        second.path.write_text("second")
        second.publish()
    assert (tmp_path / "run").read_text() == "second"


def test_file_system_without_locks_is_told(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked against a second run"), Scratch(tmp_path / "run"):
        pass


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="`output` must lie in a directory that can be written"):
        check_destination(tmp_path / "file" / "out.h5ad")
    with pytest.raises(ValueError, match="`output_dir` must not exist yet"):
        check_destination(tmp_path / "file", "output_dir")
    check_destination(tmp_path / "new" / "deep" / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
