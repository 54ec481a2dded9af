"""Scores over folds and seeds: mean, spread, and paired differences to the best baseline.

A unit is one fold of one seed with one budget of labels. Its scores are rows with `method`, `inputs`, `kind` ("model"
or "baseline"), `protocol`, and the metrics.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

MIN_SETS = 3
HELD_OUT, PAPER, PAPER_TEST = "held_out", "paper", "paper, test cells only"  # protocols of scores
METHOD_KEYS = ["protocol", "budget", "inputs", "kind", "method"]
ALL_LABELS = -1  # a budget that sorts and groups; null in files


@dataclass(frozen=True)
class Difference:
    """How far a method is from the best baseline in the same units.

    Attributes
    ----------
    baseline
        The baseline with the best mean over the units; with hindsight, which favours it.
    mean
        Mean over units of method less baseline.
    low, high
        95 % interval of the mean, as `corrected_interval`; None where there are fewer than three sets of test cells.
    n_units
        Number of units.
    """

    baseline: str
    mean: float
    low: float | None
    high: float | None
    n_units: int


def tabulate(units: Iterable[dict]) -> pd.DataFrame:
    """Put the scores of units into one table, one row per unit, method, inputs and protocol.

    Parameters
    ----------
    units
        Records with `id`, `seed`, `fold`, `budget` (None for all labels), `rows_sha256` of `test`, `test_ratio` (test
        cells per other cell) and `scores`.
    """
    rows = [
        {
            "unit": unit["id"],
            "seed": unit["seed"],
            "fold": unit["fold"],
            "test_cells": unit["rows_sha256"]["test"],
            "test_ratio": unit["test_ratio"],
            "budget": ALL_LABELS if unit["budget"] is None else unit["budget"],
            **{key: value for key, value in score.items() if key != "parts"},
        }
        for unit in units
        for score in unit["scores"]
    ]
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Give mean and standard deviation of each metric over units, and the number of units.

    Parameters
    ----------
    table
        As `tabulate` gives it.
    metrics
        Columns to summarise.

    Returns
    -------
    One row per protocol, budget, inputs, kind and method, in the order of their first appearance, with columns
    `<metric>`, `<metric>_sd` (NaN for a single unit) and `n_units`.
    """
    groups = table.groupby(METHOD_KEYS, sort=False, dropna=False)
    mean = groups[list(metrics)].mean()
    spread = groups[list(metrics)].std(ddof=1).add_suffix("_sd")
    return pd.concat([mean, spread, groups["unit"].nunique().rename("n_units")], axis=1).reset_index()


def compare_with_best_baseline(
    table: pd.DataFrame, row: dict, metric: str, more_is_better: bool = True
) -> Difference | None:
    """Pair a method with the best baseline that was shown the same.

    Parameters
    ----------
    table
        As `tabulate` gives it.
    row
        `protocol`, `budget`, `inputs` and `method` of the method.
    metric
        Column to compare.
    more_is_better
        Whether the largest is the best.

    Returns
    -------
    None where there is no baseline with a score.

    Notes
    -----
    Units with the same test cells, as the seeds of one left-out group have, are no further evidence about cells: the
    interval counts their mean once.
    """
    same = table[(table[["protocol", "budget", "inputs"]] == [row["protocol"], row["budget"], row["inputs"]]).all(1)]
    wide = same.pivot_table(index="unit", columns="method", values=metric, dropna=False, sort=False)
    means = wide[[m for m in wide if m in set(same.loc[same["kind"] == "baseline", "method"])]].mean().dropna()
    if means.empty or row["method"] not in wide:
        return None
    best = means.idxmax() if more_is_better else means.idxmin()
    difference = (wide[row["method"]] - wide[best]).dropna()
    if difference.empty:
        return None
    sets = same.drop_duplicates("unit").set_index("unit").loc[difference.index]
    low, high = corrected_interval(
        difference.groupby(sets["test_cells"]).mean().to_numpy(), float(sets["test_ratio"].mean())
    )
    return Difference(str(best), float(difference.mean()), low, high, len(difference))


def corrected_interval(values: np.ndarray, ratio: float) -> tuple[float | None, float | None]:
    """Give the 95 % interval of a mean over folds by the corrected resampled t-test; None for fewer than three values.

    Parameters
    ----------
    values
        (J,), a difference for each set of test cells.
    ratio
        Test cells per other cell.

    Notes
    -----
    Folds train on much the same cells, so that their differences are correlated, and the spread over folds understates
    how far the mean is off. With variance s^2 of the values, that of their mean is taken to be (1 / J + ratio) s^2
    instead of s^2 / J, and the interval is that of Student's t with J - 1 degrees of freedom: Nadeau and Bengio 2003,
    "Inference for the generalization error", Machine Learning 52:239-281; for repeated folds, Bouckaert and Frank 2004,
    LNCS 3056:3-12. It is an approximation, exact where all values are correlated by ratio / (1 + ratio), which
    `test_the_interval_covers_the_mean_of_correlated_folds` draws.
    """
    n = len(values)
    if n < MIN_SETS:
        return None, None
    half = float(student.ppf(0.975, n - 1) * math.sqrt((1 / n + ratio) * np.var(values, ddof=1)))
    return float(values.mean()) - half, float(values.mean()) + half


def average_parts(units: Iterable[dict], key: dict) -> pd.DataFrame:
    """Average the scores of single classes, proteins or genes over units.

    Parameters
    ----------
    units
        As in `tabulate`; a score's `parts` holds a value by name, None where it says nothing.
    key
        Entries that a score must have, such as `method` and `inputs`.

    Returns
    -------
    `mean`, `sd`, `low` and `high` (the extremes) and `n_units` by name.
    """
    values: dict[str, list[float]] = {}
    for unit in units:
        for score in unit["scores"]:
            if all(score.get(name) == value for name, value in key.items()):
                for name, value in (score.get("parts") or {}).items():
                    values.setdefault(name, []).append(math.nan if value is None else value)
    series = {name: pd.Series(found, dtype=float).dropna() for name, found in values.items()}
    return pd.DataFrame(
        {
            "mean": {name: found.mean() for name, found in series.items()},
            "sd": {name: found.std(ddof=1) for name, found in series.items()},
            "low": {name: found.min() for name, found in series.items()},
            "high": {name: found.max() for name, found in series.items()},
            "n_units": {name: len(found) for name, found in series.items()},
        }
    )
