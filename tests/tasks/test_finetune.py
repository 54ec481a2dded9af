"""The fine-tuning scripts as processes: results beside baselines, a model that loads, honest refusals."""

import dataclasses
import json
import sys
import warnings

import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
from launch import ROOT, run
from make_cells import make_modalities
from seal import copy_model, seal

from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation
from scfusion_fm.config.finetune import AnnotationConfig, CrossModalConfig, FinetuneOptimConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.fingerprints.seen import SeenCells
from scfusion_fm.data.split import assign_split
from scfusion_fm.evaluation.calibration.classifier import AnnotationCalibration
from scfusion_fm.evaluation.calibration.interval_file import read_intervals
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.annotate import annotate
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.predict_protein import predict_protein
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.annotation.fit import choose_projected
from scfusion_fm.tasks.annotation.labelled_file import LabelledFile
from scfusion_fm.tasks.cross_modal.calibrate import read_left_out
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.given import GivenCells
from scfusion_fm.tasks.loss import BalancedCrossEntropy
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.splits import split_cells
from scfusion_fm.tasks.trainer import fine_tuning_groups
from scfusion_fm.tasks.weights import Weights

SCRIPTS = {
    "annotation": ROOT / "finetune" / "cell_type_annotation.py",
    "cross_modal": ROOT / "finetune" / "cross_modal_prediction.py",
    "transfer": ROOT / "finetune" / "unimodal_transfer.py",
}


def finetune(task, model_dir, data, output, *overrides, **how):
    config = output.with_suffix(".yaml")
    config.write_text(
        f"model: {model_dir}\ndata: {data}\noutput_dir: {output}\nreport: false\n"
        "optim: {epochs: 3, batch_size: 16, lr: 0.01, threads: 1}\n"
    )
    return run(sys.executable, SCRIPTS[task], "--config", config, *overrides, **how)


