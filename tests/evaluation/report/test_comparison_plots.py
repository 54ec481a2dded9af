"""Pictures of an evaluation: what is drawn is what the values say."""

import numpy as np
import pandas as pd
import pytest

from scfusion_fm.evaluation.report.comparison_plots import MAX_ROWS, Series, plot_budgets, plot_parts


def make_series(name, n, is_model=True):
    low, high = np.sort(np.random.default_rng(len(name)).random((2, n)), axis=0)
    values = pd.DataFrame({"mean": (low + high) / 2, "low": low, "high": high}, index=[f"part {i}" for i in range(n)])
    return Series(name, values, is_model)


def test_bars_reach_from_the_lowest_fold_to_the_highest():
    series = [make_series("ours", 5), make_series("best baseline", 5, False)]
    axes = plot_parts(series, "F1", "Per type").axes[0]
    order = series[0].values["mean"].sort_values().index
    assert [label.get_text() for label in axes.get_yticklabels()] == list(order)
    for one, bars in zip(series, axes.containers, strict=True):
        drawn = np.array([segment[:, 0] for segment in bars[2][0].get_segments()])
        np.testing.assert_allclose(drawn, one.values.loc[order, ["low", "high"]])


@pytest.mark.parametrize("n", [MAX_ROWS, MAX_ROWS + 1])
def test_many_parts_are_dots_against_the_last_method_or_the_best_of_one(n):
    series = [make_series("ours", n), make_series("other model", n), make_series("baseline", n, False)]
    axes = plot_parts(series, "r", "Per gene").axes[0]
    assert (axes.get_xlabel() == "r, baseline") == (n > MAX_ROWS)
    alone = plot_parts(series[:1], "r", "Per gene").axes[0]
    assert len(alone.get_yticks()) == MAX_ROWS
    assert alone.get_title() == ("Per gene" if n == MAX_ROWS else f"Per gene: the best {MAX_ROWS} of {n}")


def test_each_input_has_a_panel_of_curves_over_the_labels():
    values = pd.DataFrame({"mean": [0.8, 0.5], "sd": [0.1, np.nan]}, index=[600, 50])
    figure = plot_budgets({"rna": [Series("ours", values, True)], "adt": [Series("ours", values, True)]}, "macro F1")
    assert [axes.get_title() for axes in figure.axes] == ["from rna", "from adt"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[50, 0.5], [600, 0.8]])
