"""One self-contained HTML page about an evaluation: tables over folds and seeds, pictures, and what to distrust."""

from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from scfusion_fm.evaluation.protocol.spread import (
    ALL_LABELS,
    HELD_OUT,
    PAPER,
    PAPER_TEST,
    Difference,
    average_parts,
    compare_with_best_baseline,
    summarise,
    tabulate,
)
from scfusion_fm.evaluation.report.comparison_plots import Series, plot_budgets, plot_parts
from scfusion_fm.evaluation.report.coverage_section import add_coverage
from scfusion_fm.evaluation.report.page import (
    Spread,
    encode_png,
    format_value,
    is_number,
    render_facts,
    render_findings,
    render_page,
    render_table,
)
from scfusion_fm.evaluation.report.run_files import replace_file
from scfusion_fm.evaluation.report.section import Section, render_readings
from scfusion_fm.evaluation.report.text import ANNOTATION_METRICS, MODEL_NAME, PROTEIN_METRICS, Metric, name_method

LABEL_METRICS = ANNOTATION_METRICS | {
    "auroc": Metric("AUROC", True, "how well probabilities rank cells of a type above others; mean over types."),
    "ece": Metric(
        "ECE",
        False,
        "how far probabilities are from the share that is right; less is better. The frequencies of types, given to "
        "all cells alike, are well calibrated and useless: read it beside the others.",
    ),
}
CLUSTER_METRICS = {
    "ari": Metric("ARI", True, "agreement of k-means clusters with the cell types; 0 is chance, 1 is perfect."),
    "nmi": Metric("NMI", True, "information that clusters and cell types share; 0 is none, 1 is all."),
    "ari_ward": Metric("ARI, Ward", True, "the same agreement for clusters by Ward's method."),
    "silhouette": Metric("silhouette", True, "from -1 to 1; above 0, cells lie closer to their own type."),
    "knn_purity": Metric("neighbour purity", True, "mean share of a cell's nearest neighbours that have its type."),
}
PAPER_METRICS = {key: CLUSTER_METRICS[key] for key in ("ari", "nmi")} | {
    "umap_silhouette": Metric("silhouette on UMAP", True, "of cell types on the two-dimensional picture."),
    "full_silhouette": Metric("silhouette", True, "of cell types in the embedding itself."),
}
INTEGRATION_METRICS = {
    "overall": Metric(
        "overall", True, "0.6 times the mean of the scores of types, 0.4 times that of batches (of those that exist)."
    ),
    "label_asw": Metric("types: silhouette", True, "whether cells lie near their own type."),
    "clisi": Metric("types: cLISI", True, "whether neighbours are of one type."),
    "graph_connectivity": Metric("types: connected", True, "whether cells of a type hang together."),
    "batch_asw": Metric("batches: silhouette", True, "whether batches of a type lie on top of one another."),
    "ilisi": Metric("batches: iLISI", True, "whether neighbours are of many batches."),
    "batch_entropy": Metric("batches: entropy", True, "whether neighbourhoods mix batches."),
}
IMPUTATION_METRICS = {
    "pearson_per_gene": Metric("Pearson per gene", True, "correlation over cells, then the mean over genes."),
    "pearson_per_cell": Metric("Pearson per cell", True, "correlation over genes, then the mean over cells."),
    "rmse": Metric("RMSE", False, "root of the mean squared error over hidden values; less is better."),
    "rmse_vs_mean": Metric("RMSE / gene mean's", False, "1 is no better than the mean of the gene; less is better."),
}
GENE_METRICS = {key: replace(m, name=m.name.replace("protein", "gene")) for key, m in PROTEIN_METRICS.items()}
# Of each task: metrics, the one that decides, what its parts are, and the score of a part.
TASKS: dict[str, tuple[dict[str, Metric], str, str, str]] = {
    "annotation": (LABEL_METRICS, "macro_f1", "cell type", "F1"),
    "protein_from_rna": (PROTEIN_METRICS, "pearson_per_protein", "protein", "Pearson r over test cells"),
    "rna_from_protein": (GENE_METRICS, "pearson_per_protein", "gene", "Pearson r over test cells"),
    "clustering": (CLUSTER_METRICS, "ari", "", ""),
    "integration": (INTEGRATION_METRICS, "overall", "", ""),
    "imputation": (IMPUTATION_METRICS, "pearson_per_gene", "", ""),
}
EVALUATION_LEAD = (
    "Models beside baselines that got the same cells. Every number is a mean over folds and seeds with its standard "
    "deviation (±). All methods learned from the training cells, chose settings on the validation cells, and are "
    "scored on test cells, unless a table says otherwise. The best number of each column among methods that were shown "
    "the same inputs is bold, whoever's it is."
)
INTERVAL_NOTE = (
    "Difference: the model less the best baseline (best by its mean over the same test cells, which favours the "
    "baseline), fold by fold; in brackets the 95 % interval of its mean by the corrected resampled t-test (Nadeau and "
    "Bengio 2003), which is wider than the spread over folds suggests, since folds share training cells. It speaks of "
    "cells like these: of other donors, laboratories or tissues only where those were held out."
)
PAPER_NOTE = (
    "The way of scoring of the scFusionTTT family of papers: a model is fine-tuned with labels, then all cells are "
    "clustered, those whose labels it was trained on included, and the clusters are compared with the same labels; "
    "the baseline never sees a label. So these numbers say mostly how well training labels were learned. Beside them "
    "stands the same score for test cells alone. Only the held-out tables compare methods that got the same."
)
MARKS = {"leak": "behind", "warning": "behind", "note": ""}


