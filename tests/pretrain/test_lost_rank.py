"""A rank that is killed under a launcher: the message that names it comes before the launcher ends the others."""

import os
import signal
import subprocess
import time

import psutil
import pytest
from launch import ENVIRONMENT, ROOT, read_metrics, write_config

PORT = str(21_000 + os.getpid() % 10_000)
LAUNCHERS = {
    "deepspeed": ("deepspeed", "--num_accelerators", "2", "--master_port", PORT),
    "torchrun": ("torchrun", "--nproc-per-node", "2", "--master-port", PORT),
}


def find_rank(launcher, rank):
    """Find the process of a rank below its launcher."""
    processes = psutil.Process(launcher.pid).children(recursive=True)
    return next(p for p in processes if "pretrain/run.py" in p.cmdline() and p.environ().get("RANK") == str(rank))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_killed_rank_is_named(atlas_path, tmp_path, name):
    config, output = write_config(tmp_path, atlas_path)
    command = [*LAUNCHERS[name], "pretrain/run.py", "--config", str(config), "optim.epochs=200"]
    job = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (output / "metrics.jsonl").exists() or len(read_metrics(output)) < 8:
        assert job.poll() is None, job.communicate()
        time.sleep(0.1)
    find_rank(job, 1).send_signal(signal.SIGKILL)
    said = job.communicate(timeout=60)[1]
    assert job.returncode not in (0, 2, 75)
    assert f"error: rank 1 on host {os.uname().nodename} died without a word. All ranks stop; the same" in said
    assert "PeerLost" not in said
