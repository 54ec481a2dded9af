"""Pretrain on two nodes that are two network namespaces of this machine, and let one of them die.

    python scripts/two_nodes.py

It needs root, ip, nsenter, unshare, sshd, ssh-keygen and pdsh (Debian: iproute2, util-linux, openssh-server, pdsh), and
ends with 77 where they are missing. Each node has its own host name, network interface and sshd; a cable (a veth pair)
joins them. The same tiny run is started by deepspeed with a hostfile, by torchrun, and as srun would, and must give the
losses of two ranks on one machine. Then all processes of one node are killed: the other node has to name the lost rank
in time, and the same command has to go on to the same losses. In another run the cable is cut.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scfusion_fm.data.prepare.synthesize import synthesize_atlas
from scfusion_fm.data.prepare.synthetic import SyntheticSettings

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("ip", "nsenter", "unshare", "sshd", "ssh-keygen", "pdsh", "deepspeed", "torchrun")
MISSING = 77  # what test harnesses understand as: skipped
SSH_PORT, MASTER_PORT = 2222, 29500
HEARTBEAT_S = 0.5
CONFIG = f"""
patch_size: 2
model: {{hidden_size: 16, num_attention_heads: 2, intermediate_size: 16, num_hidden_layers: 1, num_decoder_layers: 1,
  ttt_mini_batch_size: 4}}
