import base64
import json
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from make_damage import DAMAGES, all_files, find_silent

from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.report import plots, run_files
from scfusion_fm.evaluation.report.run_report import FIGURES, write_report
from scfusion_fm.evaluation.report.text import (
    Metric,
    compare_with_baselines,
    describe_seen_cells,
    describe_validation,
)
from scfusion_fm.records import seal_record, seal_text

SCRIPT = "<script>alert('T')</script>"
CELL_TYPES = ["B & plasma", "NK", SCRIPT]


@pytest.fixture(autouse=True)
def quick_layout(monkeypatch):
    """Two dimensions of the embedding instead of the UMAP, whose compilation takes long."""
    monkeypatch.setattr(plots, "compute_umap", lambda embedding, seed=0: np.asarray(embedding)[:, :2])


@pytest.fixture
def runs(tmp_path):
    """Run directories of the three kinds, as the scripts leave them."""
    directories = [tmp_path / name for name in ("pretraining", "annotation", "cross_modal")]
    for directory in directories:
        directory.mkdir()
    write_pretraining(directories[0])
    write_annotation(directories[1])
    write_cross_modal(directories[2])
    return directories


def write_pretraining(run):
    records = [
        {"step": step, "epoch": step / 10, "cells": 32 * step, "split": split, "loss": 10 / step + 0.25,
         "rna_loss": 6 / step, "adt_loss": None, "lr": 1e-3, "cells_per_s": 123.4, "seconds": 60.0 * step}
        for step in range(1, 21)
        for split in (("train", "val") if step % 5 == 0 else ("train",))
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "config.yaml").write_text("name: <b>demo</b>\n")


def write_annotation(run):
    rng = np.random.default_rng(0)
    labels = rng.choice(CELL_TYPES, 60)
    guesses = {
        ("majority", "rna"): np.full(60, "NK"),
        ("PCA + kNN", "rna+adt"): np.where(rng.random(60) < 0.9, labels, "NK"),
        ("scFusionTTT", "rna+adt"): np.where(rng.random(60) < 0.6, labels, "NK"),
    }
    table = [
        {"method": method, "inputs": inputs, **annotation_scores(labels, predicted), "n_test": 60}
        for (method, inputs), predicted in guesses.items()
    ]
    results = {
        "task": "cell_type_annotation", "data": "pbmc.h5mu", "labels_key": "cell_type", "classes": CELL_TYPES,
        "dropped_classes": {"<i>rare</i>": 3}, "cells": {"train": 100, "val": 20, "test": 60},
        "provenance": "random split, seed 7", "table": table,
        "embedding": {"silhouette": 0.12345, "knn_purity": 0.87654},
    }  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    predicted = guesses["scFusionTTT", "rna+adt"]
    cells = pd.DataFrame({"cell": np.arange(60), "label": labels, "predicted": predicted, "probability": 0.5})
    cells.to_csv(run / "test_predictions.csv", index=False)
    split = np.array(["test", "train"] * 60)
    np.savez(run / "embedding.npz", embedding=rng.normal(size=(120, 3)), labels=np.repeat(labels, 2), split=split)


def write_cross_modal(run):
    rng = np.random.default_rng(1)
    names = ["CD3", "CD19", "<b>CD4</b>"]
    measured = rng.normal(size=(50, 3))
    predictions = {"mean": np.zeros((50, 3)), "PCA + ridge": measured + 2 * rng.normal(size=(50, 3))}
    predictions["scFusionTTT"] = measured + 0.5 * rng.normal(size=(50, 3))
    scores = {
        method: protein_scores(measured, predicted, np.ones((50, 3), bool)) for method, predicted in predictions.items()
    }
    results = {
        "task": "cross_modal_prediction", "data": "pbmc.h5mu", "cells": {"train": 90, "val": 10, "test": 50},
        "proteins": names, "unit": "CLR",
        "table": [{"method": method, **summary} for method, (_, summary) in scores.items()],
    }  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    long = pd.concat([table.assign(protein=names, method=method) for method, (table, _) in scores.items()])
    long.to_csv(run / "per_protein.csv", index=False)
    np.savez(run / "test_predictions.npz", measured=measured, predicted=predictions["scFusionTTT"], names=names)


