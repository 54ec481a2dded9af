"""Runs that are stopped, killed, or moved to other ranks and stages go on as if nothing had happened."""

import json
import os
import random
import resource
import signal
import time

import numpy as np
import pytest
from launch import Job, losses, read_metrics, write_config

from scfusion_fm.training.checkpoint import complete_checkpoints, newest_checkpoint

KILLS = int(os.environ.get("SCFUSION_KILLS", "2"))
PAIRS = "optim.micro_batch_size=2"


def stages(directory, **more):
    """Write DeepSpeed settings of all stages."""
    for stage in range(4):
        (directory / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": {"stage": stage}} | more))
    return [f"deepspeed={directory / f'zero{stage}.json'}" for stage in range(4)]


@pytest.fixture(scope="module")
def whole(atlas_path, tmp_path_factory):
    """A run on one rank that nobody stopped."""
    directory = tmp_path_factory.mktemp("whole")
    config, output = write_config(directory, atlas_path)
    Job(1, directory / "logs", "--config", config).finish()
    return output


@pytest.fixture(scope="module")
def in_pairs(atlas_path, tmp_path_factory):
    """The same run with two cells per forward pass."""
    directory = tmp_path_factory.mktemp("in_pairs")
    config, output = write_config(directory, atlas_path)
    Job(1, directory / "logs", "--config", config, PAIRS).finish()
    return output


def assert_same_records(output, whole):
    for split in ("train", "val"):
        assert losses(output, split).tolist() == losses(whole, split).tolist()
    steps = [r["step"] for r in read_metrics(output) if r["split"] == "train"]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_run_goes_on_bit_for_bit(whole, in_pairs, atlas_path, tmp_path, signum):
    config, output = write_config(tmp_path, atlas_path)
    # two cells per forward pass: a signal comes in the middle of the eight that make a step
    job = Job(1, tmp_path / "logs", "--config", config, PAIRS)
    job.wait_for("step 6/")
    job.send(signum)
    if signum == signal.SIGKILL:
        job.finish(-signal.SIGKILL)
    else:
        assert "the same command goes on from there" in job.finish(75)
        last = newest_checkpoint(output / "checkpoints").manifest["step"]
        assert last == read_metrics(output)[-1]["step"]
        assert 6 <= last < 14
    done = Job(1, tmp_path / "logs", "--config", config, PAIRS).finish()
    assert "resumed run" in done
    assert_same_records(output, in_pairs)
    np.testing.assert_allclose(losses(output), losses(whole), rtol=1e-6)


# Ranks, ZeRO stage, and the step at which the run is stopped. The first chain has every change that the others have.
@pytest.mark.parametrize(
    "moves",
    [
        ((2, 2, 2), (4, 1, 6), (3, 3, 10), (2, 0, 14), (1, 3, None)),
        pytest.param(((2, 2, 3), (4, 1, 8), (1, 3, None)), marks=pytest.mark.slow),
        pytest.param(((2, 0, 5), (3, 3, None)), marks=pytest.mark.slow),
        pytest.param(((3, 3, 6), (2, 0, None)), marks=pytest.mark.slow),
    ],
)
def test_run_moves_between_ranks_and_stages(atlas_path, tmp_path, moves):
    size = 12 if any(ranks == 3 for ranks, _, _ in moves) else 16  # which 3 ranks cannot share
    deepspeed, settings = stages(tmp_path), [f"optim.global_batch_size={size}", "loader.lanes=12"]
    config, output = write_config(tmp_path, atlas_path)
    for ranks, stage, step in moves:
        micro = f"optim.micro_batch_size={size // ranks // 2}"
        job = Job(ranks, tmp_path / "logs", "--config", config, deepspeed[stage], *settings, micro)
        if step:
            job.wait_for(f"step {step}/")
            job.send(signal.SIGTERM)
        job.finish(75 if step else 0)
    config, alone = write_config(tmp_path, atlas_path, "alone")
    Job(1, tmp_path / "logs", "--config", config, *settings, "optim.micro_batch_size=4").finish()
    assert len(losses(output)) == len(losses(alone))
    np.testing.assert_allclose(losses(output), losses(alone), rtol=1e-6)
    np.testing.assert_allclose(losses(output, "val"), losses(alone, "val"), rtol=1e-6)


def test_run_survives_kills_at_any_moment(atlas_path, tmp_path):
    config, whole = write_config(tmp_path, atlas_path, "whole")
    settings = ["run.save_every=2", "run.eval_every=7", "optim.epochs=4"]
    Job(2, tmp_path / "logs", "--config", config, *settings).finish()
    config, output = write_config(tmp_path, atlas_path)
    chance = random.Random(7)
    for number in range(KILLS):
        before = complete_checkpoints(output / "checkpoints")
        job = Job(2, tmp_path / "logs", "--config", config, *settings)
        job.wait_for("step ")
        kill(job, output / "checkpoints", chance, during_save=number % 2 == 0)
        after = complete_checkpoints(output / "checkpoints")
        assert len(after) >= min(len(before), 1)
        for checkpoint in after:
            assert newest_checkpoint(output / "checkpoints", int(checkpoint.name[5:])).damage() is None
        steps = [r["step"] for r in read_metrics(output) if r["split"] == "train"]
        newest = int(after[-1].name[5:]) if after else 0
        assert max(steps, default=0) - newest <= 2  # no more than `save_every` steps are lost
    Job(2, tmp_path / "logs", "--config", config, *settings).finish()
    assert_same_records(output, whole)


def kill(job, checkpoints, chance, during_save):
    """Kill one rank or all, during steps or while files are being written; the others must end by themselves."""
    end = time.monotonic() + chance.uniform(0, 1)
    while time.monotonic() < end or during_save:
        if during_save and time.monotonic() > end and list(checkpoints.glob("*.partial")):
            break
        if job.processes[0].poll() is not None:
            break
        time.sleep(0.0005)
    victims = [chance.randrange(2)] if chance.random() < 0.5 else []
    job.send(signal.SIGKILL, *victims)
    job.wait(timeout_s=60)


def test_full_disk_ends_the_run_and_leaves_older_checkpoints(atlas_path, tmp_path, whole):
    config, output = write_config(tmp_path, atlas_path)
    job = Job(2, tmp_path / "logs", "--config", config)
    job.wait_for("step 5/")
    for process in job.processes:  # files of ranks are larger, records are not
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    output_text = job.finish(2)
    assert "the checkpoint of step 8 could not be written" in output_text
    assert "The older ones are intact" in output_text
    assert "Traceback" not in output_text
    assert [d.name for d in (output / "checkpoints").iterdir()] == ["step_00000004"]
    Job(2, tmp_path / "logs", "--config", config).finish()
    np.testing.assert_allclose(losses(output), losses(whole), rtol=1e-6)


def test_damaged_checkpoint_is_passed_over(atlas_path, tmp_path, whole):
    config, output = write_config(tmp_path, atlas_path)
    Job(1, tmp_path / "logs", "--config", config).finish()
    newest = complete_checkpoints(output / "checkpoints")[-1]
    file = newest / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    done = Job(1, tmp_path / "logs", "--config", config).finish()
    assert "warning: checkpoint step_00000014 is damaged and not used: rank_00000.safetensors has" in done
    assert "step 12 of 14" in done
    assert_same_records(output, whole)
    for checkpoint in complete_checkpoints(output / "checkpoints"):
        (checkpoint / "rank_00000.safetensors").unlink()
    job = Job(1, tmp_path / "logs", "--config", config)
    assert "must hold at least one intact checkpoint, got 2 damaged ones" in job.finish(2)


class ImpatientJob(Job):
    script = "tests/pretrain/run_impatiently.py"


def test_second_run_in_a_directory_is_refused(atlas_path, tmp_path, whole):
    config, output = write_config(tmp_path, atlas_path)
    first = Job(1, tmp_path / "first", "--config", config, PAIRS)
    first.wait_for("step 1/")
    first.send(signal.SIGSTOP)
    second = ImpatientJob(1, tmp_path / "second", "--config", config)
    assert "must not be in use" in second.finish(2)
    first.send(signal.SIGCONT)
    first.finish()
    np.testing.assert_allclose(losses(output), losses(whole), rtol=1e-6)
    (output / "run.json").write_text('{"seed": ')
    assert "remove it to go on from the checkpoints" in Job(1, tmp_path / "third", "--config", config).finish(2)


def test_rank_with_other_settings_ends_the_run(atlas_path, tmp_path):
    config, output = write_config(tmp_path, atlas_path)
    job = Job(2, tmp_path / "logs", "--config", config, overrides={1: ["optim.lr=0.1"]})
    assert "got others on rank 1 than on rank 0: optim.lr: 0.01 -> 0.1" in job.finish(2)
    assert not output.exists()


def test_signals_at_the_start_and_at_the_end_do_not_cost_the_exit_code(atlas_path, tmp_path):
    config, _ = write_config(tmp_path, atlas_path)
    job = Job(2, tmp_path / "logs", "--config", config)
    job.wait_for("new run in")  # the model is not yet trained
    job.send(signal.SIGUSR1)
    while any(p.poll() is None for p in job.processes):  # as a launcher does when the first rank has ended
        job.send(signal.SIGTERM)
        time.sleep(0.05)
    assert "stopped at step" in job.finish(75)


def test_guard_stops_a_run_at_a_jump_and_names_the_cells(atlas_path, tmp_path):
    config, output = write_config(tmp_path, atlas_path)
    arguments = ["--config", config, "optim.lr=1e4", "guard.loss_factor=1.01", "guard.window=1", "guard.action=stop"]
    text = Job(2, tmp_path / "logs", *arguments).finish(2)
    assert "the guard ended the run at step " in text
    (saved,) = (output / "bad_steps").iterdir()
    content = np.load(saved)
    assert content["rows"].shape == content["passes"].shape == content["rna_loss"].shape == (16,)
    text = Job(2, tmp_path / "logs", *arguments[:-1], "guard.max_skips=100").finish()
    assert "no update, 1 skipped so far" in text
    skipped = [r["skipped_steps"] for r in read_metrics(output) if r["split"] == "train"]
    assert skipped == sorted(skipped)
    assert skipped[-1] >= 1