@pytest.fixture(scope="module")
def annotation(model_dir, paired_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("annotation") / "run"
    finetune("annotation", model_dir, paired_file, output, "leave_out_types=[B]")
    return output


@pytest.fixture(scope="module")
def cross_modal(model_dir, paired_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("cross_modal") / "run"
    finetune("cross_modal", model_dir, paired_file, output, "interval_group_key=cell_type", "coverage_key=donor")
    return output


@pytest.fixture(scope="module")
def transfer(model_dir, paired_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("transfer") / "run"
    # Cold; the other two scripts are started so among the commands of the README.
    finetune("transfer", model_dir, paired_file, output, cold=True)
    return output


def test_annotation_stands_beside_baselines_on_the_same_cells(annotation, paired_file):
    results = json.loads((annotation / "results.json").read_text())
    methods = {(row["method"], row["inputs"]) for row in results["table"]}
    assert {m for m, _ in methods} == {"scFusionTTT", "majority", "PCA + logistic regression", "PCA + kNN"}
    assert {i for _, i in methods} == {"rna", "adt", "rna+adt"}
    predictions = pd.read_csv(annotation / "test_predictions.csv", index_col="cell")
    names = [f"s0c{i}" for i in range(160)]
    held_out = {n for n, s in zip(names, assign_split(names, SplitConfig()), strict=True) if s == "test"}
    assert set(predictions.index) == held_out
    score = next(r for r in results["table"] if (r["method"], r["inputs"]) == ("scFusionTTT", "rna+adt"))
    assert score["n_test"] == len(held_out)
    assert score["accuracy"] == pytest.approx((predictions["label"] == predictions["predicted"]).mean())


def test_annotation_learns_and_its_model_reproduces_the_predictions(annotation, paired_file):
    predictions = pd.read_csv(annotation / "test_predictions.csv", index_col="cell")
    assert (predictions["label"] == predictions["predicted"]).mean() > 0.8  # three well separated types
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(annotation / "model")
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(annotation / "model")
    cells, aligned = read_aligned(paired_file, extractor)
    rows = cells.obs.index.get_indexer(predictions.index)
    logits = predict_rows(model, CellCollator(aligned, extractor), rows)
    assert [model.config.id2label[i] for i in logits.argmax(1)] == list(predictions["predicted"])


def test_protein_prediction_stands_beside_baselines(cross_modal):
    results = json.loads((cross_modal / "results.json").read_text())
    methods = [row["method"] for row in results["table"]]
    assert methods == ["scFusionTTT", "mean", "own gene", "PCA + kNN", "PCA + ridge"]
    table = {row["method"]: row["pearson_per_protein"] for row in results["table"]}
    assert table["scFusionTTT"] > 0.3 > abs(table["mean"])
    stored = np.load(cross_modal / "test_predictions.npz")
    assert stored["measured"].shape == stored["predicted"].shape == (results["cells"]["test"], len(stored["names"]))
    config = json.loads((cross_modal / "model" / "config.json").read_text())
    assert config["predicted_features"] == results["proteins"]


def test_calibration_comes_with_the_model_and_types_left_out_are_told(annotation, transfer, paired_file, tmp_path):
    results = json.loads((annotation / "results.json").read_text())
    found = AnnotationCalibration.load(annotation / "model" / "annotation_calibration.json")
    assert found.classes == results["classes"]
    for name in ("rna", "adt", "rna+adt"):
        facts = results["calibration"]["inputs"][name]
        assert facts["calibration_cells"] == results["cells"]["calibration"]
        assert facts["temperature"] == found.inputs[name].temperature
    open_set = results["open_set"]
    assert results["parameters"]["trained"] == results["parameters"]["total"] > 0
    assert open_set["chosen_score"] in {row["score"] for row in open_set["table"]}
    assert set(pd.read_csv(annotation / "open_set.csv")["left_out"]) == {"B"}
    with warnings.catch_warnings(action="ignore"):
        annotate(paired_file, annotation / "model", output=tmp_path / "out.h5mu", reject_rate=0.2)
        obs = md.read_h5mu(tmp_path / "out.h5mu").obs
    predictions = pd.read_csv(annotation / "test_predictions.csv", index_col="cell")
    told = obs.loc[predictions.index, "cell_type_pred_probability"]
    np.testing.assert_allclose(told, predictions["probability"], rtol=1e-4)
    rejected = (obs.loc[predictions.index, "cell_type_pred"] == "unknown").mean()
    assert rejected == pytest.approx(results["calibration"]["inputs"]["rna+adt"]["false_reject"]["0.2"], abs=0.05)
    assert set(AnnotationCalibration.load(transfer / "model" / "annotation_calibration.json").inputs) == {"rna"}


def test_intervals_come_with_the_model_and_their_coverage_is_told(cross_modal):
    results = json.loads((cross_modal / "results.json").read_text())
    intervals = read_intervals(cross_modal / "model" / "protein_intervals.json")
    assert intervals.names == results["proteins"]
    assert set(intervals.group_half_widths) == {"B", "T", "Mono"}
    assert (intervals.table["n"] == results["cells"]["calibration"]).all()
    told = results["intervals"]
    assert told["nominal"] == [0.5, 0.8, 0.9, 0.95]
    assert told["coverage"] == sorted(told["coverage"])
    assert told["coverage"][2] > 0.6  # of a few test cells
    table = pd.read_csv(cross_modal / "interval_coverage.csv")
    whole = table[(table["level"] == 0.9) & (table["group"] == "all")]
    assert whole["coverage"].mean() == pytest.approx(told["coverage"][2])
    assert {"all", "d0", "d1", "d2", "d3"} == set(table["group"])


def test_intervals_for_new_donors_come_from_fits_without_each(model_dir, paired_file, tmp_path):
    output = tmp_path / "run"
    settings = ["interval_left_out_key=donor", "optim.epochs=1", "optim.num_landmarks=20"]
    done = finetune("cross_modal", model_dir, paired_file, output, *settings)
    results = json.loads((output / "results.json").read_text())
    intervals = read_intervals(output / "model" / "protein_intervals.json")
    assert results["intervals"]["made_for_new_groups"]
    assert intervals.num_left_out == done.stderr.count("intervals: fit") == 4
    assert "calibration" not in results["cells"]  # no cell is set apart
    assert (intervals.table["n"] == results["cells"]["train"] + results["cells"]["val"]).all()
    assert np.isfinite(intervals.half_widths).all()
    predict_protein(paired_file, output / "model", output=tmp_path / "out.h5mu")
    with warnings.catch_warnings(action="ignore"):
        after = md.read_h5mu(tmp_path / "out.h5mu")
    assert after.uns["scfusion_ttt"]["predict-protein"]["made_for_new_groups"]


def test_groups_to_leave_out_are_checked_before_anything_is_fitted():
    obs = pd.DataFrame({"donor": ["a", "b", "c", "c", "d"], "lab": ["x", "x", "y", "y", None]})
    partition = Partition([0, 2], [1, 3], [4])

    def read(partition=partition, **settings):
        return read_left_out(obs, CrossModalConfig(data="a.h5mu", **settings), partition)

    assert read() is None
    assert read(interval_left_out_key="donor").tolist() == obs["donor"].tolist()
    with pytest.raises(ValueError, match="got both, 'donor' and 'lab': choose one"):
        read(interval_left_out_key="donor", interval_group_key="lab")
    with pytest.raises(ValueError, match=r"at least 3 groups of cells .*, got 2 in 'lab', and 0 cells without"):
        read(interval_left_out_key="lab")
    with pytest.raises(ValueError, match="got 2 in 'lab', and 1 cells without"):
        read(Partition([0, 2], [1, 3, 4]), interval_left_out_key="lab")


def test_seen_test_cells_are_counted_and_the_memory_grows(annotation, model_dir):
    results = json.loads((annotation / "results.json").read_text())
    assert results["seen_test_cells"]["known"]
    assert results["seen_test_cells"]["seen"] == 0
    assert not results["seen_test_cells"]["beyond_chance"]
    before, after = (SeenCells.load(path / "seen_cells.npz") for path in (model_dir, annotation / "model"))
    assert [p.name for p in after.parts] == [*(p.name for p in before.parts), "fine-tuning on cells.h5mu"]
    assert after.parts[-1].num_cells == sum(n for part, n in results["cells"].items() if part != "test")


def test_going_on_with_seen_test_cells_is_possible_and_told(model_dir, paired_file):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    cells, aligned = read_aligned(paired_file, extractor)
    partition = split_cells(cells.obs, SplitConfig(seed=1))
    config = CrossModalConfig(str(model_dir), str(paired_file), allow_seen_test_cells=True)
    found = check_test_cells(config, aligned, extractor, partition).test_cells
    assert found["beyond_chance"]
    assert 0 < found["seen"] <= found["of"] == len(partition.test)
    config.allow_seen_test_cells = False
    with pytest.raises(ValueError, match=rf"got {found['seen']} of {found['of']} that it was \(\d+ in pretraining"):
        check_test_cells(config, aligned, extractor, partition)


def test_a_model_without_memory_is_used_with_a_warning(model_dir, paired_file, tmp_path):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    (copy_model(model_dir, tmp_path / "model") / "seen_cells.npz").unlink()
    config = CrossModalConfig(str(seal(tmp_path / "model")), str(paired_file))
    with pytest.warns(UserWarning, match="does not tell which cells it was trained on"):
        found = check_test_cells(config, read_aligned(paired_file, extractor)[1], extractor, Partition())
    assert found.test_cells == {"known": False}
    assert found.cells is None


def test_report_is_made_from_these_runs(annotation, cross_modal, transfer, tmp_path, monkeypatch):
    from scfusion_fm.evaluation.report import plots
    from scfusion_fm.evaluation.report.run_report import write_report

    # Compiling UMAP takes longer than all the rest; its own tests run it.
    monkeypatch.setattr(plots, "compute_umap", lambda embedding, seed=0: np.asarray(embedding)[:, :2])
    write_report(tmp_path / "report.html", None, annotation, cross_modal)
    assert "scFusionTTT" in (tmp_path / "report.html").read_text()
    write_report(tmp_path / "transfer.html", None, transfer, None)
    assert "scFusionTTT" in (tmp_path / "transfer.html").read_text()


def test_transfer_trains_projection_and_head_alone_and_stands_beside_baselines(transfer, model_dir):
    results = json.loads((transfer / "results.json").read_text())
    assert {(r["method"], r["inputs"]) for r in results["table"]} == {
        (m, "rna") for m in ("scFusionTTT", "majority", "PCA + logistic regression", "PCA + kNN")
    }
    assert len(results["projected_proteins"]) == 5
    before = ScFusionTTTForCellTypeAnnotation.from_pretrained(model_dir).model.state_dict()
    after = ScFusionTTTForCellTypeAnnotation.from_pretrained(transfer / "model").model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"adt_projection"}


def test_projected_proteins_enter_the_fusion_and_measured_ones_do_not(model_dir, paired_file):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    _, aligned = read_aligned(paired_file, extractor)
    rows = np.arange(20)

    def logits(cells, projected):
        model = Weights(model_dir).build(
            ScFusionTTTForCellTypeAnnotation, 0, num_labels=3, projected_proteins=projected
        )
        return predict_rows(model, CellCollator(cells, extractor), rows)

    other = dataclasses.replace(aligned, adt=aligned.adt[::-1].copy())
    some, rest = logits(aligned, [0, 1, 2]), logits(aligned, [3, 4])
    assert np.array_equal(some, logits(other, [0, 1, 2]))
    assert np.abs(some - rest).max() > 1e-4
    assert np.abs(some - logits(aligned, [])).max() > 1e-4
    # What the model makes of its configuration is what masks that are given do.
    plain = Weights(model_dir).build(ScFusionTTTForCellTypeAnnotation, 0, num_labels=3).eval()
    batch = CellCollator(aligned, extractor, modalities=("rna",))(rows.tolist())
    masked = torch.arange(extractor.num_proteins).expand(20, -1) < 3
    with torch.inference_mode():
        given = plain(**batch, adt_bool_masked_pos=masked).logits.numpy()
    np.testing.assert_allclose(given, some, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="`rna_values` must be given to a model that projects proteins"):
        Weights(model_dir).build(ScFusionTTTForCellTypeAnnotation, 0, projected_proteins=[0])(
            adt_values=torch.zeros(2, extractor.num_proteins)
        )


def test_a_transferred_model_annotates_from_rna_alone(transfer, paired_file, tmp_path):
    predictions = pd.read_csv(transfer / "test_predictions.csv", index_col="cell")
    with warnings.catch_warnings(action="ignore"):
        annotate(paired_file, transfer / "model", output=tmp_path / "out.h5mu")
        found = md.read_h5mu(tmp_path / "out.h5mu").obs.loc[predictions.index, "cell_type_pred"]
    assert list(found) == list(predictions["predicted"])


def test_proteins_to_project_are_those_of_the_file_or_all_or_the_named(model_dir, paired_file, tmp_path):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    cells, aligned = read_aligned(paired_file, extractor)
    data = LabelledCells(aligned, extractor, cells.obs["cell_type"].to_numpy(str), ("rna",))
    assert list(data.inputs) == ["rna"]
    assert choose_projected(data, None) == np.flatnonzero(aligned.adt_observed).tolist()
    name = extractor.protein_names[1]
    assert choose_projected(data, [name]) == [1]
    with pytest.raises(ValueError, match=r"`proteins` must name proteins that the model knows .* got \['CDX'\]"):
        choose_projected(data, [name, "CDX"])
    make_modalities(40, seed=2)[0].write_h5ad(tmp_path / "rna.h5ad")
    cells, aligned = read_aligned(tmp_path / "rna.h5ad", extractor)
    data = LabelledCells(aligned, extractor, cells.obs["cell_type"].to_numpy(str), ("rna",))
    assert choose_projected(data, None) == list(range(extractor.num_proteins))


def test_fresh_weights_depend_on_the_seed_alone(model_dir):
    loaded = Weights(model_dir).build(ScFusionTTTForCellTypeAnnotation, 0, num_labels=3)
    fresh = [Weights(model_dir, True).build(ScFusionTTTForCellTypeAnnotation, s, num_labels=3) for s in (5, 5, 6)]
    states = [m.state_dict() for m in (loaded, *fresh)]
    name = "model.rna_embeddings.weight"
    assert not torch.equal(states[0][name], states[1][name])
    assert all(torch.equal(states[1][n], states[2][n]) for n in states[1])
    assert not torch.equal(states[1][name], states[3][name])
    assert [s["classifier.weight"].shape for s in states] == [(3, 4 * 16)] * 4


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("annotation", "labels_key=tissue", "`labels_key` must be a column of obs, got 'tissue'"),
        ("annotation", "min_cells_per_class=500", "`labels_key` must give at least two classes"),
        ("annotation", "modality_dropout=2", r"`modality_dropout` must lie in [0, 1], got 2"),
        ("annotation", "split.group_key=site", "`split.group_key` must be a column of obs, got 'site'"),
        ("cross_modal", "split.val_fraction=0", "`split.val_fraction` must be above 0"),
        ("annotation", "unknown_score=knn", "`unknown_score` must be one of ['max_softmax', 'energy', 'mahalanobis']"),
        ("cross_modal", "calibration_fraction=1", "`calibration_fraction` must lie in (0, 1), got 1"),
        ("cross_modal", "coverage_key=site", "`site` must be a column of obs, to group cells by"),
        ("cross_modal", "interval_left_out_key=site", "`site` must be a column of obs, to group cells by"),
        ("cross_modal", "output_dir=configs", "`output_dir` must not exist yet"),
        (
            "transfer",
            "optim.lora_rank=2",
            "`optim.lora_rank` must be 0 where parts of the model stay as they are, got 2",
        ),
        ("transfer", "proteins=[CDX]", "`proteins` must name proteins that the model knows"),
        ("annotation", "split.seed=1", "`data` must hold test cells that the model was not trained on, got"),
        ("cross_modal", "split.seed=1", "`allow_seen_test_cells: true`, and the results will tell of it"),
        ("cross_modal", "model=configs", "`model` must be a directory with config.json"),
    ],
)
def test_mistakes_end_with_code_2(model_dir, paired_file, tmp_path, task, override, message):
    done = finetune(task, model_dir, paired_file, tmp_path / "run", override, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_protein_prediction_needs_paired_cells(model_dir, tmp_path):
    make_modalities(60, seed=2)[0].write_h5ad(tmp_path / "rna.h5ad")
    done = finetune("cross_modal", model_dir, tmp_path / "rna.h5ad", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert "`data` must hold cells with RNA and protein" in done.stderr


def test_balanced_loss_weighs_classes_and_not_cells():
    codes = np.array([0] * 8 + [1] * 2)
    loss = BalancedCrossEntropy(codes, 3)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    each = torch.nn.functional.cross_entropy(logits, torch.from_numpy(codes), reduction="none")
    expected = 10 / 3 * (each[:8].mean() + each[8:].mean()) / 10
    torch.testing.assert_close(loss({"logits": logits}, torch.from_numpy(codes)), expected)
    unlabelled = torch.full((10,), -100)
    assert loss({"logits": logits}, unlabelled) == 0


def test_groups_stay_together(paired_file, model_dir):
    cells, _ = read_aligned(paired_file, ScFusionTTTFeatureExtractor.from_pretrained(model_dir))
    roles = split_cells(cells.obs, SplitConfig(0.3, 0.3, 0, group_key="donor")).roles(160)
    assert pd.Series(roles).groupby(cells.obs["donor"].to_numpy()).nunique().max() == 1
    with pytest.raises(ValueError, match=r"`split.group_key` must be a column of obs"):
        split_cells(cells.obs, SplitConfig(group_key="nope"))


def test_an_emptied_part_names_what_emptied_it(paired_file, model_dir):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    cells, aligned = read_aligned(paired_file, extractor)
    with pytest.raises(ValueError, match=r"`split` must leave cells .*, got none for \['val'\] of 160 cells"):
        split_cells(cells.obs, SplitConfig(val_fraction=0.0))
    test = split_cells(cells.obs, SplitConfig()).test
    types = cells.obs["cell_type"].astype(str)
    cells.obs = cells.obs.assign(
        rare=np.where(np.isin(np.arange(160), test), "rare", types),
        unlabelled=np.where(np.isin(np.arange(160), test), "unknown", types),
    )
    others = ~np.isin(np.arange(160), test)
    no_rna, no_adt = (dataclasses.replace(aligned, **{f"{name}_present": others}) for name in ("rna", "adt"))

    def divide(given, labels_key):
        config = AnnotationConfig(data="a.h5mu", labels_key=labels_key, min_cells_per_class=len(test) + 1)
        found = GivenCells(dataclasses.replace(given, obs=cells.obs), cells.obs.index.to_numpy(object), "", "")
        return LabelledFile.divide(config, found, extractor, ("rna",)).partition.counts

    assert divide(aligned, "cell_type")["test"] == len(test)
    number = f"got none of {len(test)} for test"
    with pytest.raises(ValueError, match=f"`labels_key` must label cells of each part, {number}; take another column"):
        divide(aligned, "unlabelled")
    with pytest.raises(ValueError, match=f"`min_cells_per_class` must leave cells of each part, {number}; lower it"):
        divide(aligned, "rare")
    with pytest.raises(ValueError, match=f"`data` must hold rna of labelled cells in each part, {number}"):
        divide(no_rna, "cell_type")
    with pytest.raises(ValueError, match=f"`data` must hold cells with RNA and protein in each part, {number}"):
        PairedCells(no_adt, extractor).keep_paired(split_cells(cells.obs, SplitConfig()))


def test_embeddings_learn_slowly_and_the_classifier_fast_unless_all_is_new(model_dir):
    optim = FinetuneOptimConfig(lr=0.01, embedding_lr_ratio=0.1, head_lr_ratio=5.0)
    pretrained, fresh = Weights(model_dir), Weights(model_dir, from_scratch=True)
    model = pretrained.build(ScFusionTTTForCellTypeAnnotation, 0, num_labels=3)
    rates = {id(p): group["lr_ratio"] * optim.lr for group in fine_tuning_groups(model, optim) for p in group["params"]}
    assert set(rates) == {id(p) for p in model.parameters()}
    assert rates[id(model.classifier.weight)] == rates[id(model.classifier.bias)] == 0.05
    assert rates[id(model.model.rna_embeddings.weight)] == rates[id(model.model.adt_embeddings.weight)] == 0.001
    assert rates[id(model.model.rna_embeddings.position_embeddings)] == 0.01
    assert pretrained.suit(FitSettings(optim)).optim.embedding_lr_ratio == 0.1
    assert fresh.suit(FitSettings(optim)).optim.embedding_lr_ratio == 1.0
