"""
Notice ranks that died, and say which.

A rank that is gone makes the others fail in a collective with the address of a socket, or wait in it for as long as
the time-out allows. So every rank keeps a connection to rank 0 beside those of the collectives, and a thread beats on
it. The kernel closes the connection of a process that died; of one that stands still, or behind a broken cable, nothing
is heard any more. Rank 0 tells the others who it was.
"""

import json
import math
import os
import resource
import secrets
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from torch import distributed

from scfusion_fm.config.errors import CommandError
from scfusion_fm.training.ranks import Ranks
from scfusion_fm.training.stop import Stopped

MISSED_BEATS = 12  # so many in a row, and a rank counts as dead
_CONNECT_S = 60.0
_SETTLE_S = 0.2  # ranks of one host die together, but not at the same instant
_OTHER_FILES = 256  # that a process may have open besides its connections
_PART_S = 2.0  # for a last word to arrive
_BEAT, _BYE, _FAILED, _LOST = "", "bye", "failed ", "lost "
_COLLECTIVE_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class PeerLost(CommandError):
    """Another rank has died, so the run cannot go on."""


class _Link:
    """
    Lines to and from another rank.

    Parameters
    ----------
    connection
        A connected socket.
    """

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        # A word of farewell must not wait in a buffer for the answer to the beat before.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self._rest = b""
        self.heard = time.monotonic()
        self.closed = False

    def send(self, line: str) -> None:
        """Send a line; whether the other end is still there is seen when reading, after what it has said."""
        with suppress(OSError):
            self.connection.sendall(line.encode() + b"\n")

    def receive(self) -> list[str]:
        """Give the lines that have come; `closed` is set when there will be no more."""
        try:
            data = self.connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.closed = not data
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class PeerWatch:
    """
    Watch the other ranks while the body of a `with` statement runs.

    When a rank dies, stops answering or leaves by an exception, the others say which, and end: the main thread by
    `PeerLost` if the collective that it is in fails, the process with exit code 1 if it hangs there. Other exceptions
    pass through unchanged. A rank that leaves the body without an exception is not missed.

    Parameters
    ----------
    ranks
        The ranks of the launch; one alone is not watched.
    heartbeat_s
        Seconds between two beats. After 12 beats without a word a rank counts as dead. With 0, nothing is watched.

    Raises
    ------
    ValueError
        If rank 0 cannot be reached.
    PeerLost
        If a rank does not join the watch, or dies.
    """

    def __init__(self, ranks: Ranks, heartbeat_s: float):
        self._ranks = ranks
        self._interval = heartbeat_s
        self._links: dict[int, _Link] = {}
        self._losses: dict[int, str] = {}
        self._farewell: str | None = None
        self._verdict: PeerLost | None = None
        self._judged, self._left = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._ranks.world_size == 1 or self._interval == 0:
            return self
        self._links = _connect(self._ranks)
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        for rank, link in self._links.items():
            self._selector.register(link.connection, selectors.EVENT_READ, rank)
        self._thread = threading.Thread(target=self._watch, name="peer-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        # A collective fails when a peer dies, and may be faster than the watch.
        lost = _is_of_a_collective(error) and self._judged.wait(3 * self._interval)
        self._left.set()
        in_order = error is None or isinstance(error, SystemExit | Stopped)
        self._farewell = _BYE if in_order else _FAILED + _in_one_line(error)
        self._waker.send(b"!")
        self._thread.join()
        for closing in (self._wake, self._waker, self._selector):
            closing.close()
        if lost:
            raise self._verdict from error

    def _watch(self) -> None:
        """Beat, listen and judge until the main thread leaves or a rank is lost."""
        beat = turn = time.monotonic()
        due = math.inf
        while self._farewell is None and time.monotonic() < due:
            for rank in self._wait(min(beat + self._interval, due)):
                self._listen(rank)
            now = time.monotonic()
            if now >= beat + self._interval:
                beat = now
                self._tell(_BEAT)
                self._miss(now, slept=now - turn > MISSED_BEATS / 2 * self._interval)
            turn = now
            if self._losses and due == math.inf:
                due = now + _SETTLE_S
        if self._farewell is not None:
            self._part(self._farewell)
            return
        self._judge()
        self._part(_LOST + json.dumps(self._losses))
        self._end()

    def _wait(self, until: float) -> list[int]:
        """Give the ranks that can be heard, as soon as there is one, the main thread leaves, or it is time."""
        ready = self._selector.select(max(until - time.monotonic(), 0))
        return [key.data for key, _ in ready if key.data is not None]

    def _tell(self, line: str) -> None:
        for link in self._links.values():
            link.send(line)

    def _listen(self, rank: int) -> None:
        """Take in what a rank said: a beat, that it leaves, why it fails, or who is lost."""
        link = self._links[rank]
        for line in link.receive():
            if line.startswith(_FAILED):
                self._losses[rank] = line
            if line.startswith(_LOST):
                self._losses = {int(r): why for r, why in json.loads(line.removeprefix(_LOST)).items()}
            if line != _BEAT:  # that was its last word
                return self._drop(rank)
        if link.closed:
            self._losses[rank] = "died without a word"
            self._drop(rank)
        return None

    def _drop(self, rank: int) -> None:
        link = self._links.pop(rank)
        self._selector.unregister(link.connection)
        link.connection.close()

    def _miss(self, now: float, slept: bool) -> None:
        """Look who has been silent for too long."""
        silent = {rank: now - link.heard for rank, link in self._links.items()}
        limit = MISSED_BEATS * self._interval
        if slept:
            # This process itself stood still (suspended together with its job, perhaps) and cannot judge others.
            for link in self._links.values():
                link.heard = now
        elif max(silent.values(), default=0) > limit:
            # Those who fell silent with the first, as on a host without power, are dead as well.
            for rank in (rank for rank, seconds in silent.items() if seconds > limit / 2):
                self._losses[rank] = f"did not answer for {limit:.0f} s"
                self._drop(rank)

    def _part(self, word: str) -> None:
        """Say a last word to all, and stay until they have read it, for closing early could destroy it."""
        self._selector.unregister(self._wake)
        self._tell(word)
        for link in self._links.values():
            with suppress(OSError):
                link.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _PART_S
        while self._links and time.monotonic() < deadline:
            for rank in self._wait(deadline):
                self._links[rank].receive()
                if self._links[rank].closed:
                    self._drop(rank)
        for rank in list(self._links):
            self._drop(rank)

    def _judge(self) -> None:
        """Make the verdict, and tell the main thread."""
        verdict = PeerLost(_describe(self._losses, self._ranks), shown=not self._is_speaker())
        self._verdict = verdict
        if not any(why.startswith(_FAILED) for why in self._losses.values()):
            # At once, for a launcher may be about to kill this process. A rank that failed has told why itself.
            self._say()
        self._judged.set()

    def _is_speaker(self) -> bool:
        """Tell whether this rank is the first on its host that is left: one line per host is enough."""
        mine = self._ranks.rank
        host = self._ranks.hosts[mine]
        return mine == min(
            (r for r, h in enumerate(self._ranks.hosts) if h == host and r not in self._losses), default=mine
        )

    def _say(self) -> None:
        """Print the verdict, if nobody has."""
        if not self._verdict.shown:
            self._verdict.shown = True
            print(f"error: {self._verdict}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        """Give the main thread a little time to leave by itself, then end the process."""
        if not self._left.wait(2 * self._interval):
            try:
                self._say()
            finally:
                # The main thread hangs in a collective, where no exception reaches it.
                os._exit(1)


def _connect(ranks: Ranks) -> dict[int, _Link]:
    """
    Connect all ranks with rank 0.

    Raises
    ------
    ValueError
        If rank 0 cannot be reached.
    PeerLost
        If ranks do not come.
    """
    server, meeting = None, [None]
    if ranks.rank == 0:
        _allow_files(ranks.world_size + _OTHER_FILES)
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        server = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=family == socket.AF_INET6)
        # Others on the network may knock at the port as well; ranks know the token.
        meeting = [(server.getsockname()[1], secrets.token_hex(16))]
    distributed.broadcast_object_list(meeting, src=0)
    port, token = meeting[0]
    if server is not None:
        with server:
            return _welcome(server, token, ranks)
    return {0: _Link(_knock(port, f"{token} {ranks.rank}\n"))}


def _knock(port: int, hello: str) -> socket.socket:
    """
    Connect with rank 0.

    Raises
    ------
    ValueError
        If it cannot be reached.
    """
    address = os.environ["MASTER_ADDR"]
    try:
        connection = socket.create_connection((address, port), timeout=_CONNECT_S)
        connection.sendall(hello.encode())
        connection.recv(1)
    except OSError as error:
        raise ValueError(
            f"`MASTER_ADDR` must be an address of rank 0 that lets other hosts connect, got {address!r}, where port "
            f"{port} says: {error}. Open the ports between the hosts, or set run.heartbeat_s=0."
        ) from error
    return connection


def _welcome(server: socket.socket, token: str, ranks: Ranks) -> dict[int, _Link]:
    """
    Wait until all ranks have come, and let them begin.

    Raises
    ------
    PeerLost
        If some do not come.
    """
    links: dict[int, _Link] = {}
    deadline = time.monotonic() + _CONNECT_S
    while len(links) < ranks.world_size - 1:
        if time.monotonic() > deadline:
            missing = set(range(1, ranks.world_size)) - links.keys()
            for link in links.values():
                link.connection.close()
            raise PeerLost(
                f"{ranks.name(missing)} could not reach rank 0 on host {ranks.hosts[0]}{_tell_low_limit(ranks)}."
            )
        with suppress(OSError):
            server.settimeout(1)
            connection = server.accept()[0]
            connection.settimeout(5)
            said = connection.recv(100).decode(errors="replace").split()
            if len(said) == 2 and said[0] == token:
                links[int(said[1])] = _Link(connection)
            else:
                connection.close()
    for link in links.values():
        link.send(_BEAT)
    return links


def _allow_files(number: int) -> None:
    """Let this process have so many files open, as far as it may decide that; 1,024 is a usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        number = min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def _tell_low_limit(ranks: Ranks) -> str:
    """Say that this process may not have a connection for every rank, if that is so."""
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], ranks.world_size + _OTHER_FILES
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return ""
    return f", which may open {limit:,} files and needs {needed:,}: raise `ulimit -Hn`, or set run.heartbeat_s=0"


def _describe(losses: dict[int, str], ranks: Ranks) -> str:
    """Write who is lost, why, and what to do."""
    by_reason: dict[str, list[int]] = {}
    for rank, why in losses.items():
        by_reason.setdefault(why.replace(_FAILED, "failed: ", 1), []).append(rank)
    lost = "; ".join(f"{ranks.name(found)} {why}" for why, found in by_reason.items())
    return f"{lost}. All ranks stop; the same command goes on from the newest checkpoint."


def _is_of_a_collective(error: BaseException | None) -> bool:
    """Tell errors of a collective from others; gloo raises plain RuntimeErrors."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _COLLECTIVE_WORDS)


def _in_one_line(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:500]
