"""Ranks that die are named by the others, soon; a clean end is no alarm."""

import os
import resource
import signal
import socket
import threading
import time
from functools import partial

import pytest
import torch
from gloo_ranks import add, add_forever, finish, launch, watched
from torch import distributed

from scfusion_fm.training import peers
from scfusion_fm.training.peers import MISSED_BEATS, PeerLost, PeerWatch
from scfusion_fm.training.ranks import Ranks

BEAT_S = 0.2
LIMIT_S = BEAT_S * MISSED_BEATS
ADVICE = "All ranks stop; the same command goes on from the newest checkpoint.\n"


def signal_itself(rank, victims, number):
    for _ in range(3):
        add(rank)
    if rank in victims:
        os.kill(os.getpid(), number)
    add_forever(rank)


@pytest.mark.parametrize(
    ("hosts", "victims", "speakers", "named"),
    [
        ("aab", {2}, {0}, "rank 2 on host b"),
        ("aab", {0}, {1, 2}, "rank 0 on host a"),
        ("abbc", {1, 2}, {0, 3}, "ranks 1-2 on host b"),
    ],
)
def test_killed_ranks_are_named_once_per_host(tmp_path, hosts, victims, speakers, named):
    ranks = launch(tmp_path, watched, len(hosts), hosts, 5.0, partial(signal_itself, victims=victims, number=9))
    codes, said = finish(tmp_path, ranks, timeout_s=20)
    for rank in set(range(len(hosts))) - victims:
        assert codes[rank] == 1, said[rank]
        assert said[rank] == (f"error: {named} died without a word. {ADVICE}" if rank in speakers else "")


@pytest.mark.parametrize(("victim", "named"), [(2, "rank 2 on host b"), (0, "rank 0 on host a")])
def test_rank_that_stands_still_is_named_within_twelve_beats_and_a_little(tmp_path, victim, named):
    ranks = launch(tmp_path, watched, 3, "aab", BEAT_S, partial(signal_itself, victims={victim}, number=signal.SIGSTOP))
    others = [process for rank, process in enumerate(ranks) if rank != victim]
    begun = time.monotonic()
    for process in others:
        process.join(20)
    assert time.monotonic() - begun < LIMIT_S + 3 + 5  # time-out of the verdict, and five seconds for a busy machine
    codes, said = finish(tmp_path, ranks, timeout_s=0)
    expected = f"error: {named} did not answer for {LIMIT_S:.0f} s. {ADVICE}"
    assert [code for rank, code in enumerate(codes) if rank != victim] == [1, 1], said
    assert said[1 if victim == 0 else 0] == expected
    assert codes[victim] is None


def sleep_and_leave(rank, pauses):
    add(rank)
    time.sleep(pauses[rank])


@pytest.mark.parametrize("pauses", [(0, 0, 0), (0, 1, 3), (3, 0, 1)])
def test_ranks_that_finish_apart_are_not_missed(tmp_path, pauses):
    # Pauses are longer than the limit: the thread beats while the main thread is busy, and a finished rank is let go.
    ranks = launch(tmp_path, watched, 3, "abc", BEAT_S, partial(sleep_and_leave, pauses=pauses))
    assert finish(tmp_path, ranks) == ([0, 0, 0], ["", "", ""])


def fail_on(rank, culprits, error):
    for _ in range(3):
        add(rank)
    if rank in culprits:
        raise error
    add_forever(rank)


def test_own_error_keeps_its_traceback_and_the_others_name_it(tmp_path):
    ranks = launch(
        tmp_path, watched, 3, "aab", 5.0, partial(fail_on, culprits={1}, error=ZeroDivisionError("by\nzero"))
    )
    codes, said = finish(tmp_path, ranks, timeout_s=20)
    assert codes == [1, 1, 1]
    assert "in fail_on" in said[1]
    assert "ZeroDivisionError: by\nzero" in said[1]
    assert "error: " not in said[1]
    assert said[0] == said[2] == f"error: rank 1 on host a failed: ZeroDivisionError: by. {ADVICE}"