def write_evaluation_report(
    out_html: Path,
    records: list[dict],
    facts: dict[str, dict[str, Any]],
    settings: str,
    command: str,
    coverage: dict[str, pd.DataFrame] | None = None,
) -> Path:
    """Write the page.

    Parameters
    ----------
    out_html
        The page; one that is there is replaced.
    records
        Units with `experiment`, `seed`, `fold`, `budget`, `leaks` and `scores`.
    facts
        What to tell of each experiment, by its title; with `task`.
    settings
        Settings as YAML.
    command
        Command that reproduces it.
    coverage
        By title, how often intervals of predicted proteins hold: the columns of `cross_coverage`, with `kind`, `method`
        and `seed`.

    Returns
    -------
    Path of the page.
    """
    by_title = {title: [r for r in records if r["experiment"] == title] for title in facts}
    coverage = coverage or {}
    sections = [
        build_section(title, units, facts[title], coverage.get(title)) for title, units in by_title.items() if units
    ]
    findings = [finding for section in sections for finding in section.findings]
    leaks = [finding for title, units in by_title.items() for finding in describe_leaks(title, units)]
    parts = [
        "<h2>What to distrust</h2>",
        render_findings(leaks) if leaks else "<p>Nothing was found by which test cells were known before.</p>",
        "<h2>Summary</h2>",
        render_findings(findings),
        *(f"<h2>{escape(section.title)}</h2>\n{section.html}" for section in sections),
        "<h2>Reproduce</h2>",
        f"<pre>{escape(command)}</pre>",
        f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>",
    ]
    replace_file(Path(out_html), render_page("scFusionTTT: evaluation", EVALUATION_LEAD, "\n".join(parts)).encode())
    return Path(out_html)


def describe_leaks(title: str, units: list[dict]) -> list[tuple[str, str]]:
    """Say what was found about the cells of an experiment, once for all folds.

    Parameters
    ----------
    title
        The experiment.
    units
        Its units, with `leaks`: `kind`, `severity`, `message`, `count`.

    Returns
    -------
    Pairs of a mark and a sentence, the worst first.
    """
    found: dict[tuple[str, str], dict[tuple[int, str], dict]] = {}
    folds = {(unit["seed"], unit["fold"]) for unit in units}
    for unit in units:
        for leak in unit["leaks"]:
            # A message about one model begins with its name: another model is another finding.
            subject = leak["message"].split(": ")[0] if leak["kind"].startswith("seen") else ""
            found.setdefault((leak["kind"], subject), {})[unit["seed"], unit["fold"]] = leak
    sentences = []
    for hits in found.values():
        leak, often = next(iter(hits.values())), ""
        if (
            leak["count"] and len(folds) > 1 and not leak["kind"].startswith("label")
        ):  # labels are the same in all folds
            total = sum(hit["count"] for hit in hits.values())
            often = f" (these numbers are of one fold; {len(hits)} of {len(folds)} folds have {total:,} such cells)"
        sentences.append((leak["severity"], f"{title}: {leak['severity']}. {leak['message']}{often}."))
    order = list(MARKS)
    return [(MARKS[severity], text) for severity, text in sorted(sentences, key=lambda s: order.index(s[0]))]


