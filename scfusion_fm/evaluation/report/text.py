"""What the report says in words: how to read each metric, and who is ahead.

Every sentence is plain text, to be escaped by whoever puts it on a page.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from scfusion_fm.evaluation.report.page import find_best, format_value, is_number

MODEL_NAME = "scFusionTTT"


@dataclass(frozen=True)
class Metric:
    """How a score is called and read.

    Attributes
    ----------
    name
        Heading in tables.
    more_is_better
        Whether the largest value is the best.
    reading
        One sentence on what it means.
    """

    name: str
    more_is_better: bool
    reading: str


ANNOTATION_METRICS = {
    "accuracy": Metric("accuracy", True, "share of the test cells that are right; frequent types decide it."),
    "balanced_accuracy": Metric(
        "balanced accuracy",
        True,
        "mean over the types of the share that is found; all types count alike.",
    ),
    "macro_f1": Metric(
        "macro F1",
        True,
        "mean over the types of F1, which also punishes calling other cells by the type's name.",
    ),
}
PROTEIN_METRICS = {
    "pearson_per_protein": Metric(
        "Pearson per protein",
        True,
        "for each protein, the correlation over the test cells, then the mean over proteins. It asks which "
        "cells have more of a protein; predicting a constant scores 0.",
    ),
    "pearson_per_cell": Metric(
        "Pearson per cell",
        True,
        "for each cell, the correlation over its proteins, then the mean over cells. It is high for "
        "any method that knows which proteins are abundant in general: compare it with the row of the mean.",
    ),
    "rmse": Metric("RMSE", False, "root of the mean squared error over all measured values; less is better."),
}
EMBEDDING_READINGS = {
    "silhouette": "from -1 to 1; above 0, cells lie closer to their own type than to the next one.",
    "knn_purity": "mean share of a cell's nearest neighbours that have its type.",
}


def compare_with_baselines(
    path: Path, rows: list[dict], metrics: dict[str, Metric], topic: str
) -> list[tuple[str, str]]:
    """Say for every metric who is ahead: the model's best row or the best baseline.

    Parameters
    ----------
    path
        File that the rows come from, for the message.
    rows
        Rows with "method", perhaps "inputs", and the metrics.
    metrics
        The metrics by entry.
    topic
        What the sentences are about.

    Returns
    -------
    Pairs of "ahead", "behind" or "" (a tie to three decimals, or nothing to compare) and a sentence.

    Raises
    ------
    ValueError
        If the model or every baseline is absent.
    """
    own = [row for row in rows if str(row["method"]).startswith(MODEL_NAME)]
    others = [row for row in rows if row not in own]
    if not own or not others:
        raise ValueError(
            f"`{path}` must have rows of {MODEL_NAME!r} and of baselines, got {[row['method'] for row in rows]}; "
            "write both into its table."
        )
    return [_compare(key, metric, own, others, topic) for key, metric in metrics.items()]


def describe_validation(metrics: pd.DataFrame) -> str:
    """Say in one sentence how the validation loss went.

    Parameters
    ----------
    metrics
        Records with `step`, `split` and `loss`, sorted by step.
    """
    val = metrics.loc[metrics["split"] == "val", ["step", "loss"]].dropna()
    if val.empty:
        return "Pretraining: no validation loss was recorded."
    first, last, best = val.iloc[0], val.iloc[-1], val.loc[val["loss"].idxmin()]
    text = (
        f"Pretraining: validation loss {format_value(float(first['loss']))} at step {int(first['step']):,} "
        f"and {format_value(float(last['loss']))} at step {int(last['step']):,}."
    )
    if last["loss"] > best["loss"]:
        lowest = format_value(float(best["loss"]))
        text += f" The lowest was {lowest} at step {int(best['step']):,}; it rose afterwards."
    return text


def describe_seen_cells(found: dict | None) -> str:
    """Say how many test cells the model was trained on before.

    Parameters
    ----------
    found
        `seen_test_cells` of a run: `known`, and where it is, `seen`, `of`, `expected_by_chance` and
        `beyond_chance`; None where the run did not look.
    """
    if not found or not found["known"]:
        return "not known: the model does not tell which cells it was trained on"
    text = f"{found['seen']:,} of {found['of']:,}; chance explains {found['expected_by_chance']:.2g}"
    return f"{text}. The figures below are too good" if found["beyond_chance"] else text


def _compare(key: str, metric: Metric, own: list[dict], others: list[dict], topic: str) -> tuple[str, str]:
    """Compare the best rows of both sides by one metric."""
    model, baseline = (find_best_row(rows, key, metric.more_is_better) for rows in (own, others))
    values = [row[key] for row in (model, baseline)]
    if not all(map(is_number, values)):
        return "", f"{topic}, {metric.name}: nothing to compare."
    ours, theirs = (format_value(float(value)) for value in values)
    if ours == theirs:
        return (
            "",
            f"{topic}, {metric.name}: {name_row(model)} and the baseline {name_row(baseline)} tie at {ours}.",
        )
    if (values[0] > values[1]) == metric.more_is_better:
        return "ahead", (
            f"{topic}, {metric.name}: {name_row(model)} is ahead with {ours}; "
            f"the best baseline, {name_row(baseline)}, has {theirs}."
        )
    return "behind", (
        f"{topic}, {metric.name}: a baseline beats the model. {name_row(baseline)} has {theirs}, "
        f"{name_row(model)} has {ours}."
    )


def find_best_row(rows: list[dict], key: str, more_is_better: bool) -> dict:
    """Return the first row with the best number, or the first row where none is a number.

    Parameters
    ----------
    rows
        Rows of a table.
    key
        Entry to compare.
    more_is_better
        Whether the largest is the best.
    """
    best = find_best([row[key] for row in rows], more_is_better)
    return next((row for row in rows if row[key] == best), rows[0])


def name_row(row: dict) -> str:
    """Return the method and, where known, what it was given.

    Parameters
    ----------
    row
        Row of a table.
    """
    return f"{row['method']} ({row['inputs']})" if "inputs" in row else str(row["method"])


def name_method(kind: str, method: str) -> str:
    """Give the name of a method in a report; those of models begin alike."""
    return method if kind == "baseline" or method.startswith(MODEL_NAME) else f"{MODEL_NAME} ({method})"