def test_mistake_that_all_ranks_see_is_told_as_if_there_were_one(tmp_path):
    mistake = partial(fail_on, culprits={0, 1, 2}, error=ValueError("`lr` must be positive, got -1."))
    codes, said = finish(tmp_path, launch(tmp_path, watched, 3, "aab", 5.0, mistake))
    assert codes == [2, 2, 2]
    assert said == ["error: `lr` must be positive, got -1.\n", "", ""]


def leave_with_75(rank, pauses):
    sleep_and_leave(rank, pauses)
    raise SystemExit(75)


def test_ranks_that_leave_with_an_exit_code_are_not_missed(tmp_path):
    ranks = launch(tmp_path, watched, 3, "abc", BEAT_S, partial(leave_with_75, pauses=(0, 0.5, 1)))
    assert finish(tmp_path, ranks) == ([75, 75, 75], ["", "", ""])


def test_broken_collective_among_living_ranks_is_told_as_it_is(tmp_path):
    broken = partial(fail_on, culprits={0, 1}, error=RuntimeError("gloo/transport: Timed out waiting"))
    codes, said = finish(tmp_path, launch(tmp_path, watched, 2, "ab", BEAT_S, broken))
    assert codes == [1, 1]
    assert all("RuntimeError: gloo/transport" in text for text in said)
    assert not any("PeerLost" in text for text in said)


def stop_on_sigterm(rank, directory):
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    (directory / f"{rank}.ready").touch()
    stop = torch.zeros(1)
    while not stop:
        stop = torch.tensor([float(bool(asked))])
        distributed.all_reduce(stop)
        time.sleep(0.01)


def launch_stoppable(directory):
    ranks = launch(directory, watched, 3, "abc", BEAT_S, partial(stop_on_sigterm, directory=directory))
    while len(list(directory.glob("*.ready"))) < 3:
        assert all(process.is_alive() for process in ranks)
        time.sleep(0.05)
    return ranks


def test_stop_by_sigterm_is_no_alarm(tmp_path):
    ranks = launch_stoppable(tmp_path)
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert finish(tmp_path, ranks) == ([0, 0, 0], ["", "", ""])


def test_job_that_was_suspended_goes_on(tmp_path):
    ranks = launch_stoppable(tmp_path)
    for number, pause in ((signal.SIGSTOP, 1.5 * LIMIT_S), (signal.SIGCONT, 1), (signal.SIGTERM, 0)):
        for process in ranks:
            os.kill(process.pid, number)
        time.sleep(pause)
    assert finish(tmp_path, ranks) == ([0, 0, 0], ["", "", ""])


def test_one_rank_or_no_interval_is_not_watched():
    threads = threading.active_count()
    for watch in (PeerWatch(Ranks(0, 1, ("a",)), 5.0), PeerWatch(Ranks(0, 2, ("a", "b")), 0.0)):
        with watch:
            assert threading.active_count() == threads


def test_rank_0_lets_in_its_ranks_only_and_names_those_that_do_not_come(monkeypatch):
    monkeypatch.setattr(peers, "_CONNECT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        callers = [socket.create_connection(address) for _ in range(3)]
        for caller, hello in zip(callers, ("GET / HTTP/1.1\r\n\r\n", "secret 2\n", "guess 1\n"), strict=True):
            caller.sendall(hello.encode())
        with pytest.raises(PeerLost, match=r"^rank 1 on host b could not reach rank 0 on host a"):
            peers._welcome(server, "secret", Ranks(0, 3, ("a", "b", "c")))
        assert [caller.recv(1) for caller in callers[::2]] == [b"", b""]
    for caller in callers:
        caller.close()


def test_rank_0_out_of_reach_is_told(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match=r"`MASTER_ADDR` must be an address of rank 0 .* got '127.0.0.1'"):
            peers._knock(free.getsockname()[1], "hello")


def test_rank_0_may_have_a_connection_for_each_rank_or_says_why_not(monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
        peers._allow_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, limits[1])
        peers._allow_files(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    monkeypatch.setattr(peers.resource, "getrlimit", lambda what: (200, 200))
    monkeypatch.setattr(peers, "_CONNECT_S", -1.0)
    expected = r"^rank 1 on host b could not reach rank 0 on host a, which may open 200 files and needs 258: raise"
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(PeerLost, match=expected):
        peers._welcome(server, "secret", Ranks(0, 2, ("a", "b")))