optim: {{epochs: 8, global_batch_size: 16, micro_batch_size: 4, lr: 0.01}}
run: {{log_every: 1, eval_every: 50, save_every: 10, tensorboard: false, heartbeat_s: {HEARTBEAT_S}}}
deepspeed: {ROOT}/configs/deepspeed/zero2.json
"""
SSHD = """
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
StrictModes no
UsePAM no
PidFile none
"""
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
    "PYTHONPATH": str(ROOT),
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "cable",  # the same name on both nodes
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Node:
    """A host name, a network namespace and an sshd in them."""

    name: str
    address: str
    directory: Path
    _sshd: subprocess.Popen | None = None

    def boot(self) -> None:
        """Start the sshd, which keeps the host name alive, and wait until it answers."""
        start = f"hostname {self.name} && exec {shutil.which('sshd')} -D -e -f {self.directory}/sshd_config"
        log = (self.directory / f"{self.name}.sshd.log").open("a")
        with log:
            self._sshd = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", start], stderr=log
            )
        listening = ["ip", "netns", "exec", self.name, "sh", "-c", f"ss -ltn | grep -q :{SSH_PORT}"]
        _wait_for(lambda: subprocess.run(listening, check=False).returncode == 0, 10, f"sshd of {self.name}")

    def start(self, *command: str | Path, log: Path, **environment: str) -> subprocess.Popen:
        """Start a command on this node."""
        here = ["nsenter", f"--target={self._sshd.pid}", "--net", "--uts", "--"]
        with log.open("a") as file:
            return subprocess.Popen(
                [*here, *map(str, command)],
                cwd=self.directory,
                env=os.environ | ENVIRONMENT | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """Kill all processes of this node."""
        for pid in _run("ip", "netns", "pids", self.name).split():
            with contextlib.suppress(ProcessLookupError):  # its parent was killed before it
                os.kill(int(pid), signal.SIGKILL)
        if self._sshd is not None:
            self._sshd.wait()


@contextlib.contextmanager
def two_nodes(directory: Path) -> Iterator[tuple[Node, Node]]:
    """Make two nodes and the cable; everything goes when the block is left."""
    for key in ("key", "host_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key)
    (directory / "sshd_config").write_text(SSHD.format(port=SSH_PORT, directory=directory))
    Path("/run/sshd").mkdir(exist_ok=True)
    number = os.getpid()
    nodes = (Node(f"nodea{number}", "10.77.0.1", directory), Node(f"nodeb{number}", "10.77.0.2", directory))
    a, b = nodes
    try:
        for node in nodes:
            _run("ip", "netns", "add", node.name)
        _run("ip", "-n", a.name, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b.name)
        for node in nodes:
            _run("ip", "-n", node.name, "address", "add", f"{node.address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                _run("ip", "-n", node.name, "link", "set", link, "up")
            node.boot()
        yield nodes
    finally:
        known = _run("ip", "netns", "list")
        for node in nodes:
            if node.name in known:
                node.kill()
                _run("ip", "netns", "delete", node.name)


def on_one_machine(nodes: tuple[Node, Node], arguments: list, log: Path) -> list[subprocess.Popen]:
    """Start both ranks on the first node."""
    launcher = ["torchrun", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={MASTER_PORT}"]
    return [nodes[0].start(*launcher, *arguments, log=log, GLOO_SOCKET_IFNAME="lo")]


def by_hostfile(nodes: tuple[Node, Node], arguments: list, log: Path) -> list[subprocess.Popen]:
    """Start a rank on each node by deepspeed, over pdsh and ssh."""
    directory = nodes[0].directory
    (directory / "hosts").write_text("".join(f"{node.address} slots=1\n" for node in nodes))
    (directory / ".deepspeed_env").write_text("".join(f"{k}={v}\n" for k, v in ENVIRONMENT.items()))
    ssh = f"-p {SSH_PORT} -i {directory}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -q"
    launcher = ["deepspeed", "--hostfile", directory / "hosts", "--no_ssh_check"]
    launcher += ["--master_addr", nodes[0].address, "--master_port", str(MASTER_PORT)]
    return [nodes[0].start(*launcher, *arguments, log=log, PDSH_SSH_ARGS_APPEND=ssh)]


def by_torchrun(nodes: tuple[Node, Node], arguments: list, log: Path) -> list[subprocess.Popen]:
    """Start torchrun on each node, as an operator or a batch system does."""
    launcher = ["torchrun", "--nnodes=2", "--nproc-per-node=1", f"--master-port={MASTER_PORT}"]
    launcher.append(f"--master-addr={nodes[0].address}")
    return [node.start(*launcher, f"--node-rank={i}", *arguments, log=log) for i, node in enumerate(nodes)]


def by_srun(nodes: tuple[Node, Node], arguments: list, log: Path) -> list[subprocess.Popen]:
    """Start a task on each node with the variables that srun sets."""
    slurm = {"SLURM_JOB_ID": "77", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    slurm["MASTER_ADDR"] = nodes[0].address
    return [
        node.start(sys.executable, *arguments, log=log, SLURM_PROCID=str(i), **slurm) for i, node in enumerate(nodes)
    ]


def main() -> int:
    """Run everything; give the exit code."""
    os.environ["PATH"] = ENVIRONMENT["PATH"]
    missing = [tool for tool in TOOLS if shutil.which(tool) is None] + ["root"] * (os.geteuid() != 0)
    if missing:
        print(f"two nodes need what is missing here: {', '.join(missing)}")
        return MISSING
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes are removed on the way out
    with tempfile.TemporaryDirectory(prefix="two_nodes_") as name, two_nodes(Path(name)) as nodes:
        directory = Path(name)
        settings = SyntheticSettings(n_obs=200, n_genes=60, density=0.3, n_proteins=5, n_datasets=1, n_cell_types=3)
        synthesize_atlas(settings, directory / "atlas.zarr")
        (directory / "run.yaml").write_text(CONFIG)
        expected = finish("one machine", nodes, on_one_machine)
        for title, launcher in {"hostfile": by_hostfile, "torchrun": by_torchrun, "srun": by_srun}.items():
            _expect(finish(title, nodes, launcher) == expected, f"{title}: the losses are those of one machine")
        die(nodes, by_hostfile, "killed", nodes[1].kill, "died without a word")
        nodes[1].boot()
        _expect(finish("killed", nodes, by_hostfile) == expected, "killed: resumed to the losses of one machine")
        cut = ["ip", "-n", nodes[1].name, "link", "set", "cable", "down"]
        die(nodes, by_srun, "unplugged", lambda: _run(*cut), f"did not answer for {12 * HEARTBEAT_S:.0f} s")
    return 0


def finish(title: str, nodes: tuple[Node, Node], launcher: Callable) -> list[float]:
    """Run to the end; give the losses."""
    output, log, begun = nodes[0].directory / title, nodes[0].directory / f"{title}.log", time.monotonic()
    processes = launcher(nodes, _arguments(output), log)
    codes = [process.wait(timeout=240) for process in processes]
    _expect(codes == [0] * len(codes), f"{title}: ended with {codes} after {time.monotonic() - begun:.0f} s", log)
    return _losses(output)


def die(nodes: tuple[Node, Node], launcher: Callable, title: str, strike: Callable, reason: str) -> None:
    """Run until there is a checkpoint, strike, and check that the first node ends in time and says why."""
    output, log = nodes[0].directory / title, nodes[0].directory / f"{title}.log"
    processes = launcher(nodes, _arguments(output), log)
    _wait_for(lambda: (output / "metrics.jsonl").exists() and len(_losses(output)) > 25, 180, f"steps of {title}", log)
    strike()
    begun = time.monotonic()
    message = f"error: rank 1 on host {nodes[1].name} {reason}"
    limit = 12 * HEARTBEAT_S + 5
    _wait_for(lambda: message in log.read_text(), limit, f"{title}: {message}", log)
    print(f"ok {title}: {time.monotonic() - begun:.1f} s later: {message}", flush=True)
    codes = [process.wait(timeout=60) for process in processes]
    _expect(0 not in codes, f"{title}: ended with {codes}, {time.monotonic() - begun:.1f} s later", log)


def _arguments(output: Path) -> list:
    atlas = output.parent / "atlas.zarr"
    return [ROOT / "pretrain/run.py", "--config", output.parent / "run.yaml", f"output_dir={output}", f"atlas={atlas}"]


def _losses(output: Path) -> list[float]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record["loss"] for record in records]


def _run(*command: str | Path) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def _wait_for(done: Callable[[], bool], seconds: float, what: str, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        _expect(time.monotonic() < deadline, f"waiting for {what}", log, quiet=True)
        time.sleep(0.1)


def _expect(holds: bool, what: str, log: Path | None = None, quiet: bool = False) -> None:
    """Say what holds; end with the log of the run when it does not."""
    if not holds:
        sys.exit(f"{log.read_text()[-5000:] if log else ''}\nFAILED {what}")
    if not quiet:
        print(f"ok {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
