"""The whole run of `finetune/protein_imputation.py`, from top to bottom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scfusion_fm.config.imputation import ImputationConfig
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, write_intervals
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.report.text import MODEL_NAME
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.inference.panel_regression import PANEL_REGRESSION
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.notices import tell
from scfusion_fm.tasks.cross_modal.calibrate import describe_intervals
from scfusion_fm.tasks.given import GivenCells, read_given
from scfusion_fm.tasks.held_out import ONE_STUDY, hold_out, read_batches, without_test
from scfusion_fm.tasks.imputation.baselines import impute_by_baselines
from scfusion_fm.tasks.imputation.calibrate import calibrate_imputation, measure_imputation_coverage
from scfusion_fm.tasks.imputation.cells import Hidden, PanelCells
from scfusion_fm.tasks.imputation.fit import fit_imputer
from scfusion_fm.tasks.ranks import by_all_ranks, leave_rest_to_rank_0
from scfusion_fm.tasks.results import FineTuned, describe_split, finish_run, start_run
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.splits import limit_parts
from scfusion_fm.tasks.weights import Weights

USUAL_LR = 1e-3
NAMES = {
    "mixture": MODEL_NAME,
    "network": f"{MODEL_NAME}, network alone",
    "regression": f"{MODEL_NAME}, regression alone",
}


@by_all_ranks
def run_imputation(config: ImputationConfig, objects: Sequence[Any] | None = None) -> FineTuned:
    """
    Fine-tune a pretrained model to impute proteins that panels lack, and compare it with baselines on the same cells.

    Parameters
    ----------
    config
        What to do.
    objects
        AnnData or MuData for the names in `config.data`; None for files of these names.
    """
    run = Scratch(config.output_dir, "output_dir")

    # Cells of panels that differ; whole files or batches that are held out, if they are named.
    _, extractor = load_pretrained(find_model(config.model), ScFusionTTTModel)
    cells = read_given(config, extractor, objects)
    data, partition, rule = divide_panels(config, cells, extractor)
    seen = check_test_cells(config, cells.aligned, extractor, partition)
    tell(f"{len(np.unique(data.studies))} studies, cells: {partition.counts}, divided by {rule}")

    # Fine-tune with another part of the proteins hidden in every epoch; intervals from cells it did not learn from.
    optim = config.optim.settle(len(partition.train), USUAL_LR)
    settings = FitSettings(optim, config.seed, start_run(run, config, cells.fingerprint) / "main")
    fitted = fit_imputer(Weights(find_model(config.model)), data, partition, settings, config.folds)
    turns = data.hide_in_turn(config.folds, config.seed)
    places = np.flatnonzero(fitted.regression.known)
    names = [extractor.protein_names[place] for place in places]
    calibration = fitted.hide(partition.calibration, turns)["mixture"]
    intervals = calibrate_imputation(calibration, names, places)
    leave_rest_to_rank_0()

    # Proteins hidden from held-out cells, beside baselines that got the same.
    hidden = {NAMES[name]: found for name, found in fitted.hide(partition.scored, turns).items()}
    hidden |= impute_by_baselines(data, partition, turns, fitted.regression.known, config.seed)
    table, per_protein = tabulate(hidden, extractor.protein_names)
    per_protein.to_csv(run.path / "per_protein.csv", index=False)
    measured, predicted, scored = (x[:, places] for x in hidden[MODEL_NAME].join())
    arrays = {"measured": np.where(scored, measured, np.nan), "predicted": predicted, "names": np.array(names)}
    np.savez(run.path / "test_predictions.npz", **arrays)
    coverage = None
    if len(partition.test):
        coverage = measure_imputation_coverage(hidden[MODEL_NAME], intervals, places)
        coverage.to_csv(run.path / "interval_coverage.csv", index=False)
    results = {
        "task": "protein_imputation",
        "data": config.data_names,
        "proteins": names,
        "unit": "centred log ratio over the visible proteins",
        "provenance": cells.provenance,
        **describe_split(config, partition, rule),
        "test_groups": list(config.test_groups),
        "folds": config.folds,
        "optim": dataclasses.asdict(settings.optim),
        "share_of_regression": fitted.regression.share,
        "penalty_of_regression": fitted.regression.penalty,
        "table": table,
        "intervals": describe_intervals(intervals, coverage),
    }

    # The model with its card, regression and intervals, and the results.
    facts = {"task": "imputation of proteins", "proteins": ", ".join(names), "fine-tuned on": config.data_names}
    files = {PANEL_REGRESSION: fitted.regression.to_bytes(), PROTEIN_INTERVALS: write_intervals(intervals)}
    return finish_run(run, fitted, seen, facts, files, results, config.report)


def divide_panels(config: ImputationConfig, cells: GivenCells, extractor: Any) -> tuple[PanelCells, Partition, str]:
    """
    Read panels and studies, and divide the cells with proteins.

    Raises
    ------
    ValueError
        If a column or a group is missing, or a part gets no cell.
    """
    batches, key = read_batches(cells, config)
    data = PanelCells(cells.aligned, extractor, np.where(pd.isna(batches), ONE_STUDY, batches).astype(str))
    wanted = without_test(config) if config.test_groups else config
    partition, held, rule = hold_out(cells, wanted, batches, key, config.test_groups)
    if config.test_groups:
        partition = dataclasses.replace(partition, test=held)
    advice = "choose other files, or change `split` or `test_groups`"
    partition = partition.keep(data.has_proteins, "`data` must hold cells with two proteins in each part", advice)
    partition = limit_parts(partition, config.split.seed)
    return data, partition.set_apart_calibration(config.calibration_fraction, config.seed), rule


def tabulate(hidden: dict[str, Hidden], protein_names: Sequence[str]) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Score the imputations of several methods: a line for each, and a table by study and protein."""
    lines, tables = [], []
    for method, found in hidden.items():
        own, summary = found.score()
        lines.append({"method": method, **summary, "n_test": len(found.studies)})
        table = pd.DataFrame(own).assign(method=method)
        tables.append(table.assign(protein=[protein_names[place] for place in table.pop("place")]))
    return lines, pd.concat(tables, ignore_index=True)
