"""The SLURM script puts a stopped job back into the queue, and only that; srun and scontrol are played by scripts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from launch import ROOT

# Starts two tasks with the variables of a step; ends with the worst of their codes.
SRUN = """#!{python}
import json, os, subprocess, sys
assert sys.argv[1] == "python", sys.argv
step = os.environ | {{"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}}
tasks = [
    subprocess.Popen([sys.executable, "{task}", *sys.argv[2:]], env=step | {{"SLURM_PROCID": rank}})
    for rank in "01"
]
sys.exit(max(task.wait() for task in tasks))
"""

TASK = """
import json, os, pathlib, sys, time
names = ("MASTER_ADDR", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
rank = os.environ["SLURM_PROCID"]
pathlib.Path(f"task{rank}.json").write_text(json.dumps([sys.argv[1:], *(os.environ[n] for n in names)]))
time.sleep(float(os.environ["TASK_SECONDS"]))
sys.exit(int(os.environ["TASK_CODE"]) if rank == "1" else 0)
"""

SCONTROL = """#!/bin/sh
if [ "$1 $2" = "show hostnames" ]; then
  echo "$3" | tr , '\\n'
else
  echo "$*" >> scontrol.log
fi
"""


def start(directory, code, seconds=0.0):
    (directory / "task.py").write_text(TASK)
    for name, text in {
        "srun": SRUN.format(python=sys.executable, task=directory / "task.py"),
        "scontrol": SCONTROL,
    }.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    job = {"PATH": f"{directory}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "nodea,nodeb", "SLURM_JOB_ID": "7"}
    return subprocess.Popen(
        ["bash", ROOT / "scripts/pretrain.sbatch", "--config", "run.yaml", "optim.lr=1e-4"],
        cwd=directory,
        env=os.environ | job | {"TASK_CODE": str(code), "TASK_SECONDS": str(seconds)},
    )


def requeued(directory):
    log = directory / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(("code", "requests"), [(75, ["requeue 7"]), (0, []), (1, []), (2, [])])
def test_only_a_stopped_run_goes_back_into_the_queue(tmp_path, code, requests):
    assert start(tmp_path, code).wait(timeout=60) == code
    assert requeued(tmp_path) == requests


def test_tasks_know_where_to_meet_and_get_the_arguments(tmp_path):
    start(tmp_path, 0).wait(timeout=60)
    arguments = ["pretrain/run.py", "--config", "run.yaml", "optim.lr=1e-4"]
    for rank in (0, 1):
        told = json.loads((tmp_path / f"task{rank}.json").read_text())
        assert told == [arguments, "nodea", str(rank), "0", "2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_script_outlives_ranks_that_save(tmp_path, number):
    job = start(tmp_path, 75, seconds=3.0)
    while not (tmp_path / "task1.json").exists():
        time.sleep(0.05)
    job.send_signal(number)
    assert job.wait(timeout=60) == 75
    assert requeued(tmp_path) == ["requeue 7"]
