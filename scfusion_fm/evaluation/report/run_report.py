"""One self-contained HTML page about a pretraining run and the fine-tuning runs after it."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scfusion_fm.evaluation.metrics.labels import annotation_scores, class_scores
from scfusion_fm.evaluation.report.certainty import judge_accuracy, judge_proteins
from scfusion_fm.evaluation.report.page import (
    encode_png,
    is_number,
    render_facts,
    render_findings,
    render_page,
    render_table,
)
from scfusion_fm.evaluation.report.plots import plot_confusion, plot_losses, plot_proteins, plot_umap
from scfusion_fm.evaluation.report.run_files import (
    RESULTS,
    read_arrays,
    read_json,
    read_metrics,
    read_table,
    read_text,
    replace_file,
)
from scfusion_fm.evaluation.report.section import Section, render_readings
from scfusion_fm.evaluation.report.task_sections import build_imputation_section, build_integration_section
from scfusion_fm.evaluation.report.text import (
    ANNOTATION_METRICS,
    EMBEDDING_READINGS,
    MODEL_NAME,
    PROTEIN_METRICS,
    Metric,
    compare_with_baselines,
    describe_seen_cells,
    describe_validation,
    find_best_row,
    name_row,
)

REPORT = "report.html"
FIGURES = ("losses.png", "umap.png", "confusion.png", "proteins.png")
RUN_LEAD = (
    "What one run measured, beside simple baselines that got the same cells and the same labels. The tables "
    "score held-out test cells, which neither the training for the task nor the choice of its settings has "
    "seen. Pretraining, which reads no cell types, may have seen them where it used the same data. Every "
    "number is of one split and one training run. The best number of a column is bold, whoever's it is."
)


def write_report(out_html: Path, pretraining: Path | None, annotation: Path | None, cross_modal: Path | None) -> Path:
    """Write one HTML page with all figures and tables, and the figures beside it as PNG.

    Parameters
    ----------
    out_html
        The page; one that is there is replaced, at once and only when the new one is complete. Figures go to
        `<stem>_figures/` beside it.
    pretraining
        Run directory with `metrics.jsonl` and `config.yaml`, or `None`.
    annotation
        Run directory with `results.json`, `test_predictions.csv` and `embedding.npz`, or `None`.
    cross_modal
        Run directory with `results.json`, `test_predictions.npz` and `per_protein.csv`, or `None`.

    Returns
    -------
    Path of the page.

    Raises
    ------
    ValueError
        If no run is given, or a file of a run is missing or incomplete. Nothing is written then.
    """
    builders: list[tuple[Path | None, Callable[[Path], Section]]] = [
        (pretraining, build_pretraining_section),
        (annotation, build_annotation_section),
        (cross_modal, build_cross_modal_section),
    ]
    sections = [build(Path(run)) for run, build in builders if run is not None]
    if not sections:
        raise ValueError("`pretraining`, `annotation` or `cross_modal` must name a run, got none; pass at least one.")
    return _write_page(Path(out_html), sections, RUN_LEAD)


def write_task_report(out_html: Path, run: Path) -> Path:
    """Write the page of one fine-tuning run, whatever its task, and the figures beside it; give its path.

    Parameters
    ----------
    out_html
        The page; see `write_report`.
    run
        Directory of the run.

    Raises
    ------
    ValueError
        If a file of the run is missing or incomplete, or there is no page for its task.
    """
    task = read_json(run / RESULTS, ("task",), ())["task"]
    if task not in TASK_SECTIONS:
        raise ValueError(
            f"`{run / RESULTS}` must be of one of the tasks {list(TASK_SECTIONS)}, got {str(task)[:60]!r}."
        )
    return _write_page(out_html, [TASK_SECTIONS[task](run)], RUN_LEAD)


def _write_page(out_html: Path, sections: list[Section], lead: str) -> Path:
    findings = [finding for section in sections for finding in section.findings]
    body = "<h2>Summary</h2>\n" + render_findings(findings)
    body += "".join(f"<h2>{escape(section.title)}</h2>\n{section.html}" for section in sections)
    _write_figures(
        out_html.parent / f"{out_html.stem}_figures",
        {name: png for section in sections for name, png in section.figures.items()},
    )
    replace_file(out_html, render_page("scFusionTTT: report of a run", lead, body).encode())
    return out_html


def build_pretraining_section(run: Path) -> Section:
    """Describe a pretraining run.

    Parameters
    ----------
    run
        Directory with `metrics.jsonl` and `config.yaml`.

    Raises
    ------
    ValueError
        If a file is missing or incomplete.
    """
    metrics, config = read_metrics(run / "metrics.jsonl"), read_text(run / "config.yaml")
    section = Section("Pretraining", [("", describe_validation(metrics))])
    train, last = metrics[metrics["split"] == "train"], metrics.iloc[-1]
    section.add(
        "<p>Masked genes and proteins are reconstructed from what is left visible. The validation loss is "
        "computed on cells that are not trained on.</p>",
        render_facts(
            {
                "steps": int(last["step"]),
                "cells seen": int(metrics["cells"].max()),
                "cells per second (median)": f"{train['cells_per_s'].median():.1f}",
                "wall time": f"{float(metrics['seconds'].max()) / 60:.1f} minutes",
            }
        ),
    )
    section.add_figure("losses.png", encode_png(plot_losses(metrics)), "Loss over the steps of the optimiser.")
    section.add(f"<details><summary>Settings of the run</summary><pre>{escape(config)}</pre></details>")
    return section


def build_annotation_section(run: Path) -> Section:
    """Describe a fine-tuning run for cell types.

    Parameters
    ----------
    run
        Directory with `results.json`, `test_predictions.csv` and `embedding.npz`.

    Raises
    ------
    ValueError
        If a file is missing or incomplete, or the table has no row of the model.
    """
    path = run / RESULTS
    keys = ("data", "labels_key", "classes", "dropped_classes", "cells", "provenance", "embedding")
    results = read_json(path, keys, ("method", "inputs", "n_test", *ANNOTATION_METRICS))
    cells = read_table(run / "test_predictions.csv", ("label", "predicted"))
    arrays = read_arrays(run / "embedding.npz", ("embedding", "labels", "split"))
    section = Section("Cell types", compare_with_baselines(path, results["table"], ANNOTATION_METRICS, "Cell types"))
    section.findings += judge_accuracy(results["table"], "Cell types")
    facts = {
        "data": results["data"],
        "provenance": results["provenance"],
        "labels": f"{results['labels_key']}, {len(results['classes'])} types",
        **_describe_split(results),
        "left out (too few cells)": results["dropped_classes"] or "none",
        "test cells that the model was trained on": describe_seen_cells(results.get("seen_test_cells")),
    }
    headings = {
        "method": "method",
        "inputs": "inputs",
        **_headings(ANNOTATION_METRICS),
        "n_test": "test cells",
    }
    section.add(
        "<p>Every method learned from the training cells, chose its settings on the validation cells, and is "
        "scored once on the test cells.</p>",
        render_facts(facts),
        render_table(results["table"], headings, _directions(ANNOTATION_METRICS), MODEL_NAME),
        render_readings(ANNOTATION_METRICS),
    )
    _add_confusions(section, results["table"], cells)
    _add_embedding(section, results["embedding"], arrays)
    return section


def build_cross_modal_section(run: Path) -> Section:
    """Describe a fine-tuning run that predicts proteins from RNA.

    Parameters
    ----------
    run
        Directory with `results.json`, `test_predictions.npz` and `per_protein.csv`.

    Raises
    ------
    ValueError
        If a file is missing or incomplete, or a table has no row of the model.
    """
    path = run / RESULTS
    results = read_json(path, ("data", "cells", "proteins", "unit"), ("method", *PROTEIN_METRICS))
    per_protein = read_table(run / "per_protein.csv", ("protein", "method", "pearson", "rmse", "n"))
    arrays = read_arrays(run / "test_predictions.npz", ("measured", "predicted", "names"))
    section = Section(
        "Proteins from RNA",
        compare_with_baselines(path, results["table"], PROTEIN_METRICS, "Proteins from RNA"),
    )
    n_test = len(arrays["measured"])
    rows = [{**row, "n_test": n_test} for row in results["table"]]
    facts = {
        "data": results["data"],
        **_describe_split(results),
        "proteins": len(results["proteins"]),
        "unit": results["unit"],
        "test cells that the model was trained on": describe_seen_cells(results.get("seen_test_cells")),
    }
    if "provenance" in results:
        facts["provenance"] = results["provenance"]
    headings = {"method": "method", **_headings(PROTEIN_METRICS), "n_test": "test cells"}
    section.add(
        "<p>The surface proteins of the test cells are predicted from their RNA alone. Every method learned "
        "from the training cells and chose its settings on the validation cells. Pretraining reads proteins: "
        "were the test cells among its cells, the model would have met their proteins before.</p>",
        render_facts(facts),
        render_table(rows, headings, _directions(PROTEIN_METRICS), MODEL_NAME),
        render_readings(PROTEIN_METRICS),
    )
    _add_proteins(section, path, rows, per_protein, arrays)
    return section


# How each task of a fine-tuning is told.
TASK_SECTIONS: dict[str, Callable[[Path], Section]] = {
    "cell_type_annotation": build_annotation_section,
    "unimodal_transfer": build_annotation_section,
    "cross_modal_prediction": build_cross_modal_section,
    "protein_imputation": build_imputation_section,
    "batch_integration": build_integration_section,
}


def _describe_split(results: dict) -> dict[str, Any]:
    """Say which cells are scored, and what the model that is kept learned from."""
    facts: dict[str, Any] = {"cells": results["cells"]}
    if "divided_by" in results.get("split", {}):
        facts["divided by"] = results["split"]["divided_by"]
    if "baselines" in results:
        facts["baselines"] = results["baselines"]
    if results.get("scored_on") == "calibration":
        facts["scored on"] = "the cells set apart for calibration, for want of test cells"
    if "final" in results:
        facts["the model that is kept"] = results["final"]["told"]
    return facts


def _headings(metrics: dict[str, Metric]) -> dict[str, str]:
    return {key: metric.name for key, metric in metrics.items()}


def _directions(metrics: dict[str, Metric]) -> dict[str, bool]:
    return {key: metric.more_is_better for key, metric in metrics.items()}


def _add_confusions(section: Section, rows: list[dict], cells: pd.DataFrame) -> None:
    """Add the confusion matrix and the table per class, and say whose they are."""
    labels, predicted = cells["label"].to_numpy(), cells["predicted"].to_numpy()
    accuracy = annotation_scores(labels, predicted)["accuracy"]
    own = [row for row in rows if str(row["method"]).startswith(MODEL_NAME)]
    match = next((row for row in own if is_number(row["accuracy"]) and abs(row["accuracy"] - accuracy) < 1e-3), None)
    whose = name_row(match) if match else f"a model whose accuracy, {accuracy:.3f}, is in no row of the table above"
    section.add("<h3>Per cell type</h3>")
    section.add_figure(
        "confusion.png",
        encode_png(plot_confusion(labels, predicted)),
        f"Predictions of {whose} for {len(cells):,} test cells. Rows are the true types with their number of "
        "cells; colour is the share of the row, numbers are cells.",
    )
    per_class = class_scores(labels, predicted).rename_axis("label").reset_index().to_dict("records")
    headings = {
        "label": "cell type",
        "n": "test cells",
        "recall": "recall",
        "precision": "precision",
        "f1": "F1",
    }
    section.add(render_table(per_class, headings))


def _add_embedding(section: Section, scores: dict, arrays: dict[str, np.ndarray]) -> None:
    """Add the UMAP and the scores of the embedding."""
    test = arrays["split"] == "test"
    n_cells = len(test)
    figure = plot_umap(arrays["embedding"], arrays["labels"], "Cell embedding", coloured=test if test.any() else None)
    section.add("<h3>Embedding</h3>")
    section.add_figure(
        "umap.png",
        encode_png(figure),
        f"UMAP of the embedding of {n_cells:,} cells; the {int(test.sum()):,} test cells are coloured by "
        "their true type. Distances between groups and the size of groups mean nothing.",
    )
    rows = [
        {"score": name, "value": value, "reading": EMBEDDING_READINGS.get(name, "")} for name, value in scores.items()
    ]
    section.add(render_table(rows, {"score": "score", "value": "value", "reading": "how to read it"}))
    section.add('<p class="note">Both scores are computed in the embedding\'s own dimensions, not on the picture.</p>')


def _add_proteins(
    section: Section, path: Path, rows: list[dict], per_protein: pd.DataFrame, arrays: dict[str, np.ndarray]
) -> None:
    """Add the picture of the proteins and the table with one row per protein."""
    names = [str(name) for name in arrays["names"]]
    own, rival = compare_proteins(path.parent, rows, per_protein, names)
    section.findings += judge_proteins(own["pearson"], rival, "Proteins from RNA")
    baseline = None if rival is None else str(rival.name)
    figure = plot_proteins(arrays["measured"], arrays["predicted"], names, own, rival)
    section.add("<h3>Per protein</h3>")
    section.add_figure(
        "proteins.png",
        encode_png(figure),
        f"Above: predicted against measured abundance in {len(arrays['measured']):,} test cells for the "
        "best, middle and worst proteins; on the dashed line they agree. Below: correlation of every protein"
        + (f", with the best baseline, {baseline}, as points." if baseline else "."),
    )
    table = own.sort_values("pearson", ascending=False)
    shown = table[["protein", "n", "pearson", "rmse"]].astype({"n": object})
    if rival is not None:
        shown["rival"] = rival.reindex(table.index)
    _add_protein_table(section, shown, baseline)


def compare_proteins(
    run: Path, rows: list[dict], per_protein: pd.DataFrame, names: list[str]
) -> tuple[pd.DataFrame, pd.Series | None]:
    """
    Find the scores of the model and the correlations of the best baseline.

    Parameters
    ----------
    run
        Directory of the run, for errors.
    rows, per_protein
        Scores of all methods, and of all methods and proteins.
    names
        (P,), proteins in the order of the arrays.

    Returns
    -------
    The model's scores, a row per protein in that order, and the baseline's, None where there is none.

    Raises
    ------
    ValueError
        If there are no scores of the model.
    """
    tables = {
        method: table.drop_duplicates("protein").set_index("protein").reindex(names).reset_index()
        for method, table in per_protein.groupby("method", sort=False)
    }
    own = next((method for method in tables if method.startswith(MODEL_NAME)), None)
    if own is None:
        raise ValueError(f"`{run / 'per_protein.csv'}` must have rows of {MODEL_NAME!r}, got {list(tables)}; add them.")
    others = [row for row in rows if row["method"] in tables and not row["method"].startswith(MODEL_NAME)]
    best = find_best_row(others, "pearson_per_protein", True)["method"] if others else None
    return tables[own], None if best is None else tables[best]["pearson"].rename(best)


def _add_protein_table(section: Section, shown: pd.DataFrame, baseline: str | None) -> None:
    """Add the numbers of every protein, folded away."""
    headings = {
        "protein": "protein",
        "n": "test cells",
        "pearson": f"Pearson, {MODEL_NAME}",
        "rmse": f"RMSE, {MODEL_NAME}",
    }
    if baseline is not None:
        headings["rival"] = f"Pearson, {baseline}"
    records = [{**row, "n": int(row["n"]) if is_number(row["n"]) else None} for row in shown.to_dict("records")]
    table = render_table(records, headings)
    section.add(f"<details><summary>All {len(records)} proteins</summary>{table}</details>")


def _write_figures(directory: Path, figures: dict[str, bytes]) -> None:
    """Write the pictures and take away those that an earlier report left under the same names."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, png in figures.items():
        replace_file(directory / name, png)
    for name in set(FIGURES) - set(figures):
        (directory / name).unlink(missing_ok=True)
