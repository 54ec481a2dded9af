"""Workers: processes that die or cannot be are told, and progress too."""

import os
import subprocess
import sys

import numpy as np
import pytest
from make_atlas import silent

from scfusion_fm.data import workers
from scfusion_fm.data.workers import Workers


def test_a_killed_worker_is_told():
    with pytest.raises(ValueError, match="a worker process died"):
        Workers(2).run(os._exit, [1, 2], silent, "tasks")


def test_impossible_workers_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="`workers` must be at least 1, got 0"):
        Workers(0)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"`dask` needs the package distributed, got 'tcp://x:1' without it"):
        Workers(dask="tcp://x:1").run(abs, [1], silent, "tasks")


def test_progress_tells_the_time_left(monkeypatch):
    now, lines = iter(np.arange(0.0, 1000.0, 3.0)), []
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(now))
    progress = workers.Progress(4, "pieces", lines.append)
    for _ in range(4):
        progress.advance()
    assert lines == ["pieces: 2 of 4, 6 s left", "pieces: 4 of 4, 0 s left"]
    assert [workers.format_duration(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]


def test_a_script_needs_no_guard(tmp_path):
    lines = ["from posixpath import basename", "from scfusion_fm.data.workers import Workers"]
    lines += ["print(Workers(2).run(basename, ['a/b', 'c/d'], lambda line: None, 'names'))"]
    (tmp_path / "script.py").write_text("\n".join(lines))
    assert subprocess.check_output([sys.executable, tmp_path / "script.py"], text=True) == "['b', 'd']\n"
