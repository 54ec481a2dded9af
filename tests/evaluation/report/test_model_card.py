"""Parts of the card of a shipped model."""

from types import SimpleNamespace

from scfusion_fm.evaluation.report.model_card import write_cost, write_data, write_figures


def figure(task, study, method, kind, mean):
    return SimpleNamespace(
        task=task, study=study, method=method, kind=kind, cells=1000, mean=mean, low=mean - 0.1, high=mean + 0.1
    )


def test_the_model_comes_first_and_each_study_has_a_row():
    figures = [
        figure("types", "A | 1", "a baseline", "baseline", 0.5),
        figure("types", "A | 1", "our model", "model", 0.6),
        figure("types", "B", "our model", "model", 0.7),
    ]
    text = write_figures(figures, {"types": "macro-F1", "proteins": "r"})
    assert text.startswith("macro-F1:\n\n| study | our model | a baseline |\n| --- | --- | --- |\n")
    assert "| A / 1 (1,000 cells) | 0.600 (0.500 to 0.700) | 0.500 (0.400 to 0.600) |" in text
    assert text.endswith("| B (1,000 cells) | 0.700 (0.600 to 0.800) |  |")
    assert write_figures([], {"types": "macro-F1"}) == "None were measured."


def test_licences_and_costs_are_told():
    source = {"name": "<b>", "cells": 1200, "licence": "CC BY 4.0", "reference": "a laboratory"}
    assert "| &lt;b&gt; | 1,200 | CC BY 4.0 | a laboratory |" in write_data([source])
    text = write_cost({"pretrain": 3600.0, "export": 60.0})
    assert "| pretrain | 60.0 |" in text
    assert "Measured: 61 minutes in all. Estimated, not measured: 0.07 kWh and 31 g CO2e" in text
