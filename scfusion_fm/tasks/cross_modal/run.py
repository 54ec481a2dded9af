"""The whole run of `finetune/cross_modal_prediction.py`, from top to bottom."""

import dataclasses
from pathlib import Path

import numpy as np

from scfusion_fm.config.finetune import CrossModalConfig
from scfusion_fm.data.files.coverage import measure_panel
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, write_intervals
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.tasks.cross_modal.baselines import predict_by_baselines
from scfusion_fm.tasks.cross_modal.calibrate import (
    calibrate_for_new_groups,
    calibrate_intervals,
    describe_intervals,
    measure_coverage,
    read_groups,
    read_left_out,
)
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.cross_modal.fit import fit_cross_modal
from scfusion_fm.tasks.ranks import by_all_ranks, leave_rest_to_rank_0
from scfusion_fm.tasks.results import describe_provenance, finish_run, start_run
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.splits import split_cells
from scfusion_fm.tasks.weights import Weights


@by_all_ranks
def run_cross_modal(config: CrossModalConfig) -> None:
    """Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells."""
    run = Scratch(config.output_dir, "output_dir")

    # Paired cells, and the split that pretraining held out.
    _, extractor = load_pretrained(Path(config.model), ScFusionTTTModel)
    cells, aligned = read_aligned(
        Path(config.data), extractor, batch_key=config.batch_key, min_coverage=config.min_coverage
    )
    print("; ".join(found.describe() for found in measure_panel(cells, aligned)))
    data = PairedCells(aligned, extractor, batches=read_groups(cells, config.background_key))
    partition = data.keep_paired(split_cells(cells.obs, config.split))
    left_out = read_left_out(cells, config, partition)
    if left_out is None:
        partition = partition.set_apart_calibration(config.calibration_fraction, config.seed)
    seen = check_test_cells(config, aligned, extractor, partition)
    groups, donors = (read_groups(cells, key) for key in (config.interval_group_key, config.coverage_key))
    print(f"{len(data.names)} proteins, cells: {partition.counts}")

    # Fine-tune the pretraining pass with all proteins hidden; make intervals from cells that it did not learn from.
    settings = FitSettings(config.optim, config.seed, start_run(run, config, aligned) / "main")
    weights = Weights(Path(config.model))
    fitted = fit_cross_modal(weights, data, partition, settings)
    if left_out is None:
        intervals = calibrate_intervals(data, partition.calibration, fitted, groups)
    else:
        intervals = calibrate_for_new_groups(weights, data, partition, settings, left_out)
    leave_rest_to_rank_0()

    # Held-out figures beside baselines that got the same cells.
    test = partition.test
    predictions = {"scFusionTTT": fitted.predict(test), **predict_by_baselines(data, partition, config.seed)}
    table, per_protein = data.tabulate(test, predictions)
    per_protein.to_csv(run.path / "per_protein.csv", index=False)
    arrays = {"measured": data.measured[test], "predicted": predictions["scFusionTTT"], "names": np.array(data.names)}
    np.savez(run.path / "test_predictions.npz", **arrays)

    # How often the intervals hold what was measured in test cells.
    coverage = measure_coverage(data, test, intervals, predictions["scFusionTTT"], (groups, donors))
    coverage.to_csv(run.path / "interval_coverage.csv", index=False)
    results = {
        "task": "cross_modal_prediction",
        "data": config.data,
        "cells": partition.counts,
        "proteins": data.names,
        "unit": "CLR",
        "provenance": describe_provenance(cells.container),
        "table": table,
        "intervals": describe_intervals(intervals, coverage),
        "split": dataclasses.asdict(config.split),
    }

    # The model with its card and intervals, and the results.
    facts = {"task": "protein from RNA", "proteins": ", ".join(data.names), "fine-tuned on": config.data}
    finish_run(run, fitted, seen, facts, {PROTEIN_INTERVALS: write_intervals(intervals)}, results)
