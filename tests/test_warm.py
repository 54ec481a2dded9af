"""A script that the warm server forks is as one that a new interpreter runs."""

import signal
import sys
import time

import pytest
from launch import run, start

SCRIPT = """
import atexit, json, os, signal, sys, threading
atexit.register(print, "handlers have run")
print(json.dumps([sys.argv, sys.path[0], os.getcwd(), os.environ["MARK"], __name__, __file__]), flush=True)
print(sorted(os.listdir("/proc/self/fd")), signal.getsignal(signal.SIGTERM), threading.active_count(), file=sys.stderr)
"""
ENDS = {
    "end": "",
    "code": "sys.exit(75)",
    "words": "sys.exit('words')",
    "error": "1 / 0",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "stopped": "os.kill(os.getpid(), signal.SIGTERM)",
    "in a thread": "threading.Thread(target=lambda: print('thread')).start()",
}


@pytest.mark.parametrize("end", ENDS)
def test_warm_script_is_as_a_cold_one(tmp_path, end):
    (tmp_path / "script.py").write_text(SCRIPT + ENDS[end])

    def launch(**how):
        done = run(sys.executable, "script.py", "a", "b c", cwd=tmp_path, env={"MARK": "x"}, check=False, **how)
        told = [line for line in done.stderr.splitlines() if not line.startswith("  ")]  # a traceback has more frames
        return done.returncode, done.stdout, told

    warm, cold = launch(), launch(cold=True)
    assert warm == cold
    assert "script.py" in warm[1]


def test_signal_comes_to_a_warm_script(tmp_path):
    handled = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    (tmp_path / "script.py").write_text(handled + "print('ready', flush=True)\ntime.sleep(60)")
    with (tmp_path / "log").open("w") as log:
        process = start(sys.executable, tmp_path / "script.py", stdout=log, stderr=log)
    while "ready" not in (tmp_path / "log").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75
    process.send_signal(signal.SIGTERM)  # nobody's
