"""Mean, spread and paired differences over units, against plain arithmetic."""

import numpy as np
import pytest

from scfusion_fm.evaluation.report_page import Spread, format_value, render_table
from scfusion_fm.evaluation.spread import (
    ALL_LABELS,
    average_parts,
    bootstrap_interval,
    compare_with_best_baseline,
    summarise,
    tabulate,
)

VALUES = {"model": [0.9, 0.7, 0.8, 0.6], "weak": [0.1, 0.2, 0.9, 0.2], "strong": [0.8, 0.7, 0.6, 0.6]}


def make_units():
    return [
        {
            "id": f"u{i}",
            "seed": i // 2,
            "fold": f"fold {i % 2}",
            "budget": None,
            "scores": [
                {
                    "kind": "model" if name == "model" else "baseline",
                    "method": name,
                    "inputs": "rna",
                    "protocol": "held_out",
                    "f1": values[i],
                    "parts": {"B": values[i], "T": None if i else 0.5},
                }
                for name, values in VALUES.items()
            ],
        }
        for i in range(4)
    ]


def test_mean_and_spread_are_those_of_the_units():
    summary = summarise(tabulate(make_units()), ["f1"]).set_index("method")
    for name, values in VALUES.items():
        assert summary.loc[name, "f1"] == pytest.approx(np.mean(values))
        assert summary.loc[name, "f1_sd"] == pytest.approx(np.std(values, ddof=1))
        assert summary.loc[name, "n_units"] == 4


def test_differences_are_paired_with_the_best_baseline():
    table = tabulate(make_units())
    row = {"protocol": "held_out", "budget": ALL_LABELS, "inputs": "rna", "method": "model"}
    found = compare_with_best_baseline(table, row, "f1")
    assert (found.baseline, found.n_units) == ("strong", 4)
    differences = np.subtract(VALUES["model"], VALUES["strong"])
    assert found.mean == pytest.approx(differences.mean())
    assert differences.min() <= found.low < found.mean < found.high <= differences.max()
    worst = compare_with_best_baseline(table, row, "f1", more_is_better=False)
    assert worst.baseline == "weak"
    assert compare_with_best_baseline(table[table["kind"] == "model"], row, "f1") is None


def test_bootstrap_interval_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.015)
    assert bootstrap_interval(values[:2]) == (None, None)


def test_parts_are_averaged_where_they_say_something():
    parts = average_parts(make_units(), {"method": "model"})
    assert parts.loc["B", "mean"] == pytest.approx(0.75)
    assert parts.loc["T", "mean"] == 0.5
    assert parts["n_units"].tolist() == [4, 1]


def test_a_spread_is_a_number_that_shows_its_deviation():
    assert format_value(Spread(0.5, 0.25)) == "0.500 ± 0.250"
    assert format_value(Spread(0.5, float("nan"))) == "0.500"
    html = render_table([{"a": Spread(0.5, 0.1)}, {"a": Spread(0.7, 0.2)}], {"a": "A"}, {"a": True})
    assert "<strong>0.700 ± 0.200</strong>" in html
    assert html.count("<strong>") == 1
