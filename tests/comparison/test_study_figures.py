"""Figures by study: as the evaluation scored them, with intervals, and compared within what seeds spread."""

import dataclasses
import json

import numpy as np
import pytest

from scfusion_fm.comparison import study_figures
from scfusion_fm.comparison.study_figures import compare_figures, correlate, load_figures, read_figures, save_figures
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.records import seal_record

CELLS = 60


def write_unit(run, task, study, seed, arrays, methods):
    (run / "units").mkdir(parents=True, exist_ok=True)
    name = f"{study}-{seed}".replace(" ", "-")
    np.savez(run / "units" / f"{name}.npz", cells=np.arange(CELLS).astype(str), **arrays)
    rows = [{"method": method, "kind": kind, "inputs": "rna"} for method, kind in methods.items()]
    record = {"id": name, "experiment": study, "seed": seed, "scores": rows, "made_with": {"settings": {"task": task}}}
    (run / "units" / f"{name}.json").write_text(json.dumps(seal_record(record)))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A study of types and one of proteins, with two seeds each; the model is better than the baseline."""
    monkeypatch.setattr(study_figures, "DRAWS", 20)
    random = np.random.default_rng(0)
    labels, measured = random.choice(["B", "T", "NK"], CELLS), random.normal(size=(CELLS, 4))
    measured[:, 3] = np.nan  # not measured
    methods = {"ours": "model", "theirs": "baseline"}
    for seed in (0, 1):
        guesses = {
            f"{name} (rna)": np.where(random.random(CELLS) < share, labels, "B")
            for name, share in (("ours", 0.9), ("theirs", 0.5))
        }
        write_unit(tmp_path, "annotation", "new types", seed, {"labels": labels, **guesses}, methods)
        noise = {
            name: np.nan_to_num(measured) + width * random.normal(size=(CELLS, 4))
            for name, width in (("ours", 0.5), ("theirs", 2.0))
        }
        write_unit(tmp_path, "protein_from_rna", "new proteins", seed, {"measured": measured, **noise}, methods)
    return tmp_path


def test_figures_are_the_scores_of_the_evaluation_with_intervals(run):
    figures = {(f.task, f.method): f for f in read_figures(run)}
    assert len(figures) == 4
    ours = figures["annotation", "ours"]
    with np.load(run / "units" / "new-types-1.npz") as arrays:
        assert ours.scores[1] == annotation_scores(arrays["labels"], arrays["ours (rna)"])["macro_f1"]
    theirs = figures["protein_from_rna", "theirs"]
    with np.load(run / "units" / "new-proteins-0.npz") as arrays:
        found = protein_scores(arrays["measured"], arrays["theirs"], np.isfinite(arrays["measured"]))
        assert theirs.scores[0] == found[1]["pearson_per_protein"]
        assert np.allclose(correlate(arrays["measured"], arrays["theirs"]), found[0]["pearson"], equal_nan=True)
        constant = correlate(arrays["measured"], np.ones((CELLS, 4)))
        assert (constant[:3] == 0).all()
    for figure in figures.values():
        assert (figure.cells, len(figure.scores)) == (CELLS, 2)
        assert figure.low < figure.mean < figure.high
    assert ours.low > figures["annotation", "theirs"].high


def test_what_is_written_is_read_and_no_figures_are_refused(run, tmp_path):
    figures = read_figures(run)
    save_figures(figures, tmp_path / "figures.json")
    assert [f.method for f in load_figures(tmp_path / "figures.json")] == [f.method for f in figures]
    assert compare_figures(figures, load_figures(tmp_path / "figures.json")) == []
    with pytest.raises(ValueError, match="`run` must be a directory of `scfusion evaluate` with results, got none in"):
        read_figures(tmp_path / "none")
    (tmp_path / "figures.json").write_text("[{}]")
    with pytest.raises(ValueError, match=r"must hold the figures of a model, got none .*Make it again"):
        load_figures(tmp_path / "figures.json")


def test_figures_beyond_the_spread_of_seeds_are_told(run):
    figures = read_figures(run)
    (types,) = (f for f in figures if f.task == "annotation" and f.kind == "model")
    near, far = (dataclasses.replace(types, scores=[x - d for x in (0.8, 0.8)]) for d in (0.015, 0.03))
    same = dataclasses.replace(types, scores=[0.8, 0.8])
    wide = dataclasses.replace(types, scores=[0.7, 0.9])
    assert compare_figures([same], [near]) == []
    assert compare_figures([same], [far]) == ["new types: macro-F1 0.770, was 0.800; up to 0.020 is spread"]
    assert compare_figures([wide], [far]) == []
    assert compare_figures(figures, [same]) == ["new proteins: no figure", *compare_figures([types], [same])]
