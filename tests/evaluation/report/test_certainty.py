"""How sure it is who is ahead: intervals that hold as often as they say, told once for each topic."""

import numpy as np
import pandas as pd
import pytest

from scfusion_fm.evaluation.report.certainty import _wilson, judge_accuracy, judge_proteins


def make_rows(own, other, n=200):
    return [
        {"method": "scFusionTTT", "inputs": "rna", "accuracy": own, "n_test": n},
        {"method": "scFusionTTT", "inputs": "adt", "accuracy": own - 0.1, "n_test": n},
        {"method": "majority", "inputs": "rna", "accuracy": 0.2, "n_test": n},
        {"method": "PCA + kNN", "inputs": "rna", "accuracy": other, "n_test": n},
    ]


@pytest.mark.parametrize(
    ("own", "other", "mark", "verdict"),
    [
        (0.80, 0.78, "", "Chance may explain it: no side is ahead for sure."),
        (0.90, 0.70, "ahead", "The model is ahead by more than chance."),
        (0.70, 0.90, "behind", "The model is behind by more than chance."),
    ],
)
def test_best_rows_are_compared_and_judged(own, other, mark, verdict):
    ((found, sentence),) = judge_accuracy(make_rows(own, other), "Cell types")
    assert found == mark
    assert sentence.startswith(
        "How sure? Cell types, accuracy: scFusionTTT (rna) minus the best baseline, PCA + kNN (rna)"
    )
    assert f"{own - other:+.3f}" in sentence
    assert sentence.endswith(verdict)


def test_nothing_to_compare_is_not_judged():
    assert judge_accuracy(make_rows(0.9, 0.8, n=0), "Cell types") == []
    assert judge_accuracy([row | {"accuracy": None} for row in make_rows(0.9, 0.8)], "Cell types") == []
    assert judge_proteins(pd.Series([0.1, 0.2, 0.3]), None, "Proteins") == []
    assert judge_proteins(pd.Series([0.1, 0.2, np.nan]), pd.Series([0.1, 0.1, 0.1], name="ridge"), "Proteins") == []


def test_the_interval_of_the_accuracy_is_wilsons():
    # The ends are the roots of |p - p0| = 1.96 sqrt(p (1 - p) / n).
    for end in _wilson(0.8, 100):
        assert abs(end - 0.8) == pytest.approx(1.96 * np.sqrt(end * (1 - end) / 100), abs=2e-3)


def test_intervals_hold_as_often_as_they_say():
    draw, held = np.random.default_rng(0), 0
    for _ in range(300):
        own, other = draw.binomial(200, 0.8) / 200, draw.binomial(200, 0.7) / 200
        ((_, sentence),) = judge_accuracy(make_rows(own, other), "x")
        words = sentence.partition("interval of ")[2].split()
        held += float(words[0]) <= 0.1 <= float(words[2])
    assert 0.92 < held / 300 < 0.98


def test_proteins_are_compared_pair_by_pair():
    shared = np.random.default_rng(0).random(40)
    noise = np.random.default_rng(1).normal(0, 0.01, 40)
    ((mark, sentence),) = judge_proteins(pd.Series(shared + 0.02 + noise), pd.Series(shared, name="ridge"), "Proteins")
    assert mark == "ahead"  # though the correlations themselves spread far more than they differ
    assert "Pearson per protein: scFusionTTT minus the best baseline, ridge, is +0.0" in sentence
    assert "over 40 proteins" in sentence
