"""Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells.

    python finetune/cell_type_annotation.py --config configs/finetune/cell_type_annotation.yaml
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from scfusion_fm import ScFusionTTTForCellTypeAnnotation, ScFusionTTTModel
from scfusion_fm.config import AnnotationConfig, load_config, save_config
from scfusion_fm.console import run_command
from scfusion_fm.data.prepare import check_new_path
from scfusion_fm.data.split import assign_split
from scfusion_fm.evaluation.baselines import Features, annotate_baselines
from scfusion_fm.evaluation.metrics import annotation_scores, clustering_scores
from scfusion_fm.export import export_model
from scfusion_fm.finetuning import CellCollator, predict_rows, train_best, write_results
from scfusion_fm.inference import load_pretrained, read_aligned

INPUTS = {"rna": ("rna",), "adt": ("adt",), "rna+adt": ("rna", "adt")}


def main() -> None:
    """Run the fine-tuning from top to bottom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file with the settings of AnnotationConfig")
    parser.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    args = parser.parse_args()
    config = load_config(AnnotationConfig, args.config, args.overrides)
    output = Path(config.output_dir)
    check_new_path(output, "output_dir")

    # Cells, labels, and the split that pretraining held out.
    pretrained, extractor = load_pretrained(Path(config.model), ScFusionTTTModel)
    cells, aligned = read_aligned(Path(config.data), extractor)
    labels, dropped = read_labels(cells.obs, config)
    split = split_cells(cells.obs, config)
    usable = (labels != "") & (aligned.rna_present | aligned.adt_present)
    classes = sorted(set(labels[usable]))
    if len(classes) < 2:
        raise ValueError(f"`label_key` must give at least two classes of enough cells, got {classes}.")
    codes = np.array([classes.index(x) if x in classes else -100 for x in labels])
    rows = {name: np.flatnonzero(usable & (split == name)) for name in ("train", "val", "test")}
    print(f"{len(classes)} classes, cells: { {k: len(v) for k, v in rows.items()} }, left out: {dropped}")

    # Fine-tune; each modality is hidden now and then, so that the model also serves cells that lack it.
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(
        config.model,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={c: i for i, c in enumerate(classes)},
    )
    plain = CellCollator(aligned, extractor, codes)
    training = CellCollator(aligned, extractor, codes, config.modality_dropout, config.seed)
    output.mkdir(parents=True)
    save_config(config, output / "config.yaml")

    def score(prediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        predicted = np.array(classes)[logits.argmax(-1)]
        truth = np.array(classes)[prediction.label_ids]
        scores = annotation_scores(truth, predicted)
        return {"score": scores["macro_f1"], **scores}

    train_best(
        model, rows, {"train": training, "val": plain}, score, (config.optim, config.seed, output / "trainer")
    )

    # Held-out figures beside baselines that got the same cells and labels.
    test = rows["test"]
    available = {"rna": aligned.rna_present[usable].any(), "adt": aligned.adt_present[usable].any()}
    table, logits = [], None
    for inputs, modalities in INPUTS.items():
        if all(available[m] for m in modalities):
            logits = predict_rows(model, plain, test, modalities=modalities)
            predicted = np.array(classes)[logits.argmax(1)]
            table.append({"method": "scFusionTTT", "inputs": inputs} | annotation_scores(labels[test], predicted))
    kept = np.flatnonzero(usable)
    for (method, inputs), guess in baselines(aligned, extractor, labels, split, kept).items():
        table.append({"method": method, "inputs": inputs} | annotation_scores(labels[test], guess))
    embedding = predict_rows(pretrained, CellCollator(aligned, extractor), kept, "pooler_output")
    export_model(model, extractor, output / "model", {"task": "cell-type annotation", "classes": ", ".join(classes)})
    np.savez(output / "embedding.npz", embedding=embedding, labels=labels[kept], split=split[kept])
    write_predictions(output, cells.obs.index[test], labels[test], logits, classes)
    results = {
        "task": "cell_type_annotation",
        "data": config.data,
        "label_key": config.label_key,
        "classes": classes,
        "dropped_classes": dropped,
        "cells": {k: len(v) for k, v in rows.items()},
        "provenance": str(dict(cells.container.uns.get("provenance", {}))),
        "table": [row | {"n_test": len(test)} for row in table],
        "embedding": clustering_scores(embedding, labels[kept]),
        "split": dataclasses.asdict(config.split),
    }
    write_results(output, results)
    print(pd.DataFrame(results["table"]).round(3).to_string(index=False))
    print(f"results, predictions and model are in {output}")


def read_labels(obs: pd.DataFrame, config: AnnotationConfig) -> tuple[np.ndarray, dict[str, int]]:
    """Read the labels; '' for cells without one or of a class with too few cells, which is also listed."""
    if config.label_key not in obs:
        raise ValueError(f"`label_key` must be a column of obs, got {config.label_key!r}; it has {list(obs.columns)}.")
    labels = obs[config.label_key].astype(str).to_numpy(dtype=object)
    labels[np.isin(labels, config.unlabelled)] = ""
    counts = pd.Series(labels[labels != ""]).value_counts()
    rare = counts[counts < config.min_cells_per_class]
    labels[np.isin(labels, rare.index)] = ""
    return labels.astype(str), {str(k): int(v) for k, v in rare.items()}


def split_cells(obs: pd.DataFrame, config: AnnotationConfig) -> np.ndarray:
    """Assign cells to train, val and test by the rule that the atlas used."""
    rule = config.split
    if rule.group_key is not None and rule.group_key not in obs:
        raise ValueError(f"`split.group_key` must be a column of obs, got {rule.group_key!r}.")
    groups = None if rule.group_key is None else obs[rule.group_key].astype(str).to_numpy()
    return assign_split(obs.index.astype(str), rule.val_fraction, rule.test_fraction, rule.seed, groups)


def baselines(aligned, extractor, labels, split, kept) -> dict[tuple[str, str], np.ndarray]:
    """Fit the baselines on the features that the model gets."""
    rna = aligned.rna[kept][:, aligned.rna_observed].toarray()
    rna = extractor.normalise_rna(rna, aligned.rna_total_counts[kept])
    adt_observed = np.broadcast_to(aligned.adt_observed, aligned.adt[kept].shape)
    adt = extractor.normalise_adt(aligned.adt[kept], adt_observed)[:, aligned.adt_observed]
    features = Features(rna=rna if rna.size else None, adt=adt if adt.size else None)
    return annotate_baselines(features, labels[kept], split[kept])


def write_predictions(output: Path, cells, labels, logits, classes) -> None:
    """Write the predictions for test cells from all modalities that the file has."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    frame = pd.DataFrame(
        {
            "cell": cells,
            "label": labels,
            "predicted": np.array(classes)[shares.argmax(1)],
            "probability": shares.max(1),
        }
    )
    frame.to_csv(output / "test_predictions.csv", index=False)


if __name__ == "__main__":
    run_command(main)
