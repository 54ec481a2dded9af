"""The parts of a page about imputed proteins and about mixed batches."""

from pathlib import Path
from typing import Any

from scfusion_fm.evaluation.report.page import render_facts, render_table
from scfusion_fm.evaluation.report.run_files import RESULTS, read_json
from scfusion_fm.evaluation.report.section import Section, render_readings
from scfusion_fm.evaluation.report.text import (
    MODEL_NAME,
    PROTEIN_METRICS,
    Metric,
    compare_with_baselines,
    describe_seen_cells,
)

INTEGRATION_METRICS = {
    "overall": Metric("overall", True, "0.6 of the mean of the scores of types and 0.4 of that of batches."),
    "types": Metric("types", True, "mean of three scores of how well cell types stay apart."),
    "batches": Metric("batches", True, "mean of three scores of how well batches mix among cells of a type."),
}
SHOWN_FACTS = (
    "data",
    "cells",
    "proteins",
    "unit",
    "types",
    "test_groups",
    "folds",
    "baselines",
    "share_of_regression",
    "provenance",
)


def build_imputation_section(run: Path) -> Section:
    """Describe a fine-tuning run that imputes proteins; its directory has `results.json`.

    Raises
    ------
    ValueError
        If the file is missing or incomplete.
    """
    path = run / RESULTS
    results = read_json(path, ("data", "cells", "proteins", "unit"), ("method", "n_test", *PROTEIN_METRICS))
    findings = compare_with_baselines(path, results["table"], PROTEIN_METRICS, "Imputed proteins")
    section = Section("Imputed proteins", findings)
    _fill(
        section,
        "Proteins that held-out cells measured were hidden in turn, and imputed from their RNA and from those that "
        "were left. Correlations are within a study. The model is a mixture of its network and of a linear regression, "
        "whose share was chosen by validation cells.",
        results | {"proteins": len(results["proteins"])},
        PROTEIN_METRICS,
        {"method": "method", **{key: x.name for key, x in PROTEIN_METRICS.items()}, "n_test": "test cells"},
    )
    return section


def build_integration_section(run: Path) -> Section:
    """Describe a fine-tuning run that mixes batches; its directory has `results.json`.

    Raises
    ------
    ValueError
        If the file is missing or incomplete.
    """
    path = run / RESULTS
    results = read_json(path, ("data", "cells", "types"), ("method", "n", *INTEGRATION_METRICS))
    last = [row for row in results["table"] if row["cells"] == results["table"][-1]["cells"]]
    topic = f"Mixed batches, {last[0]['cells']}"
    section = Section("Mixed batches", compare_with_baselines(path, last, INTEGRATION_METRICS, topic))
    _fill(
        section,
        "Harmony and scVI, where installed, were fitted on the scored cells themselves, for they embed no others. "
        "Principal components within batches know the mean of each batch that is scored. The model does not: it embeds "
        "every cell alone.",
        results,
        INTEGRATION_METRICS,
        {"cells": "cells", "method": "method", **{k: x.name for k, x in INTEGRATION_METRICS.items()}, "n": "number"},
    )
    return section


def _fill(
    section: Section, lead: str, results: dict[str, Any], metrics: dict[str, Metric], headings: dict[str, str]
) -> None:
    facts = {name.replace("_", " "): results[name] for name in SHOWN_FACTS if results.get(name)}
    facts["test cells that the model was trained on"] = describe_seen_cells(results.get("seen_test_cells"))
    if "final" in results:
        facts["the model that is kept"] = results["final"]["told"]
    directions = {key: metric.more_is_better for key, metric in metrics.items()}
    table = render_table(results["table"], headings, directions, MODEL_NAME)
    section.add(f"<p>{lead}</p>", render_facts(facts), table, render_readings(metrics))
