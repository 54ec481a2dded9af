"""
Start scripts of the project in a moment: a server that has imported what they import forks a process for each.

A new interpreter takes 4 to 6 s of CPU time until torch, transformers and deepspeed are there, and most tests are not
about that. The server only imports: it starts no thread of torch and no process group, so that a fork is as good as
new. What the fork runs ends with the exit code, the handlers and the traceback of the interpreter, but for its clearing
of all modules, which takes half a second.
"""

import atexit
import contextlib
import functools
import gc
import importlib.util
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {
    "DS_ACCELERATOR": "cpu",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}
# Everything that these import is there before the first fork.
SCRIPTS = ("pretrain/run.py", "pretrain/export.py", "finetune/cell_type_annotation.py")
SCRIPTS += ("finetune/cross_modal_prediction.py", "finetune/unimodal_transfer.py")
MODULES = ("scfusion_fm.cli.main", "torch.utils.tensorboard", "transformers.trainer", "matplotlib.pyplot", "scanpy")
MODULES += ("scfusion_fm.finetune",)
MODULES += ("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.ops.op_builder.all_ops")
MODULES += ("deepspeed.module_inject.auto_ep_layer", "numba.typed", "numba.np.arrayobj")


class WarmProcess:
    """A script in a fork of the server: what tests need of `subprocess.Popen`."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], stdout: int, stderr: int):
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"command": command, "cwd": str(cwd), "env": env}).encode()
        with theirs:
            socket.send_fds(_server(), [request], [theirs.fileno(), stdout, stderr])
        pid = self._status.recv(64)
        assert pid, "the server has ended; what it said is in the output of the first test that used it"
        self.pid = int(pid)
        self.returncode = None

    def poll(self) -> int | None:
        """Give the exit code, or None for a process that still runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.recv(64))
            self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.poll()

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(theirs.fileno())]
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with theirs:
        server = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, pass_fds=[theirs.fileno()], **silent)
    atexit.register(server.wait)
    atexit.register(ours.close)  # goes first: it ends the server
    return ours


def serve(control: socket.socket) -> tuple[dict, list[int]] | None:
    """Fork for each request until the other side is gone; return a request, with its files, in the process for it."""
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not control:  # a process has ended
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                pid, status = key.data
                with status:
                    _tell(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                continue
            request, files, _, _ = socket.recv_fds(control, 1_000_000, 3)
            if not request:
                return None
            pid = os.fork()
            if pid == 0:
                for other in selector.get_map().values():
                    os.close(other.fd)
                os.close(files[0])
                selector.close()
                return json.loads(request), files[1:]
            for file in files[1:]:
                os.close(file)
            status = socket.socket(fileno=files[0])
            _tell(status, pid)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _tell(status: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        status.send(str(number).encode())


def become(request: dict, files: list[int]) -> None:
    """Run a script as the interpreter would."""
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["command"]
    script = Path(sys.argv[0]).absolute()
    sys.path[0] = str(script.parent)
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = str(script)
    exec(compile(script.read_bytes(), script, "exec"), module.__dict__)


def end(code: object) -> NoReturn:
    """End as the interpreter does with this argument of `sys.exit`."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    """Import, then serve."""
    if importlib.util.find_spec("torch"):  # without it, scripts of the data side import what they need themselves
        for script in SCRIPTS:
            runpy.run_path(str(ROOT / script), run_name="preload")
        for module in MODULES:
            __import__(module)
    gc.freeze()
    if found := serve(socket.socket(fileno=int(sys.argv[1]))):
        try:
            become(*found)
            end(0)
        except SystemExit as given:
            end(given.code)
        except BaseException:
            traceback.print_exc()
            end(1)


if __name__ == "__main__":
    main()