def build_section(
    title: str, units: list[dict], facts: dict[str, Any], coverage: pd.DataFrame | None = None
) -> Section:
    """Describe one experiment.

    Parameters
    ----------
    title
        The experiment.
    units
        Its units.
    facts
        What to tell of it.
    coverage
        How often its intervals hold, where it has some.
    """
    metrics, main, *_ = TASKS[facts["task"]]
    table = tabulate(units)
    summary = summarise(table[table["protocol"] == HELD_OUT], list(metrics))
    section = Section(title, [])
    sizes = {(unit["seed"], unit["fold"]): unit["cells"]["test"] for unit in units}
    section.add(render_facts(facts | {"test cells per fold": list(sizes.values())[:10]}))
    budgets = sorted(summary["budget"].unique(), key=lambda b: float("inf") if b == ALL_LABELS else b)
    for budget in reversed(budgets):
        rows = _build_rows(table, summary[summary["budget"] == budget], metrics, main)
        html = _render_rows(rows, metrics, main)
        if budget != budgets[-1]:
            html = f"<details><summary>With {budget:,} labels</summary>{html}</details>"
        section.add(html)
    section.findings = _describe_rows(title, table, summary[summary["budget"] == budgets[-1]], metrics[main], main)
    section.add(f'<p class="note">{escape(INTERVAL_NOTE)}</p>')
    if len(budgets) > 1:
        _add_budgets(section, units, summary, metrics[main].name, main)
    _add_parts(section, units, facts["task"], summary[summary["budget"] == budgets[-1]], main)
    _add_paper_table(section, table)
    if coverage is not None:
        add_coverage(section, coverage)
    section.add(render_readings(metrics))
    return section


def _build_rows(table: pd.DataFrame, summary: pd.DataFrame, metrics: dict[str, Metric], main: str) -> list[dict]:
    """Give the rows of a table, input by input, models first."""
    rows = []
    for row in summary.to_dict("records"):
        scores = {key: Spread(row[key], row[f"{key}_sd"]) for key in metrics}
        found = None
        if row["kind"] == "model":
            found = compare_with_best_baseline(table, row, main, metrics[main].more_is_better)
        rows.append(
            {
                "method": name_method(row["kind"], row["method"]),
                "inputs": row["inputs"],
                **scores,
                "difference": describe_difference(found) if found else "",
                "baseline": found.baseline if found else "",
                "n_units": int(row["n_units"]),
                "_order": (row["inputs"], row["kind"] != "model", -scores[main]),
            }
        )
    return sorted(rows, key=lambda row: row["_order"])


def describe_difference(found: Difference) -> str:
    """Write a difference with its interval, where there is one."""
    text = f"{found.mean:+.3f}"
    return text if found.low is None else f"{text} [{found.low:+.3f}, {found.high:+.3f}]"


def _render_rows(rows: list[dict], metrics: dict[str, Metric], main: str) -> str:
    headings = {
        "method": "method",
        "inputs": "inputs",
        **{key: metric.name for key, metric in metrics.items()},
        "difference": f"difference in {metrics[main].name}",
        "baseline": "best baseline",
        "n_units": "folds",
    }
    return render_table(rows, headings, {key: m.more_is_better for key, m in metrics.items()}, MODEL_NAME, "inputs")


def _describe_rows(
    title: str, table: pd.DataFrame, summary: pd.DataFrame, metric: Metric, main: str
) -> list[tuple[str, str]]:
    """Say of every model and input how it stands beside the best baseline."""
    sentences = []
    for row in summary[summary["kind"] == "model"].to_dict("records"):
        found = compare_with_best_baseline(table, row, main, metric.more_is_better)
        name = f"{title}, {name_method('model', row['method'])} from {row['inputs']}: {metric.name} "
        name += f"{format_value(Spread(row[main], row[f'{main}_sd']))} over {row['n_units']} folds"
        if found is None:
            sentences.append(("", f"{name}; no baseline to compare with."))
            continue
        text = f"{name}, {describe_difference(found)} beside {found.baseline}."
        if found.low is None:
            sentences.append(("", f"{text} Too few folds to tell whether that is more than chance."))
            continue
        better, worse = (found.low > 0, found.high < 0) if metric.more_is_better else (found.high < 0, found.low > 0)
        verdict = "Better." if better else "The baseline is better." if worse else "Not settled: the interval holds 0."
        sentences.append(("ahead" if better else "behind" if worse else "", f"{text} {verdict}"))
    return sentences


