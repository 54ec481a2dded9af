"""Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.

python finetune/cross_modal_prediction.py --config configs/finetune/cross_modal_prediction.yaml
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm import ScFusionTTTModel
from scfusion_fm.config import CrossModalConfig, save_config
from scfusion_fm.console import parse_config, run_command
from scfusion_fm.cross_modal_task import PairedCells, fit_cross_modal, fit_protein_baselines
from scfusion_fm.data.prepare import check_new_path
from scfusion_fm.data.schema import Cells
from scfusion_fm.evaluation.conformal import PROTEIN_INTERVALS, ProteinIntervals, coverage_by
from scfusion_fm.export import export_model
from scfusion_fm.finetuning import (
    FitSettings,
    Source,
    check_test_cells,
    describe_provenance,
    rows_by_split,
    set_apart_calibration,
    split_cells,
    write_results,
)
from scfusion_fm.inference import load_pretrained, read_aligned


def main() -> None:
    """Run the fine-tuning from top to bottom."""
    config = parse_config(CrossModalConfig, __doc__)
    output = Path(config.output_dir)
    check_new_path(output, "output_dir")

    # Paired cells, and the split that pretraining held out.
    _, extractor = load_pretrained(Path(config.model), ScFusionTTTModel)
    cells, aligned = read_aligned(Path(config.data), extractor)
    data = PairedCells(aligned, extractor)
    rows = rows_by_split(data.paired, split_cells(cells.obs, config.split))
    rows = set_apart_calibration(rows, config.calibration_fraction, config.seed)
    counts = {name: len(part) for name, part in rows.items()}
    seen = check_test_cells(config, aligned, extractor, rows)
    groups, donors = (read_groups(cells, key) for key in (config.interval_group_key, config.coverage_key))
    print(f"{len(data.names)} proteins, cells: {counts}")

    # Fine-tune the pretraining pass with all proteins hidden.
    output.mkdir(parents=True)
    save_config(config, output / "config.yaml")
    settings = FitSettings(config.optim, config.seed, output / "trainer")
    fitted = fit_cross_modal(Source(Path(config.model)), data, rows, settings)

    # Held-out figures beside baselines that got the same cells.
    test = rows["test"]
    predictions = {"scFusionTTT": fitted.predict(test), **fit_protein_baselines(data, rows)}
    scores = {method: data.score(test, values) for method, values in predictions.items()}
    table = [{"method": method, **summary, "n_test": len(test)} for method, (_, summary) in scores.items()]
    facts = {"task": "protein from RNA", "proteins": ", ".join(data.names), "fine-tuned on": config.data}

    # Intervals from the calibration cells, and how often they hold what was measured in test cells.
    held_out = rows["calibration"]
    own = None if groups is None else groups[held_out]
    intervals = calibrate_intervals(data, held_out, fitted.predict(held_out), own)
    coverage = measure_coverage(data, test, intervals, predictions["scFusionTTT"], (groups, donors))
    coverage.to_csv(output / "interval_coverage.csv", index=False)
    files = {PROTEIN_INTERVALS: intervals.to_json().encode()}
    export_model(fitted.model, extractor, output / "model", facts, seen.cells, files)
    pd.concat([t.assign(method=m, protein=data.names) for m, (t, _) in scores.items()]).to_csv(
        output / "per_protein.csv", index=False
    )
    arrays = {"measured": data.measured[test], "predicted": predictions["scFusionTTT"], "names": np.array(data.names)}
    np.savez(output / "test_predictions.npz", **arrays)
    parameters = {"trained": fitted.num_trained, "total": fitted.model.num_parameters()}
    results = {
        "task": "cross_modal_prediction",
        "data": config.data,
        "cells": counts,
        "proteins": data.names,
        "unit": "CLR",
        "provenance": describe_provenance(cells.container),
        "table": table,
        "intervals": describe_intervals(intervals, coverage),
        "split": dataclasses.asdict(config.split),
        "parameters": parameters,
        "seen_test_cells": seen.test_cells,
    }
    write_results(output, results)
    print(pd.DataFrame(table).round(3).to_string(index=False))
    print(f"{parameters['trained']:,} of {parameters['total']:,} parameters were trained")
    print(f"results, predictions and model are in {output}")


def read_groups(cells: Cells, key: str | None) -> NDArray[np.object_] | None:
    """
    Read a column of obs; None without a key.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    if key is None:
        return None
    if key not in cells.obs:
        raise ValueError(f"`{key}` must be a column of obs, to group cells by; it has {list(cells.obs.columns)}.")
    return cells.obs[key].astype(object).to_numpy()


def calibrate_intervals(
    data: PairedCells, rows: NDArray[np.int64], predicted: NDArray[np.float32], groups: NDArray[np.object_] | None
) -> ProteinIntervals:
    """Calibrate on cells that neither trained nor chose the epoch."""
    return ProteinIntervals.calibrate(data.measured[rows], predicted, data.observed[rows], data.names, groups)


def measure_coverage(
    data: PairedCells,
    rows: NDArray[np.int64],
    intervals: ProteinIntervals,
    predicted: NDArray[np.float32],
    columns: tuple[NDArray[np.object_] | None, NDArray[np.object_] | None],
) -> pd.DataFrame:
    """Count at every level how often the intervals hold what was measured; `columns` are groups and donors."""
    groups, donors = (None if column is None else column[rows] for column in columns)
    tables = []
    for level in intervals.rule.levels:
        width = intervals.widths(level, len(rows), groups)
        ends = (predicted - width, predicted + width)
        table = coverage_by(data.measured[rows], *ends, data.observed[rows], data.names, donors)
        tables.append(table.assign(level=level))
    return pd.concat(tables, ignore_index=True)


def describe_intervals(intervals: ProteinIntervals, coverage: pd.DataFrame) -> dict[str, Any]:
    """Give what the results tell: mean coverage of test cells by level, and proteins without a promise."""
    pooled = coverage[coverage["group"] == "all"].groupby("level")["coverage"]
    return {
        "nominal": list(intervals.rule.levels),
        "coverage": [float(x) for x in pooled.mean()],
        "lowest_coverage_of_a_protein": [float(x) for x in pooled.min()],
        "without_interval": [int(intervals.without_interval(x).sum()) for x in intervals.rule.levels],
        "min_pearson": intervals.rule.min_pearson,
        "undetermined": [n for n, u in zip(intervals.names, intervals.undetermined, strict=True) if u],
    }


if __name__ == "__main__":
    run_command(main)