def edit_results(run, **changes):
    path = run / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Page(HTMLParser):
    """Tags, text and table cells of a page; fails on tags that are not closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.cells, self.bold, self.text = [], [], [], [], ""
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if "td" in self.open:
            self.cells.append(data)
            if self.open[-1] == "strong":
                self.bold.append(data)


def test_the_report_holds_every_number_of_the_tables(tmp_path, runs):
    page = Page(write_report(tmp_path / "report.html", *runs))
    for run in runs[1:]:
        for row in json.loads((run / "results.json").read_text())["table"]:
            for value in row.values():
                assert (f"{value:.3f}" if isinstance(value, float) else str(value)) in page.cells
    for value in ("0.123", "0.877", "60", "50"):
        assert value in page.cells
    for fact in ("random split, seed 7", "train: 100, val: 20, test: 60", "123.4", "20.0 minutes", "CLR"):
        assert fact in page.text


def test_untrusted_names_are_text(tmp_path, runs):
    path = write_report(tmp_path / "report.html", *runs)
    page = Page(path)
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    for name in (SCRIPT, "<i>rare</i>", "<b>CD4</b>", "<b>demo</b>", "B & plasma"):
        assert name in page.text


def test_the_report_needs_nothing_from_outside(tmp_path, runs):
    path = write_report(tmp_path / "report.html", *runs)
    page = Page(path)
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import|<link", path.read_text())


def test_the_pictures_are_in_the_page_and_beside_it(tmp_path, runs):
    page = Page(write_report(tmp_path / "my.report.html", *runs))
    inlined = {base64.b64decode(attrs["src"].split(",")[1]) for tag, attrs in page.tags if tag == "img"}
    files = list((tmp_path / "my.report_figures").iterdir())
    assert {file.name for file in files} == set(FIGURES)
    assert {file.read_bytes() for file in files} == inlined
    assert all(png.startswith(b"\x89PNG") for png in inlined)
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")


def test_the_report_says_who_is_ahead(tmp_path, runs):
    text = Page(write_report(tmp_path / "report.html", *runs)).text
    scores = {row["method"]: row for row in json.loads((runs[1] / "results.json").read_text())["table"]}
    neighbours, model = scores["PCA + kNN"]["macro_f1"], scores["scFusionTTT"]["macro_f1"]
    assert (
        f"Cell types, macro F1: a baseline beats the model. PCA + kNN (rna+adt) has {neighbours:.3f}, "
        f"scFusionTTT (rna+adt) has {model:.3f}." in text
    )
    assert "Proteins from RNA, RMSE: scFusionTTT is ahead with" in text
    assert "held-out test cells" in text
    assert "the same cells and the same labels" in text


def test_the_best_number_is_bold_whoever_has_it(tmp_path, runs):
    bold = Page(write_report(tmp_path / "report.html", None, runs[1], None)).bold
    table = pd.DataFrame(json.loads((runs[1] / "results.json").read_text())["table"])
    best = table[["accuracy", "balanced_accuracy", "macro_f1"]].max()
    assert table.loc[table["accuracy"].idxmax(), "method"] == "PCA + kNN"
    assert bold == [f"{value:.3f}" for value in best]


def test_the_smallest_error_is_bold(tmp_path, runs):
    bold = Page(write_report(tmp_path / "report.html", None, None, runs[2])).bold
    table = pd.DataFrame(json.loads((runs[2] / "results.json").read_text())["table"])
    assert bold[-1] == f"{table['rmse'].min():.3f}"


@pytest.mark.parametrize(
    ("ours", "theirs", "more_is_better", "mark", "words"),
    [
        (0.7, 0.6, True, "ahead", "M, scFusionTTT is ahead with 0.700; the best baseline, kNN, has 0.600."),
        (0.6, 0.7, True, "behind", "a baseline beats the model. kNN has 0.700, scFusionTTT has 0.600."),
        (0.6, 0.7, False, "ahead", "scFusionTTT is ahead with 0.600"),
        (0.7, 0.6, False, "behind", "a baseline beats the model"),
        (0.70004, 0.7, True, "", "scFusionTTT and the baseline kNN tie at 0.700"),
        (None, 0.7, True, "", "nothing to compare"),
        (float("nan"), 0.7, True, "", "nothing to compare"),
    ],
)
def test_comparisons_name_the_better_one(tmp_path, ours, theirs, more_is_better, mark, words):
    rows = [
        {"method": "mean", "x": 1.5 if not more_is_better else 0.1},
        {"method": "kNN", "x": theirs},
        {"method": "scFusionTTT", "x": ours},
    ]
    metrics = {"x": Metric("M", more_is_better, "")}
    [(found, sentence)] = compare_with_baselines(tmp_path, rows, metrics, "topic")
    assert found == mark
    assert words.removeprefix("M, ") in sentence
    assert sentence.startswith("topic, M: ")


def test_a_table_without_model_or_without_baseline_is_refused(tmp_path, runs):
    table = json.loads((runs[1] / "results.json").read_text())["table"]
    for rows in (table[:2], table[2:]):
        edit_results(runs[1], table=rows)
        with pytest.raises(ValueError, match=r"results.json` must have rows of 'scFusionTTT' and of baselines"):
            write_report(tmp_path / "report.html", None, runs[1], None)
    path = runs[2] / "per_protein.csv"
    proteins = pd.read_csv(path)
    proteins[proteins["method"] != "scFusionTTT"].to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"per_protein.csv` must have rows of 'scFusionTTT', got \['mean', 'PCA"):
        write_report(tmp_path / "report.html", None, None, runs[2])


def test_a_validation_loss_that_rises_again_is_called_so():
    metrics = pd.DataFrame({"step": [1, 2, 3], "split": "val", "loss": [3.0, 1.0, 2.0]})
    assert "The lowest was 1.000 at step 2; it rose afterwards." in describe_validation(metrics)
    assert "rose" not in describe_validation(metrics.head(2))
    assert "no validation loss" in describe_validation(metrics.assign(split="train"))


def test_predictions_that_do_not_belong_to_the_table_are_said_to(tmp_path, runs):
    cells = pd.read_csv(runs[1] / "test_predictions.csv")
    cells.assign(predicted=cells["label"]).to_csv(runs[1] / "test_predictions.csv", index=False)
    text = (write_report(tmp_path / "report.html", None, runs[1], None)).read_text()
    assert "a model whose accuracy, 1.000, is in no row of the table above" in text


def test_cell_types_called_na_are_names(tmp_path, runs):
    path = runs[1] / "test_predictions.csv"
    path.write_text(path.read_text().replace("NK", "NA"))
    assert "NA" in Page(write_report(tmp_path / "report.html", None, runs[1], None)).cells


def test_missing_scores_are_shown_as_missing(tmp_path, runs):
    table = json.loads((runs[2] / "results.json").read_text())["table"]
    table[0]["pearson_per_protein"] = float("nan")
    table[1]["rmse"] = None
    edit_results(runs[2], table=table, provenance="held-out donor")
    page = Page(write_report(tmp_path / "report.html", None, None, runs[2]))
    assert page.cells.count("n/a") == 2
    assert "held-out donor" in page.text


def test_a_part_alone_makes_a_report_and_takes_away_pictures_of_parts_that_are_gone(tmp_path, runs):
    write_report(tmp_path / "report.html", *runs)
    (tmp_path / "report_figures" / "mine.png").write_bytes(b"kept")
    page = Page(write_report(tmp_path / "report.html", runs[0], None, None))
    assert "Cell types" not in page.text
    assert {file.name for file in (tmp_path / "report_figures").iterdir()} == {"losses.png", "mine.png"}


def test_a_failed_write_leaves_the_old_report_and_no_debris(tmp_path, runs, monkeypatch):
    path = write_report(tmp_path / "report.html", runs[0], None, None)
    before, files = path.read_bytes(), sorted(tmp_path.rglob("*"))

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(run_files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, runs[0], None, None)
    assert path.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == files


def test_a_resumed_runs_repeated_step_counts_once(tmp_path, runs):
    path = runs[0] / "metrics.jsonl"
    record = json.loads(path.read_text().splitlines()[-1])
    path.write_text(path.read_text() + json.dumps({**record, "loss": 0.125}) + "\n")
    text = Page(write_report(tmp_path / "report.html", runs[0], None, None)).text
    assert "and 0.125 at step 20" in text
    assert "rose" not in text


def test_without_any_run_there_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="must name a run, got none"):
        write_report(tmp_path / "report.html", None, None, None)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (0, "metrics.jsonl"), (0, "config.yaml"),
        (1, "results.json"), (1, "test_predictions.csv"), (1, "embedding.npz"),
        (2, "results.json"), (2, "test_predictions.npz"), (2, "per_protein.csv"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named_and_nothing_is_written(tmp_path, runs, part, name):
    (runs[part] / name).unlink()
    with pytest.raises(ValueError, match=rf"{runs[part].name}/{name}` must exist, got no such file"):
        write_report(tmp_path / "report.html", *runs)
    assert not list(tmp_path.glob("report*"))


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere` must be the directory of a run, got none"):
        write_report(tmp_path / "report.html", tmp_path / "nowhere", None, None)


@pytest.mark.parametrize(
    ("part", "name", "content", "message"),
    [
        (0, "metrics.jsonl", '{"step": 1}\n{"st', r"one JSON object per line, got '\{\"st' in line 2"),
        (0, "metrics.jsonl", "7\n", "one JSON object per line, got '7' in line 1"),
        (0, "metrics.jsonl", '{"step": 1}\n', "in its records, got no 'cells'"),
        (0, "metrics.jsonl", "", "in its records, got no 'step'"),
        (1, "results.json", "{", "must be complete JSON"),
        (1, "results.json", "7", "must be a JSON object, got 7"),
        (1, "results.json", "{}", "must have the entry 'table'"),
        (1, "test_predictions.csv", "", r"must have rows with \['label', 'predicted'\], got no 'label'"),
        (1, "test_predictions.csv", "label,predicted\n", "got no rows"),
        (1, "embedding.npz", "not an archive", "must be an npz file with the plain arrays"),
        (2, "per_protein.csv", "protein,method\nCD3,mean\n", "got no 'pearson'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, runs, part, name, content, message):
    (runs[part] / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{runs[part].name}/{name}` .*{message}"):
        write_report(tmp_path / "report.html", *runs)


def test_a_table_without_rows_or_with_incomplete_rows_is_refused(tmp_path, runs):
    edit_results(runs[2], table=[{"method": "mean"}])
    with pytest.raises(ValueError, match=r"rows hold .*'rmse'.*got \{'method': 'mean'\}"):
        write_report(tmp_path / "report.html", None, None, runs[2])
    edit_results(runs[2], table=[])
    with pytest.raises(ValueError, match="got no rows"):
        write_report(tmp_path / "report.html", None, None, runs[2])


def test_arrays_that_are_absent_or_hold_objects_are_refused(tmp_path, runs):
    np.savez(runs[2] / "test_predictions.npz", measured=np.zeros((2, 3)), predicted=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"the plain arrays .*, got: .*names"):
        write_report(tmp_path / "report.html", None, None, runs[2])
    labels = np.array(["a", "b"], dtype=object)
    np.savez(runs[1] / "embedding.npz", embedding=np.zeros((2, 3)), labels=labels, split=labels)
    with pytest.raises(ValueError, match=r"embedding.npz` must be an npz file .* Object arrays"):
        write_report(tmp_path / "report.html", None, runs[1], None)


def test_seen_test_cells_are_told(runs, tmp_path):
    answer = {"known": True, "seen": 7, "of": 60, "expected_by_chance": 0.012, "beyond_chance": True}
    edit_results(runs[1], seen_test_cells=answer)
    write_report(tmp_path / "report.html", *runs)
    page = (tmp_path / "report.html").read_text()
    assert "7 of 60; chance explains 0.012. The figures below are too good" in page
    assert "not known: the model does not tell" in page  # of the other run
    assert "too good" not in describe_seen_cells(answer | {"seen": 0, "beyond_chance": False})


@pytest.fixture
def sealed(runs):
    """The same with checksums, as the scripts write them now."""
    for run in runs[1:]:
        run_files.write_results(run, json.loads((run / "results.json").read_text()))
    metrics, config = runs[0] / "metrics.jsonl", runs[0] / "config.yaml"
    records = [seal_record(json.loads(line)) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    config.write_text(seal_text(config.read_text()))
    return runs


def read_runs(runs):
    """Read all that a report takes from runs."""
    return {
        "metrics": run_files.read_metrics(runs[0] / "metrics.jsonl")[["step", "split", "loss", "rna_loss"]].to_csv(),
        "config": run_files.read_text(runs[0] / "config.yaml"),
        "results": [without_seal(run_files.read_json(run / "results.json", (), ("method",))) for run in runs[1:]],
        "cells": run_files.read_table(runs[1] / "test_predictions.csv", ("label", "predicted")).to_csv(),
        "proteins": run_files.read_table(runs[2] / "per_protein.csv", ("protein", "method")).to_csv(),
        "embedding": run_files.read_arrays(runs[1] / "embedding.npz", ("embedding", "labels", "split")),
        "predicted": run_files.read_arrays(runs[2] / "test_predictions.npz", ("measured", "predicted", "names")),
    }


def without_seal(results):
    return {key: value for key, value in results.items() if key in ("table", "data", "cells", "task", "classes")}


def same_runs(left, right):
    return pickle.dumps(left) == pickle.dumps(right)


@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_damage_to_any_file_of_runs_is_told_of_or_changes_nothing(sealed, times):
    assert set(read_runs(sealed)) == set(read_runs(sealed))
    files = [file for run in sealed for file in all_files(run)]
    assert find_silent(files, DAMAGES * times, lambda: read_runs(sealed), same_runs) == []


def test_edited_files_of_runs_are_named(sealed, tmp_path):
    for path, edit, message in (
        (
            sealed[0] / "metrics.jsonl",
            ("10.25", "10.35"),
            r"metrics.jsonl` must be as it was written, got .* in line 1; delete it",
        ),
        (
            sealed[0] / "config.yaml",
            ("demo", "other"),
            r"config.yaml` must have its checksum, got another",
        ),
        (
            sealed[1] / "results.json",
            ("scFusionTTT", "other"),
            r"results.json` must have its checksum, got another",
        ),
        (
            sealed[1] / "test_predictions.csv",
            ("0.5", "0.6"),
            r"test_predictions.csv` must have its checksum, got another",
        ),
    ):
        whole = path.read_text()
        path.write_text(whole.replace(*edit, 1))
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path / "report.html", *sealed)
        path.write_text(whole)
    (sealed[0] / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"config.yaml` must be text, got other bytes"):
        write_report(tmp_path / "report.html", *sealed)


def test_a_table_that_is_none_is_refused(tmp_path, runs):
    edit_results(runs[1], table=5)
    with pytest.raises(ValueError, match=r"results.json` must have a list of rows as its table, got 5"):
        write_report(tmp_path / "report.html", None, runs[1], None)