def _add_budgets(section: Section, units: list[dict], summary: pd.DataFrame, name: str, main: str) -> None:
    """Add the curves against the number of labels; all labels stand at the mean number that folds have."""
    whole = [unit["cells"]["train"] + unit["cells"]["val"] for unit in units if unit["budget"] is None]
    most = round(sum(whole) / len(whole)) if whole else 0
    panels: dict[str, list[Series]] = {}
    for (inputs, kind, method), rows in summary.groupby(["inputs", "kind", "method"], sort=False):
        values = pd.DataFrame({"mean": rows[main].to_numpy(), "sd": rows[f"{main}_sd"].to_numpy()})
        values.index = [most if budget == ALL_LABELS else budget for budget in rows["budget"]]
        panels.setdefault(inputs, []).append(Series(name_method(kind, method), values, kind == "model"))
    for series in panels.values():
        series.sort(key=lambda one: not one.is_model)
    section.add("<h3>Few labels</h3>")
    caption = (
        "Score against the number of labelled cells, training and validation together; bars are standard deviations."
    )
    section.add_figure("budgets.png", encode_png(plot_budgets(panels, name)), caption)


def _add_parts(section: Section, units: list[dict], task: str, summary: pd.DataFrame, main: str) -> None:
    """Add the scores per class, protein or gene: the models and the best baseline, from the richest input."""
    *_, part, score = TASKS[task]
    if not part:
        return
    budget = None if summary["budget"].iloc[0] == ALL_LABELS else int(summary["budget"].iloc[0])
    inputs = max(summary["inputs"], key=len)
    rows = summary[summary["inputs"] == inputs].sort_values(main, ascending=False)
    chosen = pd.concat([rows[rows["kind"] == "model"], rows[rows["kind"] == "baseline"].head(1)])
    series = []
    for row in chosen.to_dict("records"):
        key = {"protocol": HELD_OUT, "inputs": inputs, "kind": row["kind"], "method": row["method"]}
        values = average_parts([unit for unit in units if unit["budget"] == budget], key)
        series.append(Series(name_method(row["kind"], row["method"]), values, row["kind"] == "model"))
    section.add(f"<h3>Per {part}</h3>")
    caption = (
        f"Mean over folds for every {part}, from {inputs}, with the best baseline; bars reach from the lowest fold to "
        "the highest."
    )
    section.add_figure(f"{section.title}.png", encode_png(plot_parts(series, score, f"Per {part}")), caption)
    rows = [
        {"part": name, "method": one.name, "score": Spread(v["mean"], v["sd"]), "n": int(v["n_units"])}
        for one in series
        for name, v in one.values.iterrows()
        if is_number(float(v["mean"]))
    ]
    headings = {"part": part, "method": "method", "score": score, "n": "folds"}
    section.add(f"<details><summary>All numbers</summary>{render_table(rows, headings)}</details>")


def _add_paper_table(section: Section, table: pd.DataFrame) -> None:
    """Add the paper's way of scoring beside the held-out one."""
    paper = table[table["protocol"].isin([PAPER, PAPER_TEST])]
    if paper.empty:
        return
    summary = summarise(paper, list(PAPER_METRICS))
    keys = ["budget", "inputs", "kind", "method"]
    both = summary[summary["protocol"] == PAPER].merge(
        summary[summary["protocol"] == PAPER_TEST], on=keys, suffixes=("_paper", "_test")
    )
    rows = []
    for row in both.to_dict("records"):
        rows.append({"method": name_method(row["kind"], row["method"]), "inputs": row["inputs"]})
        rows[-1]["labels"] = "all" if row["budget"] == ALL_LABELS else int(row["budget"])
        for side in ("paper", "test"):
            rows[-1] |= {f"{m}_{side}": Spread(row[f"{m}_{side}"], row[f"{m}_sd_{side}"]) for m in PAPER_METRICS}
    headings = {"method": "method", "inputs": "inputs", "labels": "labels"}
    for side, text in (("paper", "all cells (paper)"), ("test", "test cells only")):
        headings |= {f"{m}_{side}": f"{metric.name}, {text}" for m, metric in PAPER_METRICS.items()}
    section.add(
        "<h3>The paper's way of scoring</h3>",
        f"<p>{escape(PAPER_NOTE)}</p>",
        render_table(rows, headings, model=MODEL_NAME),
    )
