"""Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells.

python finetune/cell_type_annotation.py --config configs/finetune/cell_type_annotation.yaml
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation, ScFusionTTTModel
from scfusion_fm.config import AnnotationConfig, save_config
from scfusion_fm.console import parse_config, run_command
from scfusion_fm.data.prepare import check_new_path
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.evaluation.baselines import Features, annotate_baselines
from scfusion_fm.evaluation.metrics import annotation_scores, clustering_scores
from scfusion_fm.export import export_model
from scfusion_fm.finetuning import (
    BalancedCrossEntropy,
    CellCollator,
    check_test_cells,
    describe_provenance,
    predict_rows,
    rows_by_split,
    split_cells,
    train_best,
    write_results,
)
from scfusion_fm.inference import load_pretrained, read_aligned, softmax

INPUTS = {"rna": ("rna",), "adt": ("adt",), "rna+adt": ("rna", "adt")}


@dataclass
class LabelledCells:
    """Cells of one file with their labels ('' for none), classes, split and the rows that are used."""

    cells: Cells
    aligned: AlignedCells
    extractor: ScFusionTTTFeatureExtractor
    labels: NDArray[np.str_]
    left_out: dict[str, int]
    split: NDArray[np.str_]

    def __post_init__(self):
        readable = self.aligned.rna_present | self.aligned.adt_present
        self.used = np.flatnonzero((self.labels != "") & readable)
        self.classes = sorted(set(self.labels[self.used]))
        if len(self.classes) < 2:
            raise ValueError(f"`label_key` must give at least two classes of enough cells, got {self.classes}.")
        self.rows = rows_by_split(self.used, self.split)
        index = {c: i for i, c in enumerate(self.classes)}
        self.codes = np.array([index.get(x, -100) for x in self.labels])
        present = {"rna": self.aligned.rna_present, "adt": self.aligned.adt_present}
        self.inputs = {k: v for k, v in INPUTS.items() if all(present[m][self.used].any() for m in v)}


def main() -> None:
    """Run the fine-tuning from top to bottom."""
    config = parse_config(AnnotationConfig, __doc__)
    output = Path(config.output_dir)
    check_new_path(output, "output_dir")

    # Cells, labels, and the split that pretraining held out.
    pretrained, extractor = load_pretrained(Path(config.model), ScFusionTTTModel)
    data = read_labelled(config, extractor)
    counts = {name: len(rows) for name, rows in data.rows.items()}
    seen = check_test_cells(config, data.aligned, extractor, data.rows)
    print(f"{len(data.classes)} classes, cells: {counts}, classes with too few cells: {data.left_out}")

    # Fine-tune; each modality is hidden now and then, so that the model also serves cells that lack it.
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(
        config.model,
        num_labels=len(data.classes),
        id2label=dict(enumerate(data.classes)),
        label2id={c: i for i, c in enumerate(data.classes)},
    )
    collators = {
        "train": CellCollator(data.aligned, extractor, data.codes, config.modality_dropout, config.seed),
        "val": CellCollator(data.aligned, extractor, data.codes),
    }
    output.mkdir(parents=True)
    save_config(config, output / "config.yaml")

    def score(prediction) -> dict[str, float]:
        scores = annotation_scores(names_of(data, prediction.label_ids), names_of(data, prediction.predictions))
        return {"score": scores["macro_f1"], **scores}

    loss = BalancedCrossEntropy(data.codes[data.rows["train"]], len(data.classes)) if config.balance_classes else None
    train_best(model, data.rows, collators, score, (config.optim, config.seed, output / "trainer"), loss)

    # Held-out figures beside baselines that got the same cells and labels.
    logits = {k: predict_rows(model, collators["val"], data.rows["test"], modalities=v) for k, v in data.inputs.items()}
    predicted = {("scFusionTTT", k): names_of(data, v) for k, v in logits.items()} | fit_baselines(data)
    truth = data.labels[data.rows["test"]]
    table = [
        {"method": method, "inputs": inputs, **annotation_scores(truth, guess), "n_test": len(truth)}
        for (method, inputs), guess in predicted.items()
    ]
    embedding = predict_rows(pretrained, CellCollator(data.aligned, extractor), data.used, "pooler_output")
    facts = {"task": "cell-type annotation", "classes": ", ".join(data.classes), "fine-tuned on": config.data}
    export_model(model, extractor, output / "model", facts, seen.cells)
    np.savez(output / "embedding.npz", embedding=embedding, labels=data.labels[data.used], split=data.split[data.used])
    write_predictions(output, data, logits[list(data.inputs)[-1]])
    results = {
        "task": "cell_type_annotation",
        "data": config.data,
        "label_key": config.label_key,
        "classes": data.classes,
        "dropped_classes": data.left_out,
        "cells": counts,
        "provenance": describe_provenance(data.cells.container),
        "table": table,
        "embedding": clustering_scores(embedding, data.labels[data.used]),
        "split": dataclasses.asdict(config.split),
        "seen_test_cells": seen.test_cells,
    }
    write_results(output, results)
    print(pd.DataFrame(table).round(3).to_string(index=False))
    print(f"results, predictions and model are in {output}")


def read_labelled(config: AnnotationConfig, extractor: ScFusionTTTFeatureExtractor) -> LabelledCells:
    """Read the file and its labels; classes with too few cells are left out and listed."""
    cells, aligned = read_aligned(Path(config.data), extractor)
    if config.label_key not in cells.obs:
        raise ValueError(
            f"`label_key` must be a column of obs, got {config.label_key!r}; it has {list(cells.obs.columns)}."
        )
    labels = cells.obs[config.label_key].astype(str).to_numpy(dtype=object)
    labels[np.isin(labels, config.unlabelled)] = ""
    counts = pd.Series(labels[labels != ""]).value_counts()
    rare = counts[counts < config.min_cells_per_class]
    labels[np.isin(labels, rare.index)] = ""
    left_out = {str(k): int(v) for k, v in rare.items()}
    split = split_cells(cells.obs, config.split)
    return LabelledCells(cells, aligned, extractor, labels.astype(str), left_out, split)


def names_of(data: LabelledCells, codes: NDArray) -> NDArray[np.str_]:
    """Turn class indices (n,) or logits (n, classes), alone or first of a tuple, into class names."""
    codes = codes[0] if isinstance(codes, tuple) else codes
    return np.array(data.classes)[codes.argmax(1) if codes.ndim == 2 else codes]


def fit_baselines(data: LabelledCells) -> dict[tuple[str, str], NDArray[np.str_]]:
    """Fit the baselines on the features that the model gets; predictions for test cells by method and inputs."""
    aligned, extractor = data.aligned, data.extractor
    rna = aligned.rna[data.used][:, aligned.rna_observed].toarray()
    rna = extractor.normalise_rna(rna, aligned.rna_total_counts[data.used])
    counts = aligned.adt[data.used][:, aligned.adt_observed]
    adt = extractor.normalise_adt(counts, np.ones(counts.shape, dtype=bool))
    features = Features(rna=rna if "rna" in data.inputs else None, adt=adt if "adt" in data.inputs else None)
    return annotate_baselines(features, data.labels[data.used], data.split[data.used])


def write_predictions(output: Path, data: LabelledCells, logits: NDArray[np.float32]) -> None:
    """Write the predictions for test cells from all modalities that the file has."""
    rows = data.rows["test"]
    frame = pd.DataFrame(
        {
            "cell": data.cells.obs.index[rows],
            "label": data.labels[rows],
            "predicted": names_of(data, logits),
            "probability": softmax(logits).max(1),
        }
    )
    frame.to_csv(output / "test_predictions.csv", index=False)


if __name__ == "__main__":
    run_command(main)
