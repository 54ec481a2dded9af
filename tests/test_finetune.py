"""`sf.finetune` on objects in memory, several files and atlases: the scripts' runs, from Python."""

import warnings

import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
from make_cells import make_modalities
from safetensors.torch import load_file

import scfusion_fm as sf
from scfusion_fm.evaluation.report import plots

SMALL = {"epochs": 1, "batch_size": 16, "lr": 0.01, "threads": 1, "num_coordinates": 5, "num_landmarks": 20}


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch):
    # Compiling UMAP takes longer than all the rest; its own tests run it.
    monkeypatch.setattr(plots, "compute_umap", lambda embedding, seed=0: np.asarray(embedding)[:, :2])


@pytest.fixture
def objects(paired_file):
    """The file in memory, and cells of another one that lacks proteins and some genes."""
    with warnings.catch_warnings(action="ignore"):
        paired = md.read_h5mu(paired_file)
    return paired, make_modalities(80, seed=1)[0][:, 5:].copy()


def test_objects_together_make_a_classifier_with_a_report(objects, model_dir, tmp_path):
    paired, rna = objects
    rna.obs["donor"] = [f"e{i % 8}" for i in range(80)]
    where = {"model": model_dir, "output_dir": tmp_path / "run"}
    done = sf.finetune.annotation(
        [paired, rna], labels_key="cell_type", batch_key="donor", allow_seen_test_cells=True, **where, **SMALL
    )
    assert done.results["split"]["divided_by"] == "groups of 'donor'"
    assert done.results["data"] == "MuData, AnnData1"
    assert done.results["optim"]["epochs"] == 1
    assert {"method", "macro_f1"} <= set(done.scores.columns)
    assert "results, predictions and model are in" in str(done)
    assert "<table" in done._repr_html_()
    page = done.report.read_text()
    assert "groups of &#x27;donor&#x27;" in page
    assert (tmp_path / "run" / "report_figures" / "confusion.png").is_file()
    assert (done.model / "annotation_calibration.json").is_file()
    cells = pd.read_csv(tmp_path / "run" / "test_predictions.csv")["cell"]
    assert set(cells.str.partition(":")[0]) <= {"MuData", "AnnData1"}


def test_an_atlas_that_is_read_from_disk_gives_what_one_in_memory_gives(atlas_path, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("scfusion_fm.tasks.splits.MOST_BASELINE_CELLS", 50)
    found = []
    for memory in (0, 1):
        where = {"model": model_dir, "output_dir": tmp_path / f"run{memory}", "memory_gib": memory}
        split = {"test_fraction": 0, "column": None, "final": memory == 0}
        found.append(sf.finetune.protein_prediction(atlas_path, **where, **split, **SMALL))
    pd.testing.assert_frame_equal(found[0].scores, found[1].scores)
    results = found[0].results
    assert results["scored_on"] == "calibration"
    assert results["cells"].keys() == {"train", "val", "calibration"}
    assert "coverage" not in results["intervals"]
    page, number = found[0].report.read_text(), results["cells"]["train"]
    assert "for want of test cells" in page
    learned = f"baselines learned from 50 of the {number} training cells"
    assert all(learned in told for told in (results["baselines"], page, str(found[0])))
    # One of them keeps a model that learned from all cells, which changes no figure.
    told = results["final"]["told"]
    assert f"learned anew from all {sum(results['cells'].values())} cells" in told
    assert "has the intervals of the tested one" in told
    assert told in page
    assert "final" not in found[1].results
    kept, tested = (load_file(run.model / "model.safetensors") for run in found)
    assert torch.equal(kept["kernel_readout.share"], tested["kernel_readout.share"])
    assert not torch.equal(kept["kernel_readout.weight"], tested["kernel_readout.weight"])


def test_settings_of_verbs_are_checked_by_name(model_dir, tmp_path):
    where = {"model": model_dir, "output_dir": tmp_path / "run"}
    with pytest.raises(ValueError, match=r"Unknown setting `label_key` in the settings. It is called labels_key now"):
        sf.finetune.transfer("a.h5ad", labels_key="x", label_key="y", **where)
    with pytest.raises(ValueError, match=r"Unknown setting `epoch` in the settings. Known: "):
        sf.finetune.annotation("a.h5ad", labels_key="x", epoch=3, **where)
