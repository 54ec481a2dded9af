"""
Run the commands of the project as a user does: in processes of their own.

Python scripts and `scfusion` are forked from a server that is warm (`warm.py`), unless a test wants a new interpreter:
each script and each launcher has a test that does.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np
from warm import ENVIRONMENT, ROOT, WarmProcess

CONFIG = """
output_dir: {output}
atlas: {atlas}
patch_size: 2
model: {{hidden_size: 16, num_attention_heads: 2, intermediate_size: 16, num_hidden_layers: 1, num_decoder_layers: 1,
  ttt_mini_batch_size: 4, ttt_direction: alternating}}
masking: {{rna_ratio: 0.3, adt_ratio: 0.3}}
optim: {{epochs: 2, global_batch_size: 16, micro_batch_size: 8, lr: 0.01}}
run: {{log_every: 1, eval_every: 5, save_every: 4}}
deepspeed: {deepspeed}
"""


def write_config(directory: Path, atlas: Path, name: str = "run") -> tuple[Path, Path]:
    """Write the settings of a run of 14 steps on a tiny model; give their file and the directory of the run."""
    path = directory / f"{name}.yaml"
    path.write_text(
        CONFIG.format(output=directory / name, atlas=atlas, deepspeed=ROOT / "configs/deepspeed/zero2.json")
    )
    return path, directory / name


def start(
    *command: str | Path, stdout: IO, stderr: IO, cwd: Path = ROOT, cold: bool = False, env: dict | None = None
) -> subprocess.Popen | WarmProcess:
    """Start a command; `cold` is for variables that are read while modules are imported."""
    words = [str(c) for c in command]
    if words[0] == "scfusion":
        words = [sys.executable, shutil.which("scfusion", path=ENVIRONMENT["PATH"]), *words[1:]]
    environment = ENVIRONMENT | (env or {})
    if cold or words[0] != sys.executable or words[1].startswith("-"):
        return subprocess.Popen(words, cwd=cwd, env=environment, stdout=stdout, stderr=stderr)
    return WarmProcess(words[1:], cwd, environment, stdout.fileno(), stderr.fileno())


def run(*command: str | Path, check: bool = True, timeout_s: float = 300, **how) -> subprocess.CompletedProcess:
    """Run a command to its end; its output is in the error when it fails."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = start(*command, stdout=stdout, stderr=stderr, **how)
        try:
            process.wait(timeout_s)
        finally:
            process.send_signal(signal.SIGKILL)
        said = [file.seek(0) or file.read() for file in (stdout, stderr)]
    if check and process.returncode != 0:
        raise AssertionError(f"{command} ended with {process.returncode}:\n{said[0]}\n{said[1]}")
    return subprocess.CompletedProcess(command, process.returncode, *said)


def pretrain(*arguments: str | Path, **how) -> subprocess.CompletedProcess:
    """Run pretrain/run.py on one rank."""
    return run(sys.executable, "pretrain/run.py", *arguments, **how)


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Job:
    """
    Ranks of pretrain/run.py as processes of our own, without a launcher, so that each of them can be signalled.

    The output of all ranks goes to one file each, and is in the error when the job does not end as it should.
    """

    script = "pretrain/run.py"

    def __init__(
        self,
        ranks: int,
        logs: Path,
        *arguments: str | Path,
        overrides: dict[int, list[str]] | None = None,
        cold: bool = False,
    ):
        logs.mkdir(parents=True, exist_ok=True)
        port = str(free_port())
        self.logs = [logs / f"rank{rank}.txt" for rank in range(ranks)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            with log.open("w") as output:
                command = [sys.executable, self.script, *arguments, *(overrides or {}).get(rank, [])]
                process = start(*command, stdout=output, stderr=output, cold=cold, env=place | master)
            self.processes.append(process)

    @property
    def output(self) -> str:
        """What all ranks have printed."""
        return "\n".join(log.read_text() for log in self.logs)

    def wait_for(self, text: str, timeout_s: float = 120) -> None:
        """Wait until rank 0 has printed a text."""
        end = time.monotonic() + timeout_s
        while text not in self.logs[0].read_text():
            if time.monotonic() > end or all(p.poll() is not None for p in self.processes):
                raise AssertionError(f"{text!r} never came:\n{self.output}")
            time.sleep(0.02)

    def send(self, signum: signal.Signals, *ranks: int) -> None:
        """Signal some ranks, or all."""
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].send_signal(signum)

    def wait(self, timeout_s: float = 120) -> list[int]:
        """Wait for the end; give the exit codes. What does not end in time is killed, and an error."""
        end = time.monotonic() + timeout_s
        try:
            return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            raise AssertionError(f"the job did not end in {timeout_s} s:\n{self.output}") from None

    def finish(self, code: int = 0, timeout_s: float = 120) -> str:
        """Wait for the end with this exit code on all ranks; give the output."""
        codes = self.wait(timeout_s)
        assert codes == [code] * len(codes), f"{codes}:\n{self.output}"
        return self.output


def read_metrics(directory: Path) -> list[dict]:
    """Read the records of a run."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory: Path, split: str = "train") -> np.ndarray:
    """Give the losses of a run, (reports, 3): total, RNA, protein."""
    records = [r for r in read_metrics(directory) if r["split"] == split]
    return np.array([[r["loss"], r["rna_loss"], r["adt_loss"]] for r in records])
