"""Several ranks fine-tune to the same result as one, and rank 0 alone speaks and writes."""

import json
import signal
import sys

import numpy as np
import pytest
from launch import ROOT, Job, free_port, run
from make_cells import write_h5mu
from safetensors.torch import load_file

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.prepare.job import prepare_atlas
from scfusion_fm.training import launch

ANNOTATION, TRANSFER = "finetune/cell_type_annotation.py", "finetune/unimodal_transfer.py"
CROSS_MODAL = "finetune/cross_modal_prediction.py"
IMPUTATION, INTEGRATION = "finetune/protein_imputation.py", "finetune/batch_integration.py"
LONGEST_S = 600  # of a slow test, on a machine that does other things, too
ROUNDING = {"rtol": 1e-3, "atol": 1e-5}  # of weights, as docs/finetuning.md tells it


@pytest.fixture
def settings(model_dir, paired_file, tmp_path):
    """A file of settings in which the last batch of an epoch has fewer cells than there are ranks."""
    file = tmp_path / "config.yaml"
    file.write_text(
        f"model: {model_dir}\ndata: {paired_file}\n"
        "optim: {epochs: 2, batch_size: 37, lr: 0.01, threads: 1, token_dropout: 0.3}\n"
    )
    return file


def start(ranks, script, settings, output, *overrides):
    kind = type("FinetuneJob", (Job,), {"script": script})
    return kind(ranks, output.with_suffix(".logs"), "--config", settings, f"output_dir={output}", *overrides)


def compare(found, wanted):
    """Compare what two runs left; give the largest difference of weights."""
    one, other = (load_file(run / "model" / "model.safetensors") for run in (found, wanted))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], err_msg=name, **ROUNDING)
    tables = [json.loads((run / "results.json").read_text())["table"] for run in (found, wanted)]
    for mine, theirs in zip(*tables, strict=True):
        for name, value in mine.items():
            assert value == (theirs[name] if isinstance(value, str) else pytest.approx(theirs[name], rel=1e-3)), name
    assert {p.name for p in found.iterdir()} == {p.name for p in wanted.iterdir()}


def test_two_ranks_give_what_one_gives_and_one_of_them_speaks(settings, tmp_path):
    jobs = [start(n, CROSS_MODAL, settings, tmp_path / str(n), "optim.num_landmarks=20") for n in (1, 2)]
    for job in jobs:
        job.finish()
    compare(tmp_path / "2", tmp_path / "1")
    one, (first, second) = jobs[0].output, [log.read_text() for log in jobs[1].logs]
    assert second == ""
    assert [line for line in first.splitlines() if "left" not in line] == [
        line.replace(f"{tmp_path}/1", f"{tmp_path}/2") for line in one.splitlines() if "left" not in line
    ]
    assert not list(tmp_path.glob(".*.unfinished"))


def test_rank_that_dies_ends_all_with_one_message(settings, tmp_path):
    job = start(2, CROSS_MODAL, settings, tmp_path / "out", "optim.epochs=1000", "optim.patience=1000")
    job.wait_for("epoch 1.0 of 1000")
    job.send(signal.SIGKILL, 1)
    assert job.wait()[0] == 1
    assert job.output.count("error: ") == 1
    assert "error: rank 1 on host" in job.output
    assert "the same command goes on from the newest checkpoint" in job.output


def test_mistake_is_told_once(settings, tmp_path):
    (tmp_path / "out").mkdir()
    job = start(2, ANNOTATION, settings, tmp_path / "out")
    assert job.finish(2).count("error: `output_dir` must not exist yet") == 1


def test_accelerate_that_starts_one_process_of_several_is_not_believed(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not launch.is_launched()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="`accelerate launch` must start as many processes as it was told to, got one"):
        launch.is_launched()
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert not launch.is_launched()


LAUNCHERS = {  # and how they are told of a port, for their own is the same for all on a machine
    "torchrun": (["torchrun", "--nproc-per-node", "2"], "--master-port"),
    "deepspeed": (["deepspeed", "--num_accelerators", "2"], "--master_port"),
    "accelerate": (["accelerate", "launch", "--multi_gpu", "--num_processes", "2"], "--main_process_port"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "override"),
    [(ANNOTATION, "leave_out_types=[B]"), (TRANSFER, "final=true"), (CROSS_MODAL, "interval_left_out_key=donor")],
)
def test_every_launcher_gives_what_one_rank_gives(settings, tmp_path, script, override):
    run(sys.executable, script, "--config", settings, override, f"output_dir={tmp_path / 'one'}", timeout_s=LONGEST_S)
    for name, (words, port) in LAUNCHERS.items():
        words = [*words, port, str(free_port()), script, "--config", settings, override]
        run(*words, f"output_dir={tmp_path / name}", timeout_s=LONGEST_S)
        compare(tmp_path / name, tmp_path / "one")


@pytest.fixture(scope="module")
def two_studies(tmp_path_factory):
    """An atlas of two studies with labels."""
    where = tmp_path_factory.mktemp("studies")
    files = [write_h5mu(where / f"{name}.h5mu", 160, seed) for name, seed in (("one", 0), ("two", 5))]
    sources = [SourceConfig(file, file.stem) for file in files]
    config = PrepareConfig(where / "atlas.zarr", sources, "sources", "sources", obs_columns=["cell_type", "donor"])
    prepare_atlas(config, report=lambda line: None)
    return config.output


@pytest.mark.slow
@pytest.mark.parametrize("script", [ANNOTATION, CROSS_MODAL, IMPUTATION, INTEGRATION])
def test_two_ranks_that_read_an_atlas_from_disk_give_what_one_gives(settings, two_studies, tmp_path, script):
    overrides = [f"data=[{two_studies}]", "memory_gib=0", "allow_seen_test_cells=true", "optim.token_dropout=0"]
    for n in (1, 2):
        start(n, script, settings, tmp_path / str(n), *overrides).finish(timeout_s=LONGEST_S)
    compare(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("script", [ANNOTATION, TRANSFER, CROSS_MODAL])
def test_zero_gives_what_plain_torch_gives(settings, tmp_path, script, stage):
    jobs = [
        start(1, script, settings, tmp_path / "plain"),
        *(
            start(n, script, settings, tmp_path / str(n), f"optim.deepspeed={ROOT}/configs/deepspeed/zero{stage}.json")
            for n in (1, 2)
        ),
    ]
    for job in jobs:
        job.finish(timeout_s=LONGEST_S)
    for ranks in ("1", "2"):
        compare(tmp_path / ranks, tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [((2, None), (1, 2)), ((2, 3), (1, None)), ((1, None), (2, 1))])
def test_other_ranks_and_stages_go_on_with_a_run_that_was_killed(settings, tmp_path, first, then):
    start(1, CROSS_MODAL, settings, tmp_path / "wanted", "optim.epochs=6").finish(timeout_s=LONGEST_S)

    def start_with(ranks, stage):
        file = "null" if stage is None else f"{ROOT}/configs/deepspeed/zero{stage}.json"
        overrides = ["optim.epochs=6", f"optim.deepspeed={file}"]
        return start(ranks, CROSS_MODAL, settings, tmp_path / "out", *overrides)

    job = start_with(*first)
    job.wait_for("epoch 2.0 of 6", LONGEST_S)  # so that there is a checkpoint of the one before
    job.send(signal.SIGKILL)
    job.wait()
    assert "training goes on from step" in start_with(*then).finish(timeout_s=LONGEST_S)
    compare(tmp_path / "out", tmp_path / "wanted")
