"""pretrain/run.py and pretrain/export.py as processes: ranks agree, exports are equal, mistakes end with code 2."""

import sys

import numpy as np
import pytest
import torch
from launch import Job, losses, pretrain, read_metrics, run, write_config

from scfusion_fm import ScFusionTTTForPreTraining
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, SeenCells, remember_atlas
from scfusion_fm.training.checkpoint import newest_checkpoint


@pytest.fixture(scope="module")
def two_ranks(atlas_path, tmp_path_factory):
    config, output = write_config(tmp_path_factory.mktemp("two"), atlas_path)
    return config, output, Job(2, output.parent / "logs", "--config", config).finish()


@pytest.fixture(scope="module")
def exported(two_ranks, tmp_path_factory):
    model = tmp_path_factory.mktemp("exported") / "model"
    run(sys.executable, "pretrain/export.py", two_ranks[1], model)
    return model


def test_run_and_export_remember_the_cells_of_train_and_val(two_ranks, exported, atlas_path):
    _, output, _ = two_ranks
    atlas = Atlas(atlas_path)
    expected = remember_atlas(atlas)
    for directory in (output, exported):
        (part,) = SeenCells.load(directory / SEEN_CELLS).parts
        assert part.num_cells == len(atlas) - len(atlas.rows_of("test"))
        np.testing.assert_array_equal(part.rna.bits, expected.parts[0].rna.bits)
        np.testing.assert_array_equal(part.adt.bits, expected.parts[0].adt.bits)
    assert f"{part.num_cells} in pretraining" in (exported / "README.md").read_text()


def test_one_and_two_ranks_take_the_same_steps(two_ranks, atlas_path, tmp_path):
    _, output, _ = two_ranks
    config, alone = write_config(tmp_path, atlas_path)
    pretrain("--config", config)
    np.testing.assert_allclose(losses(output), losses(alone), rtol=1e-5)
    np.testing.assert_allclose(losses(output, "val"), losses(alone, "val"), rtol=1e-5)
    assert len(losses(output)) >= 10
    assert losses(output)[-3:, 0].mean() < losses(output)[:3, 0].mean()


def test_run_reports_progress_and_keeps_two_checkpoints(two_ranks):
    _, output, text = two_ranks
    for told in ("cells/s", "left", "held-out cells", "loader: 8 lanes, 2048 window rows"):
        assert told in text
    assert len(list((output / "checkpoints").glob("step_*"))) == 2
    assert list((output / "tensorboard").iterdir())
    record = read_metrics(output)[-1]
    assert {"step", "epoch", "cells", "split", "seconds", "loss"} <= record.keys()
    assert all(0 <= r["data_stall"] < 1 for r in read_metrics(output) if r["split"] == "train")


def test_finished_run_says_so_and_stays_as_it_is(two_ranks, tmp_path):
    config, output, _ = two_ranks
    before = (output / "metrics.jsonl").read_text()
    job = Job(2, tmp_path, "--config", config, "loader.threads=1")  # decides nothing
    assert "resumed run" in job.finish()
    assert (output / "metrics.jsonl").read_text() == before


def test_run_with_other_settings_is_refused(two_ranks, tmp_path):
    config, _, _ = two_ranks
    text = Job(2, tmp_path, "--config", config, "optim.lr=0.5").finish(2)
    assert text.count("holds a run with other settings: optim.lr: 0.01 -> 0.5") == 1
    assert "Traceback" not in text


def test_export_equals_the_trained_weights(two_ranks, exported, tmp_path):
    _, output, _ = two_ranks
    model = ScFusionTTTForPreTraining.from_pretrained(exported)
    trained = newest_checkpoint(output / "checkpoints").weights({n: p.shape for n, p in model.named_parameters()})
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained[name]), name
    card = (exported / "README.md").read_text()
    assert "data set tiny: 160 cells" in card
    done = run(sys.executable, "pretrain/export.py", output, exported, check=False)
    assert done.returncode == 2
    assert "`output` must not exist yet" in done.stderr
    done = run(sys.executable, "pretrain/export.py", tmp_path, tmp_path / "other", check=False)
    assert done.returncode == 2
    assert "must hold a checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_proteins=3", r"`model` must not set ['num_proteins']"),
        ("model.hidden=3", "`model` must hold fields of ScFusionTTTConfig, got ['hidden']"),
        ("model.hidden_size=15", "`hidden_size` must be `num_attention_heads` times"),
        ("optim.global_batch_size=10", "`global_batch_size` must be a multiple"),
        ("optim.epochs=0", "`optim.epochs` must make at least one step, got 0.0"),
        ("loader.lanes=0", "`loader.lanes` must lie in [1, 1e12], got 0"),
        ("loader.weights.blood=2", "`weights` must name data sets of the atlas, got ['blood']; it has ['tiny']"),
        ("atlas=nowhere", "`atlas` must be a directory that `scfusion prepare` wrote, got 'nowhere'"),
        ("output_dir=configs", "`output_dir` must be new, empty or a run to resume"),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(atlas_path, tmp_path, override, message):
    config, _ = write_config(tmp_path, atlas_path)
    done = pretrain("--config", config, override, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
