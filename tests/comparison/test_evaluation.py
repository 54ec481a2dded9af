"""scfusion evaluate: units that can be interrupted, the same rows for all, spread, leaks, and one report."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml
from make_cells import make_modalities, write_h5mu
from mudata import MuData
from seal import change_json, copy_model

from scfusion_fm.cli.main import main
from scfusion_fm.comparison import annotation as annotation_runs
from scfusion_fm.comparison import evaluation as evaluating
from scfusion_fm.comparison import runs as evaluation_runs
from scfusion_fm.comparison.evaluation import Evaluation
from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.loading import load_config
from scfusion_fm.evaluation.metrics import clusters as clustering
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.records import seal_record
from scfusion_fm.tasks.cross_modal.cells import PairedCells

# Of cells made up at random, gates and few proteins look suspicious; scikit-learn tells of tiny folds.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:.*least populated")

DEFAULTS = {
    "split": {"kind": "k_fold", "folds": 2, "val_fraction": 0.2},
    "optim": {"epochs": 1, "batch_size": 16, "lr": 0.01, "threads": 1},
    "baselines": ["majority", "PCA + kNN"],
    "min_cells_per_class": 5,
}
TWO = {
    "types": {"task": "annotation", "label_budgets": [30, None], "inputs": ["rna", "rna+adt"]},
    "proteins": {"task": "protein_from_rna", "baselines": ["mean", "PCA + ridge"]},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Files whose cells the model has not seen."""
    folder = tmp_path_factory.mktemp("evaluate")
    for i, cells in enumerate((90, 60)):
        write_h5mu(folder / f"new{i}.h5mu", cells, seed=70 + i)
    return folder


@pytest.fixture
def build(data_dir, model_dir, tmp_path):
    """Build an evaluation of experiments in a directory of its own."""

    def build(experiments, name="run", **defaults):
        shared = DEFAULTS | {"data": ["new0.h5mu"], "models": {"tiny": {"path": str(model_dir)}}} | defaults
        settings = {"output_dir": str(tmp_path / name), "data_dir": str(data_dir)}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | {"defaults": shared, "experiments": experiments}))
        return Evaluation(load_config(EvaluateConfig, path), report_line=lambda line: None)

    return build


def read_units(evaluation):
    units = {p.stem: json.loads(p.read_text()) for p in sorted((evaluation.output / "units").glob("*.json"))}
    return {name: {k: v for k, v in unit.items() if k not in ("seconds", "crc32c")} for name, unit in units.items()}


def test_report_holds_every_experiment_beside_its_baselines(build):
    evaluation = build(TWO)
    page = evaluation.run().read_text()
    units = read_units(evaluation)
    assert len(units) == 2 * 2 + 2
    for text in ("<h2>types</h2>", "<h2>proteins</h2>", "scFusionTTT (tiny)", "PCA + kNN", "PCA + ridge", "±"):
        assert text in page, text
    assert page.count("data:image/png") == 3  # few labels, per class, per protein
    assert "What to distrust" in page
    assert "nobody said what the labels were made from" in page
    assert "has seen" not in page
    f1 = [
        score["macro_f1"]
        for unit in units.values()
        for score in unit["scores"]
        if (unit["experiment"], unit["budget"]) == ("types", None)
        and (score["method"], score["inputs"]) == ("tiny", "rna")
    ]
    assert f"{np.mean(f1):.3f} ± {np.std(f1, ddof=1):.3f}" in page
    few = next(unit for unit in units.values() if unit["budget"] == 30)
    assert few["cells"]["train"] + few["cells"]["val"] == 30
    stored = np.load(evaluation.output / "units" / f"{few['id']}.npz")
    assert (stored["tiny (rna)"] == stored["labels"]).mean() == pytest.approx(
        next(s["accuracy"] for s in few["scores"] if (s["method"], s["inputs"]) == ("tiny", "rna"))
    )
    assert not list(evaluation.output.rglob(".*"))


