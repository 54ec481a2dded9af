"""What a fine-tuning leaves: the model with its calibration, results, a report, and the closing lines."""

import dataclasses
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from anndata import AnnData
from mudata import MuData
from transformers import PreTrainedModel

from scfusion_fm.config.finetune import FinetuneConfig
from scfusion_fm.config.loading import save_config
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.report.run_files import write_results
from scfusion_fm.evaluation.report.run_report import REPORT, write_task_report
from scfusion_fm.inference.export import export_model
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.tasks.memory import claim_memory, identify_run
from scfusion_fm.tasks.seen import SeenByModel
from scfusion_fm.tasks.splits import count_for_baselines
from scfusion_fm.training.collectives import from_rank_0
from scfusion_fm.untrusted.text import show_text


class Fitted(Protocol):
    """A fine-tuned model of any task."""

    @property
    def model(self) -> PreTrainedModel:
        """The model with its head."""

    @property
    def extractor(self) -> ScFusionTTTFeatureExtractor:
        """Its vocabulary and normaliser."""

    @property
    def num_trained(self) -> int:
        """How many of its parameters were trained."""


@dataclass(frozen=True)
class FineTuned:
    """
    What a fine-tuning left; printed, it tells the scores and where all is.

    Attributes
    ----------
    output_dir
        Directory with `results.json`, tables and, unless it was not wanted, `report.html`.
    results
        What `results.json` tells.
    """

    output_dir: Path
    results: dict[str, Any]

    @property
    def model(self) -> Path:
        """Directory of the model, for the commands and the verbs."""
        return self.output_dir / "model"

    @property
    def report(self) -> Path:
        """The page with tables and pictures, unless it was not wanted."""
        return self.output_dir / REPORT

    @property
    def scores(self) -> pd.DataFrame:
        """Scores of the model and of the baselines, on the same cells."""
        return pd.DataFrame(self.results["table"])

    def __str__(self) -> str:
        trained, total = (self.results["parameters"][name] for name in ("trained", "total"))
        lines = (
            show_text(self.scores.round(3).to_string(index=False), keep="\n"),
            *([self.results["final"]["told"]] if "final" in self.results else []),
            *([self.results["baselines"]] if "baselines" in self.results else []),
            f"{trained:,} of {total:,} parameters were trained",
            f"results, predictions and model are in {self.output_dir}",
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show the scores as a table in a notebook."""
        text = f"<p>{escape(str(self.output_dir))}</p>"
        return self.scores.round(3).to_html(index=False) + text

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def start_run(run: Scratch, config: Any, cells: str) -> Path:
    """
    Make the directory of a run, with its settings, by rank 0 for all; give where its fits keep checkpoints.

    What a run with the same settings, cells (by their checksum) and model left there is gone on with.
    """

    def start() -> None:
        run.open()
        run.path.mkdir()
        save_config(config, run.path / "config.yaml")
        claim_memory(run.memory, identify_run(config, cells))

    from_rank_0(start)
    return run.memory


def finish_run(
    run: Scratch,
    fitted: Fitted,
    seen: SeenByModel,
    facts: dict[str, str],
    calibration: dict[str, str | bytes],
    results: dict[str, Any],
    report: bool = False,
) -> FineTuned:
    """
    Write the model to `model` and the figures to `results.json`, name the run, and say what came out.

    Parameters
    ----------
    run
        The directory of the run, which has the other results.
    fitted
        The fine-tuned model.
    seen
        What it has seen, and which of its test cells were among that before.
    facts
        What the model card tells, by name.
    calibration
        Files that stand beside the weights: their text or content by name.
    results
        What `results.json` tells, but for the parameters and the test cells that were seen.
    report
        Whether to write `report.html`.
    """
    if "final" in results:
        facts = facts | {"how it was trained": results["final"]["told"]}
    files = {name: text if isinstance(text, bytes) else text.encode() for name, text in calibration.items()}
    export_model(fitted.model, fitted.extractor, run.path / "model", facts, seen.cells, files)
    trained, total = fitted.num_trained, fitted.model.num_parameters()
    results = results | {"parameters": {"trained": trained, "total": total}, "seen_test_cells": seen.test_cells}
    write_results(run.path, results)
    if report:
        write_task_report(run.path / REPORT, run.path)
    run.publish()
    return FineTuned(run.output, results)


def describe_split(
    config: FinetuneConfig, partition: Partition, rule: str, num_for_baselines: int | None = None
) -> dict[str, Any]:
    """
    Give what the results tell of the split: how many cells, how they were divided, and which of them are scored.

    Where baselines learn from fewer training cells than the model, a sentence says so.
    """
    given, used = len(partition.train), num_for_baselines or count_for_baselines(partition)
    fewer = {"baselines": f"baselines learned from {used:,} of the {given:,} training cells"} if used < given else {}
    return {
        "cells": partition.counts,
        **fewer,
        "split": dataclasses.asdict(config.split) | {"divided_by": rule},
        "scored_on": "test" if len(partition.test) else "calibration",
    }


def describe_provenance(container: AnnData | MuData | None) -> str:
    """Say in a line where a file is from, if it tells."""
    facts = {} if container is None else container.uns.get("provenance", {})
    return "; ".join(f"{k}: {v}" for k, v in facts.items()) if isinstance(facts, dict) else str(facts)
