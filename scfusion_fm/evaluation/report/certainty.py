"""How sure it is who is ahead: a sentence for the summary, with an interval of the difference to the best baseline."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from scfusion_fm.evaluation.report.page import is_number
from scfusion_fm.evaluation.report.text import MODEL_NAME, find_best_row, name_row

LEVEL = 0.95
Finding = tuple[str, str]


def judge_accuracy(rows: list[dict], topic: str) -> list[Finding]:
    """
    Say how far chance could move the difference in accuracy between the model and the best baseline.

    Parameters
    ----------
    rows
        Rows with "method", perhaps "inputs", "accuracy" and "n_test".
    topic
        What the sentence is about.

    Returns
    -------
    One finding; none where there is nothing to compare.

    Notes
    -----
    Newcombe's interval of Wilson scores. Both sides have the same cells, of which the table does not tell who was right
    where; the interval is that of different cells, and so rather too wide.
    """
    own, other = (
        find_best_row([row for row in rows if str(row["method"]).startswith(MODEL_NAME) == is_own], "accuracy", True)
        for is_own in (True, False)
    )
    if not all(is_number(row["accuracy"]) and row["n_test"] for row in (own, other)):
        return []
    shares = [(row["accuracy"], *_wilson(row["accuracy"], row["n_test"])) for row in (own, other)]
    (p, p_low, p_high), (q, q_low, q_high) = shares
    low = p - q - math.hypot(p - p_low, q_high - q)
    high = p - q + math.hypot(p_high - p, q - q_low)
    drawn = f"{own['n_test']:,} test cells; other donors or laboratories may differ by more"
    return [_judge(f"{topic}, accuracy", name_row(own), name_row(other), (p - q, low, high), drawn)]


def judge_proteins(own: pd.Series, rival: pd.Series | None, topic: str) -> list[Finding]:
    """
    Say how far chance could move the difference in mean correlation between the model and the best baseline.

    Parameters
    ----------
    own, rival
        Correlation of each protein; None for no baseline, which is named by its `name`.
    topic
        What the sentence is about.

    Returns
    -------
    One finding; none with fewer than 3 proteins that both have.

    Notes
    -----
    Student's interval of the mean of the differences, protein by protein.
    """
    if rival is None:
        return []
    differences = own.to_numpy(float) - rival.to_numpy(float)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 3:
        return []
    mean, spread = float(differences.mean()), float(stats.sem(differences))
    half = spread * float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1))
    drawn = f"{len(differences)} proteins; other cells, donors or laboratories may differ by more"
    return [
        _judge(f"{topic}, Pearson per protein", MODEL_NAME, str(rival.name), (mean, mean - half, mean + half), drawn)
    ]


def _judge(topic: str, own: str, other: str, interval: tuple[float, float, float], drawn: str) -> Finding:
    difference, low, high = interval
    mark = "ahead" if low > 0 else "behind" if high < 0 else ""
    verdict = (
        f"The model is {mark} by more than chance." if mark else "Chance may explain it: no side is ahead for sure."
    )
    return mark, (
        f"How sure? {topic}: {own} minus the best baseline, {other}, is {difference:+.3f}, with a 95 % interval of "
        f"{low:+.3f} to {high:+.3f} over {drawn}. {verdict}"
    )


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = stats.norm.ppf((1 + LEVEL) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half