def test_an_interrupted_run_goes_on_and_ends_alike(build, monkeypatch):
    few = {"types": TWO["types"] | {"inputs": ["rna"], "label_budgets": [20, 30]}}
    whole = build(few, "whole")
    whole.run()
    calls = []

    def run_until_third(experiment, partition, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluation_runs.run_fold(experiment, partition, seed)

    monkeypatch.setattr(evaluating, "run_fold", run_until_third)
    with pytest.raises(KeyboardInterrupt):
        build(few, "broken").run()
    broken = build(few, "broken")
    assert len(read_units(broken)) == 2
    broken.run()
    assert len(calls) == 3 + 2
    assert read_units(broken) == read_units(whole)
    build(few, "broken").run()
    assert len(calls) == 5


def test_other_settings_and_other_data_are_refused_by_name(build, model_dir, tmp_path):
    types = TWO["types"] | {"label_budgets": [30], "inputs": ["rna"]}
    build({"types": types}).run()
    message = r"got '.*run' with others: .*experiments\.types\.optim\.lr: 0\.01 -> 0\.5"
    with pytest.raises(ValueError, match=message):
        build({"types": types | {"optim": {"lr": 0.5}}})
    scratch = {"tiny": {"path": str(model_dir), "from_scratch": True}}
    with pytest.raises(ValueError, match=r"experiments\.types\.models\.tiny\.from_scratch: False -> True\. Choose"):
        build({"types": types}, models=scratch)
    unit = next((tmp_path / "run" / "units").glob("*-30.json"))
    for change, message in (
        (
            lambda record: record["made_with"]["data"].update({"new0.h5mu": "0"}),
            r"others: content of new0\.h5mu\. Choose",
        ),
        (
            lambda record: record["made_with"]["models"]["tiny"]["files"].update({"model.safetensors": "0"}),
            r"others: content of experiments\.types\.models\.tiny: model\.safetensors\. Choose",
        ),
        (lambda record: record["rows_sha256"].update(test="0"), f"others: the cells of {unit.stem}. Choose"),
    ):
        record = json.loads(unit.read_text())
        change(record)
        text, _ = unit.read_text(), unit.write_text(json.dumps(seal_record(record)))
        with pytest.raises(ValueError, match=message):
            build({"types": types})
        unit.write_text(text)
    build({"types": types})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="`output_dir` must be new or hold an evaluation"):
        build({"types": types}, "full")


def test_what_is_added_to_a_finished_run_is_all_that_is_computed(build, model_dir, monkeypatch):
    few = TWO["types"] | {"label_budgets": [30], "inputs": ["rna"], "baselines": ["majority"]}
    path = build({"types": few}).run()
    calls = []

    def record(experiment, partition, seed):
        calls.append((seed, list(experiment.config.models), list(experiment.baselines)))
        return evaluation_runs.run_fold(experiment, partition, seed)

    monkeypatch.setattr(evaluating, "run_fold", record)
    models = {"tiny": {"path": str(model_dir)}, "fresh": {"path": str(model_dir), "from_scratch": True}}
    more = few | {"models": models, "baselines": ["PCA + kNN", "majority"]}
    build({"types": few | {"seeds": [0, 1]}}).run()
    assert calls == [(1, ["tiny"], ["majority"])] * 2
    calls.clear()
    build({"types": few | {"label_budgets": [None, 30]}}).run()
    assert calls == [(0, ["tiny"], ["majority"])] * 2
    calls.clear()
    grown = build({"types": more})
    page = grown.run().read_text()
    assert calls == [(0, ["fresh"], ["PCA + kNN"])] * 2
    assert "scFusionTTT (fresh)" in page
    # It ends as one computed at once would, but for the order of methods; predictions stand beside the scores.
    whole = build({"types": more}, "whole")
    whole.run()
    ours, theirs = (read_units(e)["types-seed0-fold1-30"] for e in (grown, whole))
    for unit in (ours, theirs):
        unit["scores"].sort(key=lambda row: row["method"])
        unit["made_with"]["baselines"].sort()
    assert ours == theirs
    stored = [np.load(e.output / "units" / "types-seed0-fold1-30.npz") for e in (grown, whole)]
    assert set(stored[0]) == set(stored[1]) > {"tiny (rna)", "fresh (rna)", "PCA + kNN (rna)", "labels"}
    assert all((stored[0][name] == stored[1][name]).all() for name in stored[0])
    # What is no longer asked for stays in its files, and is not in the report.
    calls.clear()
    assert "scFusionTTT (fresh)" not in build({"types": few}).run().read_text()
    assert (
        "majority" not in build({"types": few | {"baselines": ["PCA + kNN"]}}).run().read_text().split("<h2>Repro")[0]
    )
    assert "scFusionTTT (fresh)" in build({"types": more | {"label_derived_from": "none"}}).run().read_text()
    assert "nobody said what the labels were made from" not in path.read_text()
    assert calls == []


def test_seen_cells_are_refused_or_told(build, paired_file):
    seen = {"types": TWO["types"] | {"data": [str(paired_file)], "label_budgets": [30], "label_derived_from": "adt"}}
    with pytest.raises(ValueError, match="`data` must hold test cells that the model was not trained on"):
        build(seen)
    page = build({"types": seen["types"] | {"allow_seen_test_cells": True}}).run().read_text()
    assert "types: leak. tiny: the model has seen" in page
    assert "types: leak. labels were made from adt" in page


