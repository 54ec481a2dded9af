"""Limits of memory and time: the command runs in a process of its own, which can be ended whatever a file does."""

import argparse
import math
import os
import resource
import signal
import subprocess
import sys

LIMITED = "SCFUSION_LIMITED"  # set in the process that is limited
CODE = "from scfusion_fm.cli.main import main; main()"


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add `--limit-memory` and `--limit-seconds` to a command that reads files."""
    group = parser.add_argument_group("for files of strangers")
    group.add_argument("--limit-memory", type=_positive, metavar="GIB", help="address space that the command may take")
    group.add_argument("--limit-seconds", type=_positive, metavar="S", help="time after which the command is ended")


def run_limited(args: argparse.Namespace) -> bool:
    """
    Run a command again under the limits that it names.

    Returns
    -------
    False where there are none, or this process is the limited one.

    Raises
    ------
    ValueError
        If the command was ended.
    """
    memory, seconds = getattr(args, "limit_memory", None), getattr(args, "limit_seconds", None)
    if memory is None and seconds is None:
        return False
    if os.environ.get(LIMITED):
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30),) * 2)
        return False
    child = subprocess.Popen(
        [sys.executable, "-c", CODE, *sys.argv[1:]],
        env=os.environ | {LIMITED: "1"},
        start_new_session=True,  # so that what it starts ends with it
    )
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"`--limit-seconds` must be enough for the command, got {seconds:g}; it was ended. Give more time, or do "
            "not use the file."
        ) from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code < 0:
        raise ValueError(
            f"`path` must be a file that can be read, but the command was ended by {signal.Signals(-code).name}. Do "
            "not use the file, or give more than --limit-memory."
        )
    if code:
        sys.exit(code)
    return True


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value
