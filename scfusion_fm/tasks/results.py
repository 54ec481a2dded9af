"""What a fine-tuning leaves: the model with its calibration, results, and the closing lines."""

from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from anndata import AnnData
from mudata import MuData
from transformers import PreTrainedModel

from scfusion_fm.config.loading import save_config
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.report.run_files import write_results
from scfusion_fm.inference.export import export_model
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.tasks.memory import claim_memory, identify_run
from scfusion_fm.tasks.seen import SeenByModel
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


def start_run(run: Scratch, config: Any, aligned: AlignedCells) -> Path:
    """
    Make the directory of a run, with its settings, by rank 0 for all; give where its fits keep checkpoints.

    What a run with the same settings, cells and model left there is gone on with.
    """

    def start() -> None:
        run.open()
        run.path.mkdir()
        save_config(config, run.path / "config.yaml")
        claim_memory(run.memory, identify_run(config, aligned))

    from_rank_0(start)
    return run.memory


def finish_run(
    run: Scratch,
    fitted: Fitted,
    seen: SeenByModel,
    facts: dict[str, str],
    calibration: dict[str, str],
    results: dict[str, Any],
) -> None:
    """
    Write the model to `model` and the figures to `results.json`, name the run, and print what came out.

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
        Files that stand beside the weights: their text by name.
    results
        What `results.json` tells, but for the parameters and the test cells that were seen; `table` is printed.
    """
    files = {name: text.encode() for name, text in calibration.items()}
    export_model(fitted.model, fitted.extractor, run.path / "model", facts, seen.cells, files)
    trained, total = fitted.num_trained, fitted.model.num_parameters()
    results = results | {"parameters": {"trained": trained, "total": total}, "seen_test_cells": seen.test_cells}
    write_results(run.path, results)
    run.publish()
    print(show_text(pd.DataFrame(results["table"]).round(3).to_string(index=False), keep="\n"))
    print(f"{trained:,} of {total:,} parameters were trained")
    print(f"results, predictions and model are in {run.output}")


def describe_provenance(container: AnnData | MuData) -> str:
    """Say in a line where a file is from, if it tells."""
    facts = container.uns.get("provenance", {})
    return "; ".join(f"{k}: {v}" for k, v in facts.items()) if isinstance(facts, dict) else str(facts)
