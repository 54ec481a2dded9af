"""The script that kills commands: it finds what a kill leaves, and finds nothing where commands keep their promise."""

import importlib.util
import sys

import pytest
from launch import ROOT, run

pytest.importorskip("mudata")
spec = importlib.util.spec_from_file_location("kill_runs", ROOT / "scripts/kill_runs.py")
kill_runs = sys.modules["kill_runs"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill_runs)

HALF = "import pathlib, time; p = pathlib.Path('{output}.json'); p.write_text('[1'); time.sleep(1); p.write_text('[1]')"
LEFT = (
    "import pathlib, time; p = pathlib.Path('{output}'); {kept}; time.sleep(1); p.with_suffix('.txt').write_text('a')"
)


def kill(script, directory, moment_s=0.5, **how):
    case = kill_runs.Case([sys.executable, "-c", script], **how)
    wanted, first, end = kill_runs.run_undisturbed(case, directory, directory / "undisturbed")
    assert first < end
    return case, list(kill_runs.kill_once(case, directory, directory / "0", wanted, moment_s))


def test_half_written_file_is_found(tmp_path):
    case, faults = kill(HALF, tmp_path)
    assert (case.killed, case.whole) == (1, 1)
    assert faults == ["after the kill: out.json differs"]


def test_what_is_left_over_or_differs_is_found(tmp_path):
    kept = "p.with_suffix('.n').write_text(str(len(list(p.parent.iterdir()))))"
    case, faults = kill(LEFT.replace("{kept}", kept), tmp_path, resumes=True)
    assert (case.killed, case.whole) == (1, 0)
    assert faults == ["out.n differs"]


def test_equal_content_but_for_times_is_equal(tmp_path):
    (tmp_path / "a.json").write_text(f'{{"seconds": 3, "path": "{tmp_path}/x", "losses": [{{"loss": 1, "time": 2}}]}}')
    (content,) = kill_runs.read_content(tmp_path).values()
    assert content == [{"path": "OUT/x", "losses": [{"loss": 1}]}]
    assert list(kill_runs.differences({"a": 1, "b": 1}, {"b": 2, "c": 1})) == [
        "a is left over",
        "b differs",
        "c is missing",
    ]


@pytest.mark.slow
def test_commands_keep_their_promise(tmp_path):
    done = run(sys.executable, "scripts/kill_runs.py", "--work", tmp_path / "kills", "--times", "1", timeout_s=1800)
    assert done.stdout.count(", 0 faults") == len(kill_runs.build_cases())