def test_fresh_weights_have_seen_nothing(build, paired_file, model_dir):
    models = {"fresh": {"path": str(model_dir), "from_scratch": True}}
    experiment = {"task": "annotation", "data": [str(paired_file)]}
    assert build({"types": experiment}, models=models).units


def test_transfer_to_rna_alone_stands_with_and_without_projected_proteins(build, model_dir, monkeypatch):
    path = str(model_dir)
    models = {"whole": {"path": path}, "with": {"path": path, "projected_proteins": True}}
    models |= {"without": {"path": path, "projected_proteins": False}}
    used = {}
    real = annotation_runs.fit_annotation

    def record(source, data, partition, settings):
        fitted = real(source, data, partition, settings)
        before = source.build(type(fitted.model), 0, num_labels=len(data.classes)).model.state_dict()
        after = fitted.model.model.state_dict()
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name].cpu())}
        used[len(used)] = (fitted.model.config.projected_proteins, changed)
        return fitted

    monkeypatch.setattr(annotation_runs, "fit_annotation", record)
    evaluation = build({"transfer": {"task": "annotation", "inputs": ["rna"]}}, models=models)
    partition = evaluation.units[0].fold.partition
    scores = evaluation_runs.run_fold(evaluation.experiments["transfer"], partition, 0).rows
    assert [row["method"] for row in scores if row["kind"] == "model"] == list(models)
    whole, with_proteins, without = used.values()
    assert whole[0] is None
    assert len(whole[1]) > 2
    assert with_proteins == ([0, 1, 2, 3, 4], {"adt_projection"})
    assert without == (None, set())
    facts = evaluating.describe_experiment(evaluation.experiments["transfer"])["models"]
    assert facts["with"] == f"{path}, head and projected proteins alone trained"
    assert facts["without"] == f"{path}, head alone trained"


def test_models_and_baselines_see_the_same_rows(build, monkeypatch):
    evaluation = build({"types": TWO["types"]})
    seen = []
    for name in ("fit_annotation", "build_annotation_task"):
        real = getattr(annotation_runs, name)

        def record(*args, name=name, real=real, **kwargs):
            seen.append((name, next(a for a in args if isinstance(a, Partition))))
            return real(*args, **kwargs)

        monkeypatch.setattr(annotation_runs, name, record)
    partition = evaluation.units[0].fold.partition
    evaluation_runs.run_fold(evaluation.experiments["types"], partition, 0)
    assert [name for name, _ in seen] == ["build_annotation_task", "fit_annotation"]
    assert seen[0][1] is seen[1][1] is partition


def test_every_other_task_runs_on_files_together(build, monkeypatch):
    # Compiling UMAP takes longer than all the rest; the tests of clusterings run it.
    monkeypatch.setattr(clustering, "compute_umap", lambda embedding, seed: embedding[:, :2])
    both = {"data": ["new0.h5mu", "new1.h5mu"]}
    out = {"kind": "leave_group_out", "group_key": "dataset"}
    evaluation = build(
        {
            "clusters": {"task": "clustering", "inputs": ["rna+adt"], **both},
            "batches": {"task": "integration", "inputs": ["rna"], **both},
            "hidden RNA": {"task": "imputation", "hidden_fraction": 0.3, "baselines": ["gene mean"]},
            "genes": {"task": "rna_from_protein", "split": out, "scored_genes": 8, "baselines": ["mean"], **both},
            "paper": {"task": "annotation", "protocol": "paper", "inputs": ["rna+adt"], "baselines": []},
        },
        baselines=None,
    )
    page = evaluation.run().read_text()
    for text in (
        "ARI, Ward",
        "batches: iLISI",
        "RMSE / gene mean",
        "Pearson per gene",
        "The paper's way",
    ):
        assert text in page, text
    units = read_units(evaluation)
    genes = [unit for unit in units.values() if unit["experiment"] == "genes"]
    assert [(unit["fold"], unit["cells"]["test"]) for unit in genes] == [("new0.h5mu", 90), ("new1.h5mu", 60)]
    assert all(len(score["parts"]) == 8 for unit in genes for score in unit["scores"])
    protocols = {s["protocol"] for u in units.values() if u["experiment"] == "paper" for s in u["scores"]}
    assert protocols == {"held_out", "paper", "paper, test cells only"}


