"""Mean, spread and paired differences over units, against plain arithmetic."""

import numpy as np
import pytest
from scipy import stats

from scfusion_fm.evaluation.protocol.spread import (
    ALL_LABELS,
    average_parts,
    compare_with_best_baseline,
    corrected_interval,
    summarise,
    tabulate,
)
from scfusion_fm.evaluation.report.page import Spread, format_value, render_table

VALUES = {"model": [0.9, 0.7, 0.8, 0.6], "weak": [0.1, 0.2, 0.9, 0.2], "strong": [0.8, 0.7, 0.6, 0.6]}


def make_units():
    return [
        {
            "id": f"u{i}",
            "seed": i // 2,
            "fold": f"fold {i % 2}",
            "budget": None,
            "rows_sha256": {"test": f"cells {i}"},
            "test_ratio": 0.25,
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
    assert (found.low, found.high) == pytest.approx(corrected_interval(differences, 0.25))
    worst = compare_with_best_baseline(table, row, "f1", more_is_better=False)
    assert worst.baseline == "weak"
    assert compare_with_best_baseline(table[table["kind"] == "model"], row, "f1") is None


def test_seeds_of_the_same_test_cells_count_once():
    units = [unit | {"rows_sha256": {"test": f"cells {i // 2}"}} for i, unit in enumerate(make_units() + make_units())]
    for i, unit in enumerate(units):
        unit["id"] = f"u{i}"
    found = compare_with_best_baseline(
        tabulate(units), {"protocol": "held_out", "budget": ALL_LABELS, "inputs": "rna", "method": "model"}, "f1"
    )
    once = np.subtract(VALUES["model"], VALUES["strong"]).reshape(2, 2).mean(1)
    assert (found.low, found.high) == pytest.approx(corrected_interval(np.tile(once, 2), 0.25))
    assert found.n_units == 8


def test_the_interval_of_independent_values_is_that_of_the_t_test():
    values = np.random.default_rng(0).normal(2.0, 1.0, 12)
    plain = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert corrected_interval(values, 0.0) == pytest.approx((plain.low, plain.high))
    assert corrected_interval(values[:2], 0.25) == (None, None)


def test_the_interval_covers_the_mean_of_correlated_folds():
    rng = np.random.default_rng(1)
    ratio, n_draws = 0.25, 4000
    shared = ratio / (1 + ratio)
    values = np.sqrt(shared) * rng.normal(size=(n_draws, 1)) + np.sqrt(1 - shared) * rng.normal(size=(n_draws, 15))
    intervals = {r: np.array([corrected_interval(row, r) for row in values]) for r in (0.0, ratio)}
    covered = {r: float(((low_high[:, 0] < 0) & (low_high[:, 1] > 0)).mean()) for r, low_high in intervals.items()}
    assert covered[ratio] == pytest.approx(0.95, abs=0.015)
    assert covered[0.0] < 0.75


def test_parts_are_averaged_where_they_say_something():
    parts = average_parts(make_units(), {"method": "model"})
    assert parts.loc["B", "mean"] == pytest.approx(0.75)
    assert parts.loc["T", "mean"] == 0.5
    assert parts["n_units"].tolist() == [4, 1]
    assert parts.loc["B", ["low", "high"]].tolist() == [0.6, 0.9]


def test_a_spread_is_a_number_that_shows_its_deviation():
    assert format_value(Spread(0.5, 0.25)) == "0.500 ± 0.250"
    assert format_value(Spread(0.5, float("nan"))) == "0.500"
    html = render_table([{"a": Spread(0.5, 0.1)}, {"a": Spread(0.7, 0.2)}], {"a": "A"}, {"a": True})
    assert "<strong>0.700 ± 0.200</strong>" in html
    assert html.count("<strong>") == 1


def test_the_best_of_each_group_of_a_table_is_bold():
    rows = [{"inputs": inputs, "f1": f1} for inputs, f1 in (("adt", 0.5), ("adt", 0.6), ("rna", 0.2), ("rna", 0.1))]
    html = render_table(rows, {"inputs": "inputs", "f1": "F1"}, {"f1": True}, group="inputs")
    assert [text.split("<")[0] for text in html.split("<strong>")[1:]] == ["0.600", "0.200"]
    assert html.count('<tr class="group">') == 1
    plain = render_table(rows, {"inputs": "inputs", "f1": "F1"}, {"f1": True})
    assert plain.count("<strong>") == 1
    assert "<tr class" not in plain
