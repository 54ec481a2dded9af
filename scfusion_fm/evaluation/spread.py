"""Scores over folds and seeds: mean, spread, and paired differences to the best baseline.

A unit is one fold of one seed with one budget of labels. Its scores are rows with `method`, `inputs`, `kind` ("model"
or "baseline"), `protocol`, and the metrics.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

DRAWS = 10_000
GROUP = ["protocol", "budget", "inputs", "kind", "method"]
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
        95 % interval by bootstrap over units; None where there are fewer than three.
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
        Records with `id`, `seed`, `fold`, `budget` (None for all labels) and `scores`.
    """
    rows = [
        {
            "unit": unit["id"],
            "seed": unit["seed"],
            "fold": unit["fold"],
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
    groups = table.groupby(GROUP, sort=False, dropna=False)
    mean = groups[list(metrics)].mean()
    spread = groups[list(metrics)].std(ddof=1).add_suffix("_sd")
    return pd.concat([mean, spread, groups["unit"].nunique().rename("n_units")], axis=1).reset_index()


def compare_with_best_baseline(
    table: pd.DataFrame, row: dict, metric: str, more_is_better: bool = True, seed: int = 0
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
    seed
        Seed of the bootstrap.

    Returns
    -------
    None where there is no baseline with a score.
    """
    same = table[(table[["protocol", "budget", "inputs"]] == [row["protocol"], row["budget"], row["inputs"]]).all(1)]
    wide = same.pivot_table(index="unit", columns="method", values=metric, dropna=False, sort=False)
    means = wide[[m for m in wide if m in set(same.loc[same["kind"] == "baseline", "method"])]].mean().dropna()
    if means.empty or row["method"] not in wide:
        return None
    best = means.idxmax() if more_is_better else means.idxmin()
    difference = (wide[row["method"]] - wide[best]).dropna().to_numpy()
    if not len(difference):
        return None
    low, high = bootstrap_interval(difference, seed)
    return Difference(str(best), float(difference.mean()), low, high, len(difference))


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float | None, float | None]:
    """Give the 95 % percentile interval of the mean by drawing values with replacement; None for fewer than three.

    Parameters
    ----------
    values
        (n,), one per unit.
    seed
        Seed of the draws.
    draws
        Number of draws.
    """
    if len(values) < 3:
        return None, None
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


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
    `mean`, `sd` and `n_units` by name.
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
            "n_units": {name: len(found) for name, found in series.items()},
        }
    )
