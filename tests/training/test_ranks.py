"""Ranks find each other however they were started, wait no longer than told, and share their directory."""

import json
import os
import time
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
from deepspeed import comm
from gloo_ranks import add, finish, launch
from torch import distributed

from scfusion_fm.config.command import run_command
from scfusion_fm.training import launch as launch_module
from scfusion_fm.training import ranks as ranks_module
from scfusion_fm.training.ranks import Ranks, check_shared, leaving_ranks, start_ranks


def as_command(rank, body):
    run_command(lambda: body(rank))


def tell(rank, directory, environment, timeout_s=60.0):
    """Become a rank in an environment that a launcher made, and write who we are."""
    port = os.environ["MASTER_PORT"]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.environ |= {k: v.format(rank=rank, port=port) for k, v in environment.items()}
    ranks = start_ranks(1, timeout_s)
    add(rank)
    told = {k: os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    (directory / f"{rank}.json").write_text(json.dumps([ranks.rank, ranks.world_size, len(ranks.hosts), told]))


SRUN = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}", "SLURM_STEP_NUM_TASKS": "2"}
MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
TORCHRUN = MASTER | {"RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "world_size"),
    [(SRUN | MASTER, 2), (TORCHRUN | BATCH_SCRIPT, 2), (BATCH_SCRIPT, 1), ({}, 1)],
    ids=["srun", "torchrun in a batch script", "python in a batch script", "python"],
)
def test_launchers_are_understood(tmp_path, environment, world_size):
    ranks = launch(tmp_path, as_command, world_size, partial(tell, directory=tmp_path, environment=environment))
    codes, said = finish(tmp_path, ranks)
    assert codes == [0] * world_size, said
    for rank in range(world_size):
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [rank, world_size, world_size, told]


def test_srun_without_a_place_to_meet_is_refused_once(tmp_path):
    ranks = launch(tmp_path, as_command, 2, partial(tell, directory=tmp_path, environment=SRUN))
    codes, said = finish(tmp_path, ranks)
    assert codes == [2, 2]
    assert said[0].startswith("error: `MASTER_ADDR` must be set when srun starts more than one task, got none.")
    assert said[1] == ""


@pytest.mark.parametrize(("job", "port"), [("7", "10007"), ("123456", "13456")])
def test_tasks_of_a_job_agree_on_a_port(monkeypatch, job, port):

    for name, value in (SRUN | {"SLURM_JOB_ID": job, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert launch_module._read_slurm_step()["MASTER_PORT"] == port


def wait_in_vain(rank, directory):
    start_ranks(1, 3.0)
    groups = [None, comm.new_group([0, 1])]
    if rank == 1:
        time.sleep(15)
    seconds = []
    for group in groups:
        begun = time.monotonic()
        with pytest.raises(RuntimeError):
            distributed.barrier(group)
        seconds.append(time.monotonic() - begun)
    (directory / "seconds").write_text(json.dumps(seconds))


def test_no_collective_waits_longer_than_told_in_groups_of_deepspeed_neither(tmp_path):
    ranks = launch(tmp_path, as_command, 2, partial(wait_in_vain, directory=tmp_path))
    ranks[0].join(30)
    codes, said = finish(tmp_path, ranks, timeout_s=0)
    assert codes[0] == 0, said
    assert all(2 < seconds < 6 for seconds in json.loads((tmp_path / "seconds").read_text()))


def part(rank, directory):
    start_ranks(1, 60.0)
    warnings.warn("barrier(): using the device under current context. You can specify `device_id`", stacklevel=1)
    given = []
    barrier, comm.barrier = comm.barrier, lambda device_ids: given.append(device_ids) or barrier()
    with leaving_ranks():
        pass
    (directory / f"{rank}.json").write_text(json.dumps(given))


def test_ranks_part_on_their_own_device_without_a_warning(tmp_path, monkeypatch):
    codes, said = finish(tmp_path, launch(tmp_path, as_command, 1, partial(part, directory=tmp_path)))
    assert (codes, said) == ([0], [""])
    assert json.loads((tmp_path / "0.json").read_text()) == [None]
    gpu = SimpleNamespace(device_name=lambda: "cuda", current_device=lambda: 3)
    monkeypatch.setattr(ranks_module, "get_accelerator", lambda: gpu)
    assert ranks_module._own_device() == [3]


def share(rank, directories):
    ranks = start_ranks(1, 60.0)
    check_shared(directories[rank], Ranks(rank, ranks.world_size, ("a", "b", "b")[: ranks.world_size]), patience_s=1.0)


def test_directory_that_all_see_is_made_and_left_empty(tmp_path):
    shared = tmp_path / "runs/new"
    codes, said = finish(tmp_path, launch(tmp_path, as_command, 2, partial(share, directories=[shared] * 2)))
    assert codes == [0, 0], said
    assert list(shared.iterdir()) == []


def test_directory_that_is_a_file_is_refused_on_all_ranks(tmp_path):
    file = tmp_path / "file"
    file.touch()
    codes, said = finish(tmp_path, launch(tmp_path, as_command, 2, partial(share, directories=[file] * 2)))
    assert codes == [2, 2]
    assert said[0].startswith("error: `output_dir` must be a directory that may be written to, got")
    assert said[1] == ""


def test_directory_that_is_another_elsewhere_is_refused_on_all_ranks(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    other.mkdir()
    ranks = launch(tmp_path, as_command, 3, partial(share, directories=[mine, other, other]))
    codes, said = finish(tmp_path, ranks)
    assert codes == [2, 2, 2]
    assert "which is not that of rank 0 on host a for ranks 1-2 on host b." in said[0]
    assert said[1:] == ["", ""]
    assert list(mine.iterdir()) == []


def test_ranks_are_named_by_host():
    ranks = Ranks(0, 7, tuple("abbbccc"))
    assert ranks.name([5, 3, 2, 1]) == "ranks 1-3 on host b; rank 5 on host c"
    assert ranks.name([4, 6]) == "ranks 4, 6 on host c"
