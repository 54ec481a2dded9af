"""Run the commands of the project as a user does: in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {
    "DS_ACCELERATOR": "cpu",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}


def run(*command: str | Path, cwd: Path = ROOT, check: bool = True, env: dict | None = None, timeout_s: float = 300):
    """Run a command to its end; its output is in the error when it fails."""
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=ENVIRONMENT | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def pretrain(ranks: int, *arguments: str, check: bool = True):
    """Run pretrain/run.py on some ranks; each call takes a port of its own."""
    launcher = [sys.executable]
    if ranks > 1:
        port = 20_000 + os.getpid() % 20_000
        launcher = ["deepspeed", "--num_accelerators", str(ranks), "--master_port", str(port)]
    return run(*launcher, "pretrain/run.py", *arguments, check=check)


def read_metrics(directory: Path) -> list[dict]:
    """Read the records of a run."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