def test_mistakes_are_named_before_anything_is_computed(build, data_dir, model_dir, tmp_path):
    cases = [
        ({"labels_key": "tissue"}, "`labels_key` must be a column of obs, got 'tissue'"),
        ({"baselines": ["oracle"]}, r"`experiments\.types\.baselines` must be among .* got \['oracle'\]"),
        ({"split": {"kind": "leave_group_out", "group_key": "site"}}, r"`split\.group_key` must be a column of obs"),
        ({"label_budgets": [5000]}, r"`budget` must lie in \[3, "),
        (
            {"task": "clustering", "background_key": "dataset"},
            "`experiments.types.background_key` is for annotation and protein_from_rna, got 'clustering'",
        ),
        (
            {"task": "protein_from_rna", "baselines": ["mean"], "background_key": "site"},
            "`background_key` must be a column of obs, got 'site'",
        ),
        ({"models": {"names": {"path": str(model_dir)}}}, "`experiments.types.models` must have names other than"),
        ({"models": {"none": {"path": str(tmp_path)}}}, r"`model` must be a directory with config\.json"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            build({"types": {"task": "annotation"} | changes})
    assert not (tmp_path / "run").exists()


def test_models_of_other_vocabularies_are_refused(build, model_dir, tmp_path):
    other = copy_model(model_dir, tmp_path / "other")
    change_json(other / "preprocessor_config.json", target_sum=3000)
    with pytest.raises(ValueError, match=r"`experiments\.types\.models` must share vocabulary and patches"):
        build({"types": {"task": "annotation", "models": {"other": {"path": str(other)}}}})


def test_values_that_a_file_did_not_measure_are_not_scored(model_dir, data_dir, tmp_path, build):
    rna, adt = make_modalities(50, seed=90)
    with warnings.catch_warnings(action="ignore"):
        MuData({"rna": rna, "adt": adt[:, :3].copy()}).write(data_dir / "few.h5mu")
    evaluation = build({"proteins": TWO["proteins"] | {"data": ["new0.h5mu", "few.h5mu"]}})
    experiment = evaluation.experiments["proteins"]
    paired = PairedCells(experiment.aligned, experiment.extractor)
    assert len(paired.names) == 5
    assert paired.observed[:90].all()
    assert (paired.observed[90:].sum(1) == 3).all()
    partition = evaluation.units[0].fold.partition
    assert all(np.isfinite(s["rmse"]) for s in evaluation_runs.run_fold(experiment, partition, 0).rows)


def test_intervals_hold_for_cells_like_others_and_new_files_need_three(build):
    two = ["new0.h5mu", "new1.h5mu"]
    one_file = build({"proteins": TWO["proteins"]}, "alike")
    page = one_file.run().read_text()
    table = one_file.measure_coverage("proteins")
    assert set(table["method"]) == {"tiny", "mean", "PCA + ridge"}
    assert len(table) == 3 * 2 * 4 * 5  # methods, folds, levels, proteins
    held = table[table["method"] == "PCA + ridge"].groupby("level")["coverage"].mean()
    np.testing.assert_allclose(held, held.index, atol=0.1)
    assert "intervals meant to hold 90% hold" in page
    assert "<h3>Intervals</h3>" in page
    split = {"kind": "leave_group_out", "group_key": "dataset", "val_fraction": 0.2}
    few = build({"proteins": TWO["proteins"] | {"data": two, "split": split}}, "two")
    assert "<h3>Intervals</h3>" not in few.run().read_text()
    split["group_key"] = "donor"
    levels = {"data": two, "split": split, "background_key": "dataset"}
    donors = build({"proteins": TWO["proteins"] | levels}, "donors")
    assert donors.measure_coverage("proteins") is None  # as long as folds are missing
    donors.run()
    assert set(donors.measure_coverage("proteins")["fold"]) == {"d0", "d1", "d2", "d3"}
    one = build({"proteins": TWO["proteins"] | levels | {"split": split | {"test_groups": ["d2"]}}}, "one donor")
    assert "<h3>Intervals</h3>" not in one.run().read_text()  # nothing to calibrate on
    assert [unit["fold"] for unit in read_units(one).values()] == ["d2"]


def test_the_command_evaluates_and_prints_its_way(build, monkeypatch, tmp_path, capsys):
    build({"types": {"task": "clustering", "inputs": ["rna"], "baselines": ["PCA"]}})
    config = str(tmp_path / "run.yaml")
    monkeypatch.setattr(sys, "argv", ["scfusion", "evaluate", "--config", config, "defaults.seeds=[1]"])
    main()
    printed = capsys.readouterr().out
    assert "2 units of work, 0 of them done before" in printed
    assert "2/2 types-seed1-fold2-all" in printed
    page = (tmp_path / "run" / "report.html").read_text()
    assert "scfusion evaluate --config" in page
    assert "defaults.seeds=[1]" in page
