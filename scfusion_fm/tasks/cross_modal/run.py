"""The whole run of `finetune/cross_modal_prediction.py`, from top to bottom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scfusion_fm.config.finetune import CrossModalConfig
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, write_intervals
from scfusion_fm.evaluation.report.text import MODEL_NAME
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.notices import tell
from scfusion_fm.tasks.cross_modal.baselines import predict_by_baselines
from scfusion_fm.tasks.cross_modal.calibrate import (
    CALIBRATED,
    calibrate_for_new_groups,
    calibrate_intervals,
    describe_intervals,
    measure_coverage,
    read_groups,
    read_left_out,
)
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.cross_modal.fit import fit_cross_modal
from scfusion_fm.tasks.final import describe_final, join_all
from scfusion_fm.tasks.given import read_given
from scfusion_fm.tasks.ranks import by_all_ranks, leave_rest_to_rank_0
from scfusion_fm.tasks.results import FineTuned, describe_split, finish_run, start_run
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.splits import divide_cells, limit_parts
from scfusion_fm.tasks.weights import Weights

USUAL_LR = 1e-3


@by_all_ranks
def run_cross_modal(config: CrossModalConfig, objects: Sequence[Any] | None = None) -> FineTuned:
    """
    Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.

    Parameters
    ----------
    config
        What to do.
    objects
        AnnData or MuData for the names in `config.data`; None for files of these names.
    """
    run = Scratch(config.output_dir, "output_dir")

    # Paired cells, and the split that pretraining held out.
    _, extractor = load_pretrained(find_model(config.model), ScFusionTTTModel)
    cells = read_given(config, extractor, objects)
    data = PairedCells(cells.aligned, extractor, batches=read_groups(cells.obs, config.background_key))
    partition, rule = divide_cells(cells.obs, cells.own_names, config.split, config.batch_key)
    whole = data.keep_paired(partition)
    partition = limit_parts(whole, config.split.seed)
    left_out = read_left_out(cells.obs, config, partition)
    if left_out is None:
        partition = partition.set_apart_calibration(config.calibration_fraction, config.seed)
    seen = check_test_cells(config, cells.aligned, extractor, partition, whole)
    groups, donors = (read_groups(cells.obs, key) for key in (config.interval_group_key, config.coverage_key))
    tell(f"{len(data.names)} proteins, cells: {partition.counts}, divided by {rule}")

    # Fine-tune the pretraining pass with all proteins hidden; make intervals from cells that it did not learn from.
    optim = config.optim.settle(len(partition.train), USUAL_LR)
    settings = FitSettings(optim, config.seed, start_run(run, config, cells.fingerprint) / "main")
    weights = Weights(find_model(config.model))
    fitted = kept = fit_cross_modal(weights, data, partition, settings)
    if left_out is None:
        intervals = calibrate_intervals(data, partition.calibration, fitted, groups)
    else:
        intervals = calibrate_for_new_groups(weights, data, partition, settings, left_out)
    final = {}
    if config.final:
        everything = join_all(whole, fitted.epochs)
        kept = fit_cross_modal(weights, data, everything, settings.part("final", speaks=True), fitted)
        final = {"final": describe_final(partition, everything, kept.epochs, CALIBRATED)}
    leave_rest_to_rank_0()

    # Held-out figures beside baselines that got the same cells.
    scored = partition.scored
    predictions = {MODEL_NAME: fitted.predict(scored), **predict_by_baselines(data, partition, config.seed)}
    table, per_protein = data.tabulate(scored, predictions)
    per_protein.to_csv(run.path / "per_protein.csv", index=False)
    arrays = {"measured": data.measured[scored], "predicted": predictions[MODEL_NAME], "names": np.array(data.names)}
    np.savez(run.path / "test_predictions.npz", **arrays)

    # How often the intervals hold what was measured in test cells.
    coverage = None
    if len(partition.test):
        coverage = measure_coverage(data, partition.test, intervals, predictions[MODEL_NAME], (groups, donors))
        coverage.to_csv(run.path / "interval_coverage.csv", index=False)
    results = {
        "task": "cross_modal_prediction",
        "data": config.data_names,
        "proteins": data.names,
        "unit": "CLR",
        "provenance": cells.provenance,
        **describe_split(config, partition, rule),
        "optim": dataclasses.asdict(settings.optim),
        "table": table,
        "intervals": describe_intervals(intervals, coverage),
        **final,
    }

    # The model with its card and intervals, and the results.
    facts = {"task": "protein from RNA", "proteins": ", ".join(data.names), "fine-tuned on": config.data_names}
    files = {PROTEIN_INTERVALS: write_intervals(intervals)}
    return finish_run(run, kept, seen, facts, files, results, config.report)
