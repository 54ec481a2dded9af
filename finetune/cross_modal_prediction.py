"""Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.

python finetune/cross_modal_prediction.py --config configs/finetune/cross_modal_prediction.yaml
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForCrossModalPrediction, ScFusionTTTModel
from scfusion_fm.config import CrossModalConfig, save_config
from scfusion_fm.console import parse_config, run_command
from scfusion_fm.data.prepare import check_new_path
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.evaluation.baselines import predict_protein_baselines
from scfusion_fm.evaluation.conformal import PROTEIN_INTERVALS, ProteinIntervals, coverage_by
from scfusion_fm.evaluation.metrics import protein_scores
from scfusion_fm.export import export_model
from scfusion_fm.finetuning import (
    CellCollator,
    check_test_cells,
    describe_provenance,
    predict_rows,
    rows_by_split,
    split_cells,
    train_best,
    write_results,
)
from scfusion_fm.inference import load_pretrained, read_aligned


@dataclass
class PairedCells:
    """Cells of one file with RNA and protein, their split, and the measured proteins of its panel."""

    cells: Cells
    aligned: AlignedCells
    extractor: ScFusionTTTFeatureExtractor
    split: NDArray[np.str_]

    def __post_init__(self):
        self.paired = np.flatnonzero(self.aligned.rna_present & self.aligned.adt_present)
        if len(self.paired) == 0:
            raise ValueError(f"`data` must hold cells with RNA and protein, got none in {self.cells.path!r}.")
        self.rows = rows_by_split(self.paired, self.split)
        self.panel = np.flatnonzero(self.aligned.adt_observed)
        self.names = [self.extractor.protein_names[i] for i in self.panel]
        counts = self.aligned.adt[:, self.panel]
        self.measured = self.extractor.normalise_adt(counts, np.ones(counts.shape, dtype=bool))  # (n, panel)


def main() -> None:
    """Run the fine-tuning from top to bottom."""
    config = parse_config(CrossModalConfig, __doc__)
    output = Path(config.output_dir)
    check_new_path(output, "output_dir")

    # Paired cells, and the split that pretraining held out.
    _, extractor = load_pretrained(Path(config.model), ScFusionTTTModel)
    cells, aligned = read_aligned(Path(config.data), extractor)
    data = PairedCells(cells, aligned, extractor, split_cells(cells.obs, config.split))
    groups, donors = (read_groups(cells, key) for key in (config.interval_group_key, config.coverage_key))
    counts = {name: len(rows) for name, rows in data.rows.items()}
    seen = check_test_cells(config, aligned, extractor, data.rows)
    print(f"{len(data.names)} proteins, cells: {counts}")

    # Fine-tune the pretraining pass with all proteins hidden.
    model = ScFusionTTTForCrossModalPrediction.from_pretrained(
        config.model, target_modality="adt", predicted_features=data.names
    )
    collator = CellCollator(aligned, extractor)
    output.mkdir(parents=True)
    save_config(config, output / "config.yaml")

    def score(prediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        summary = score_proteins(data.measured[data.rows["val"]], logits[:, data.panel])[1]
        return {"score": summary["pearson_per_protein"], **summary}

    collators = {"train": collator, "val": collator}
    train_best(model, data.rows, collators, score, (config.optim, config.seed, output / "trainer"))

    # Held-out figures beside baselines that got the same cells.
    test = data.rows["test"]
    predictions = {"scFusionTTT": predict_rows(model, collator, test, modalities=("rna",))[:, data.panel]}
    predictions |= fit_baselines(data)
    scores = {method: score_proteins(data.measured[test], p) for method, p in predictions.items()}
    table = [{"method": method, **summary, "n_test": len(test)} for method, (_, summary) in scores.items()]
    facts = {"task": "protein from RNA", "proteins": ", ".join(data.names), "fine-tuned on": config.data}

    # Intervals from the validation cells, and how often they hold what was measured in test cells.
    val = data.rows["val"]
    on_val = predict_rows(model, collator, val, modalities=("rna",))[:, data.panel]
    intervals = calibrate_intervals(data, on_val, None if groups is None else groups[val])
    coverage = measure_coverage(data, intervals, predictions["scFusionTTT"], groups, donors)
    coverage.to_csv(output / "interval_coverage.csv", index=False)
    files = {PROTEIN_INTERVALS: intervals.to_json().encode()}
    export_model(model, extractor, output / "model", facts, seen.cells, files)
    pd.concat([t.assign(method=m, protein=data.names) for m, (t, _) in scores.items()]).to_csv(
        output / "per_protein.csv", index=False
    )
    arrays = {"measured": data.measured[test], "predicted": predictions["scFusionTTT"], "names": np.array(data.names)}
    np.savez(output / "test_predictions.npz", **arrays)
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
        "seen_test_cells": seen.test_cells,
    }
    write_results(output, results)
    print(pd.DataFrame(table).round(3).to_string(index=False))
    print(f"results, predictions and model are in {output}")


def score_proteins(
    measured: NDArray[np.float32], predicted: NDArray[np.float32]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Score proteins of one panel, all of them measured in every cell."""
    return protein_scores(measured, predicted, np.ones(measured.shape, dtype=bool))


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
    data: PairedCells, predicted: NDArray[np.float32], groups: NDArray[np.object_] | None
) -> ProteinIntervals:
    """
    Calibrate on the validation cells.

    Notes
    -----
    They took no part in the gradient, but chose the epoch: the intervals are a little too narrow for it. The coverage
    on test cells, which chose nothing, is in the results.
    """
    measured = data.measured[data.rows["val"]]
    return ProteinIntervals.calibrate(measured, predicted, np.ones(measured.shape, dtype=bool), data.names, groups)


def measure_coverage(
    data: PairedCells,
    intervals: ProteinIntervals,
    predicted: NDArray[np.float32],
    groups: NDArray[np.object_] | None,
    donors: NDArray[np.object_] | None,
) -> pd.DataFrame:
    """Count at every level how often the intervals hold what was measured in test cells."""
    test = data.rows["test"]
    measured, seen = data.measured[test], np.ones((len(test), len(data.names)), dtype=bool)
    tables = []
    for level in intervals.rule.levels:
        width = intervals.widths(level, len(test), None if groups is None else groups[test])
        ends = (predicted - width, predicted + width)
        table = coverage_by(measured, *ends, seen, data.names, None if donors is None else donors[test])
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


def fit_baselines(data: PairedCells) -> dict[str, NDArray[np.float32]]:
    """Fit the baselines on the genes that the model gets; predictions for test cells by method."""
    aligned, extractor, paired = data.aligned, data.extractor, data.paired
    genes = np.flatnonzero(aligned.rna_observed)
    rna = extractor.normalise_rna(aligned.rna[paired][:, genes].toarray(), aligned.rna_total_counts[paired])
    column = {extractor.gene_ids[g]: i for i, g in enumerate(genes)}
    own = [column.get(extractor.protein_gene_ids[i]) for i in data.panel]
    observed = np.ones(data.measured[paired].shape, dtype=bool)
    return predict_protein_baselines(rna, data.measured[paired], observed, own, data.split[paired])


if __name__ == "__main__":
    run_command(main)
