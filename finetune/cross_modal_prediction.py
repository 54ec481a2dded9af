"""Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.

    python finetune/cross_modal_prediction.py --config configs/finetune/cross_modal_prediction.yaml
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from scfusion_fm import ScFusionTTTForCrossModalPrediction
from scfusion_fm.config import CrossModalConfig, load_config, save_config
from scfusion_fm.console import run_command
from scfusion_fm.data.prepare import check_new_path
from scfusion_fm.data.split import assign_split
from scfusion_fm.evaluation.baselines import predict_protein_baselines
from scfusion_fm.evaluation.metrics import protein_scores
from scfusion_fm.export import export_model
from scfusion_fm.finetuning import CellCollator, predict_rows, train_best, write_results
from scfusion_fm.inference import load_pretrained, read_aligned
from scfusion_fm.model import ScFusionTTTModel


def main() -> None:
    """Run the fine-tuning from top to bottom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file with the settings of CrossModalConfig")
    parser.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    args = parser.parse_args()
    config = load_config(CrossModalConfig, args.config, args.overrides)
    output = Path(config.output_dir)
    check_new_path(output, "output_dir")

    # Paired cells, and the split that pretraining held out.
    _, extractor = load_pretrained(Path(config.model), ScFusionTTTModel)
    cells, aligned = read_aligned(Path(config.data), extractor)
    rule = config.split
    if rule.group_key is not None and rule.group_key not in cells.obs:
        raise ValueError(f"`split.group_key` must be a column of obs, got {rule.group_key!r}.")
    groups = None if rule.group_key is None else cells.obs[rule.group_key].astype(str).to_numpy()
    split = assign_split(cells.obs.index.astype(str), rule.val_fraction, rule.test_fraction, rule.seed, groups)
    paired = aligned.rna_present & aligned.adt_present
    if not paired.any():
        raise ValueError(f"`data` must hold cells with RNA and protein, got none in {config.data!r}.")
    rows = {name: np.flatnonzero(paired & (split == name)) for name in ("train", "val", "test")}
    panel = np.flatnonzero(aligned.adt_observed)
    names = [extractor.protein_names[i] for i in panel]
    measured = extractor.normalise_adt(aligned.adt, np.broadcast_to(aligned.adt_observed, aligned.adt.shape))[:, panel]
    print(f"{len(names)} proteins, cells: { {k: len(v) for k, v in rows.items()} }")

    # Fine-tune the pretraining pass with all proteins hidden.
    model = ScFusionTTTForCrossModalPrediction.from_pretrained(
        config.model, target_modality="adt", predicted_features=names
    )
    collator = CellCollator(aligned, extractor)
    output.mkdir(parents=True)
    save_config(config, output / "config.yaml")

    def score(prediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        truth = measured[rows["val"]]
        summary = protein_scores(truth, logits[:, panel], np.ones_like(truth, dtype=bool))[1]
        return {"score": summary["pearson_per_protein"], **summary}

    train_best(
        model, rows, {"train": collator, "val": collator}, score, (config.optim, config.seed, output / "trainer")
    )

    # Held-out figures beside baselines that got the same cells.
    test = rows["test"]
    predictions = {"scFusionTTT": predict_rows(model, collator, test, modalities=("rna",))[:, panel]}
    predictions |= baselines(aligned, extractor, measured, split, panel)
    table, per_protein = [], []
    for method, predicted in predictions.items():
        scores, summary = protein_scores(measured[test], predicted, np.ones(predicted.shape, dtype=bool))
        table.append({"method": method} | summary)
        per_protein.append(scores.assign(method=method, protein=names))
    export_model(model, extractor, output / "model", {"task": "RNA to protein", "proteins": ", ".join(names)})
    np.savez(
        output / "test_predictions.npz",
        measured=measured[test],
        predicted=predictions["scFusionTTT"],
        names=np.array(names),
    )
    pd.concat(per_protein).to_csv(output / "per_protein.csv", index=False)
    results = {
        "task": "cross_modal_prediction",
        "data": config.data,
        "cells": {k: len(v) for k, v in rows.items()},
        "proteins": names,
        "unit": "CLR",
        "table": [row | {"n_test": len(test)} for row in table],
        "split": dataclasses.asdict(config.split),
    }
    write_results(output, results)
    print(pd.DataFrame(results["table"]).round(3).to_string(index=False))
    print(f"results, predictions and model are in {output}")


def baselines(aligned, extractor, measured, split, panel) -> dict[str, np.ndarray]:
    """Fit the baselines on the paired cells and the genes that the model gets."""
    paired = np.flatnonzero(aligned.rna_present & aligned.adt_present)
    genes = np.flatnonzero(aligned.rna_observed)
    rna = extractor.normalise_rna(aligned.rna[paired][:, genes].toarray(), aligned.rna_total_counts[paired])
    column = {extractor.gene_ids[g]: i for i, g in enumerate(genes)}
    own = [column.get(extractor.protein_gene_ids[i].split(";")[0]) for i in panel]
    observed = np.ones(measured[paired].shape, dtype=bool)
    return predict_protein_baselines(rna, measured[paired], observed, own, split[paired])


if __name__ == "__main__":
    run_command(main)
