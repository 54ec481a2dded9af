"""Two nodes on one machine: equal losses by every launcher, and the end of a node is told and survived."""

import sys

import pytest
from launch import ROOT, run


@pytest.mark.slow
def test_two_nodes():
    done = run(
        sys.executable, "scripts/two_nodes.py", cold=True, check=False, env={"PYTHONPATH": str(ROOT)}, timeout_s=900
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    for title in ("hostfile", "torchrun", "srun"):
        assert f"ok {title}: the losses are those of one machine" in done.stdout
    assert "ok killed: resumed to the losses of one machine" in done.stdout
    assert "ok unplugged: ended with [1, 1]" in done.stdout
