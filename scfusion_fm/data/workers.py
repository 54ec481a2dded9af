"""Run independent tasks: here, on processes of this machine, or on a Dask cluster; with progress."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
REPORT_EVERY_S = 5.0


@dataclass(frozen=True)
class Workers:
    """
    Say where tasks run.

    Parameters
    ----------
    number
        Processes of this machine; 1 runs the tasks in this process.
    dask
        Address of the scheduler of a Dask cluster that sees the same files, instead of processes here.

    Raises
    ------
    ValueError
        If `number` is below 1, or Dask is asked for and missing.
    """

    number: int = 1
    dask: str | None = None

    def __post_init__(self):
        if self.number < 1:
            raise ValueError(f"`workers` must be at least 1, got {self.number}.")

    def run(self, function: Callable[[T], R], tasks: Sequence[T], report: Callable[[str], None], what: str) -> list[R]:
        """
        Run a function of a module over tasks that can be pickled; give the results in the order of the tasks.

        Raises
        ------
        ValueError
            If a worker process dies.
        """
        results: dict[int, R] = {}
        progress = Progress(len(tasks), what, report)
        for index, result in self._run(function, tasks):
            results[index] = result
            progress.advance()
        return [results[i] for i in range(len(tasks))]

    def _run(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        if self.dask is not None and tasks:
            yield from _run_on_dask(self.dask, function, tasks)
        elif self.number > 1 and len(tasks) > 1:
            yield from _run_in_processes(min(self.number, len(tasks)), function, tasks)
        else:
            yield from ((i, function(task)) for i, task in enumerate(tasks))


class Progress:
    """
    Report how far a piece of work is, at most every few seconds, with an estimate of the time left.

    Parameters
    ----------
    total
        Number of steps.
    what
        What a step is, in the plural.
    report
        Receives the lines.
    """

    def __init__(self, total: int, what: str, report: Callable[[str], None]):
        self.total, self.what, self.report = total, what, report
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self) -> None:
        """Count a finished step."""
        self.done += 1
        now = time.monotonic()
        if now - self.last < REPORT_EVERY_S and self.done < self.total:
            return
        self.last = now
        left = (now - self.start) / self.done * (self.total - self.done)
        self.report(f"{self.what}: {self.done} of {self.total}, {format_duration(left)} left")


def format_duration(seconds: float) -> str:
    """Give seconds as a short text: 42 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _run_in_processes(workers: int, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
    # A fork of a process that has used zarr can hang; a fork server has used nothing yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        with _without_script():
            futures = {pool.submit(function, task): i for i, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "`workers` must be few enough for the memory of this machine: a worker process died (killed, or out "
                "of memory). The same command goes on where it stopped; try it with fewer workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _without_script() -> Iterator[None]:
    """Keep new processes from running the user's script once more, which they do to find functions that are in it."""
    script = sys.modules["__main__"].__dict__
    hidden = {name: script.get(name) for name in ("__file__", "__spec__")}
    script |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        script |= hidden


def _die_with_parent() -> None:
    """End this worker when the process that started it is gone, whatever it is doing."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_on_dask(address: str, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
    try:
        import distributed
    except ImportError as error:
        raise ValueError(
            f"`dask` needs the package distributed, got {address!r} without it; pip install 'scfusion-fm[dask]'."
        ) from error
    with distributed.Client(address) as client:
        futures = client.map(function, list(tasks), pure=False)
        place: dict[Any, int] = {future.key: i for i, future in enumerate(futures)}
        for future, result in distributed.as_completed(futures, with_results=True):
            yield place[future.key], result
