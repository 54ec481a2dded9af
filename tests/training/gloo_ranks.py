"""Start ranks that talk by gloo on this machine; a server that has imported torch forks them in a moment."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

from scfusion_fm.config.command import run_command
from scfusion_fm.training.peers import PeerWatch
from scfusion_fm.training.ranks import Ranks

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["scfusion_fm.training.peers", "scfusion_fm.config.command"])


def launch(directory: Path, target: Callable, world_size: int, *arguments: object) -> list:
    """Start `target(rank, *arguments)` on some ranks; what rank N prints to stderr is in the file `N`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        _CONTEXT.Process(target=_run, args=(directory, target, rank, world_size, port, arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def finish(directory: Path, ranks: list, timeout_s: float = 30.0) -> tuple[list[int | None], list[str]]:
    """Give exit codes (None for one that still runs, and is then killed) and what was printed to stderr."""
    deadline = time.monotonic() + timeout_s
    for process in ranks:
        process.join(max(deadline - time.monotonic(), 0))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes, [(directory / str(rank)).read_text() for rank in range(len(ranks))]


def _run(directory: Path, target: Callable, rank: int, world_size: int, port: int, arguments: tuple) -> None:
    log = os.open(directory / str(rank), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target(rank, *arguments)


def watched(rank: int, hosts: str, heartbeat_s: float, body: Callable[[int], None]) -> None:
    """Run a body as a command does, with one letter per rank for its host."""
    distributed.init_process_group("gloo")

    def main() -> None:
        with PeerWatch(Ranks(rank, len(hosts), tuple(hosts)), heartbeat_s):
            body(rank)

    run_command(main)


def add_forever(rank: int) -> None:
    """Train, as far as the other ranks can tell."""
    while True:
        add(rank)
        time.sleep(0.01)


def add(rank: int) -> None:
    """Take one step together."""
    distributed.all_reduce(torch.ones(10))
