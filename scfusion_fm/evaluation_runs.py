"""One fold of an experiment: models and baselines on the same rows, and their scores.

Letters: n cells, N RNA tokens, G genes.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scfusion_fm import annotation_task, cross_modal_task
from scfusion_fm.annotation_task import AnnotationSettings, choose_projected, join_rows
from scfusion_fm.cross_modal_task import PairedCells, choose_genes
from scfusion_fm.evaluation.annotation_baselines import fit_annotation
from scfusion_fm.evaluation.calibration import probability_scores
from scfusion_fm.evaluation.clustering import cluster_scores, paper_protocol_scores
from scfusion_fm.evaluation.features import build_inputs
from scfusion_fm.evaluation.imputation import ImputationTask, fit_imputation, imputation_scores
from scfusion_fm.evaluation.integration import integration_scores
from scfusion_fm.evaluation.metrics import annotation_scores, class_scores, clustering_scores
from scfusion_fm.evaluation.prediction_baselines import fit_prediction
from scfusion_fm.evaluation_bench import TARGETS, Bench, Rows
from scfusion_fm.finetuning import CellCollator, FitSettings, Source, predict_rows
from scfusion_fm.inference import load_pretrained, softmax
from scfusion_fm.model import ScFusionTTTForPreTraining, ScFusionTTTModel

HELD_OUT, PAPER, PAPER_TEST = "held_out", "paper", "paper, test cells only"
BIOLOGY, MIXING = ("label_asw", "clisi", "graph_connectivity"), ("batch_asw", "ilisi", "batch_entropy")


@dataclass
class Scores:
    """What a fold gave.

    Attributes
    ----------
    rows
        Scores by method, inputs and protocol, for the report.
    predictions
        Arrays to keep, by name.
    """

    rows: list[dict[str, Any]]
    predictions: dict[str, NDArray]

    def add(self, kind: str, method: str, inputs: str, scores: dict[str, Any], protocol: str = HELD_OUT) -> None:
        """Add the scores of a method, a "model" or a "baseline"."""
        names = {"kind": kind, "method": method, "inputs": inputs, "protocol": protocol}
        self.rows.append(names | {key: _plain(value) for key, value in scores.items()})


def run_fold(bench: Bench, rows: Rows, seed: int) -> Scores:
    """Fit models and baselines on the same rows, and score them on the rows of `test`."""
    test = rows["test"]
    scores = Scores([], {"test_rows": test, "cells": bench.aligned.obs.index.to_numpy(str)[test]})
    {
        "annotation": _run_annotation,
        "protein_from_rna": _run_prediction,
        "rna_from_protein": _run_prediction,
        "clustering": _run_embedding,
        "integration": _run_embedding,
        "imputation": _run_imputation,
    }[bench.config.task](bench, rows, seed, scores)
    return scores


def _run_annotation(bench: Bench, rows: Rows, seed: int, scores: Scores) -> None:
    """Annotate with baselines and fine-tuned models."""
    config, data = bench.config, bench.labelled
    truth = data.labels[rows["test"]]
    scores.predictions["labels"] = truth

    def add(kind: str, method: str, inputs: str, probabilities: NDArray, classes: NDArray[np.str_]) -> None:
        guess = classes[probabilities.argmax(1)]
        parts = {label: float(f1) for label, f1 in class_scores(truth, guess)["f1"].items()}
        found = annotation_scores(truth, guess) | probability_scores(probabilities, classes, truth)
        scores.add(kind, method, inputs, {**found, "parts": parts})
        scores.predictions[f"{method} ({inputs})"] = guess

    if bench.baselines:
        fitted = fit_annotation(annotation_task.build_baseline_task(data, rows, seed), bench.baselines)
        for (method, inputs), probabilities in fitted.test.items():
            if inputs in data.inputs:
                add("baseline", method, inputs, probabilities, fitted.classes)
    every = np.sort(np.concatenate(list(rows.values())))
    embeddings = {}
    for name, source in bench.sources().items():
        fitted = annotation_task.fit_annotation(source, data, rows, _choose_settings(bench, name, seed))
        for inputs, shown in data.inputs.items():
            logits = fitted.predict(data.aligned, rows["test"], shown).astype(np.float64)
            add("model", name, inputs, softmax(logits), np.array(data.classes))
            if config.protocol == PAPER:
                embeddings["model", name, inputs] = fitted.embed(data.aligned, every, shown)
    if config.protocol == PAPER:
        _add_paper(bench, rows, seed, scores, embeddings)


def _choose_settings(bench: Bench, name: str, seed: int) -> AnnotationSettings:
    """Say how a model is fine-tuned: all of it, or as in the paper's third stage."""
    config, data = bench.config, bench.labelled
    settings = AnnotationSettings(
        config.optim,
        seed,
        balance_classes=config.balance_classes,
        modality_dropout=config.modality_dropout,
        modalities=data.modalities,
    )
    projects = config.models[name].projected_proteins
    if projects is None:
        return settings
    places = choose_projected(data, None) if projects else None
    return dataclasses.replace(settings, projected=places, trained=("adt_projection",) if projects else ())


def _add_paper(
    bench: Bench, rows: Rows, seed: int, scores: Scores, embeddings: dict[tuple[str, str, str], NDArray]
) -> None:
    """Score embeddings of all cells, and of test cells alone, as the papers do; beside principal components."""
    data = bench.labelled
    used, split = join_rows(rows)
    order = np.argsort(used)
    features = build_inputs(annotation_task.build_features(data, used), split, seed)
    embeddings |= {("baseline", "PCA", inputs): features[inputs][order] for inputs in data.inputs}
    is_test, labels = split[order] == "test", data.labels[used[order]]
    for name, embedding in embeddings.items():
        scores.add(*name, paper_protocol_scores(embedding, labels, seed), PAPER)
        scores.add(*name, paper_protocol_scores(embedding[is_test], labels[is_test], seed), PAPER_TEST)


def _run_prediction(bench: Bench, rows: Rows, seed: int, scores: Scores) -> None:
    """Predict one modality from the other with baselines and fine-tuned models."""
    config, target = bench.config, TARGETS[bench.config.task]
    panel = None
    if target == "rna":
        panel = choose_genes(bench.aligned, bench.extractor, rows["train"], config.scored_genes)
    data = PairedCells(bench.aligned, bench.extractor, target, panel, bench.batches())
    predictions = {}
    if bench.baselines:
        task = cross_modal_task.build_baseline_task(data, rows, seed)
        predictions = {("baseline", m): p for m, p in fit_prediction(task, bench.baselines).test.items()}
    for name, source in bench.sources().items():
        fitted = cross_modal_task.fit_cross_modal(source, data, rows, FitSettings(config.optim, seed))
        predictions["model", name] = fitted.predict(rows["test"])
    test = rows["test"]
    scores.predictions["names"] = np.array(data.names)
    scores.predictions["measured"] = np.where(data.observed[test], data.measured[test], np.nan).astype(np.float32)
    for (kind, method), values in predictions.items():
        table, summary = data.score(rows["test"], values)
        parts = dict(zip(data.names, map(_plain, table["pearson"]), strict=True))
        scores.add(kind, method, cross_modal_task.SOURCE_OF[target], {**summary, "parts": parts})
        scores.predictions[method] = np.asarray(values, np.float32)


def _run_embedding(bench: Bench, rows: Rows, seed: int, scores: Scores) -> None:
    """Score embeddings of the test cells; nothing is trained but the principal components of the baseline."""
    data, test = bench.labelled, rows["test"]
    truth = data.labels[test]
    batches = bench.groups()[test] if bench.config.task == "integration" else None

    def add(kind: str, method: str, inputs: str, embedding: NDArray[np.floating]) -> None:
        if batches is None:
            found = score_clusters(embedding, truth, seed) | clustering_scores(embedding, truth)
        else:
            found = integration_scores(embedding, batches, truth, seed)
            found["overall"] = 0.6 * _mean(found, BIOLOGY) + 0.4 * _mean(found, MIXING)
        scores.add(kind, method, inputs, found)
        scores.predictions[f"{method} ({inputs})"] = np.asarray(embedding, np.float32)

    if bench.baselines:
        used, split = join_rows(rows)
        for inputs, x in build_inputs(annotation_task.build_features(data, used), split, seed).items():
            if inputs in data.inputs:
                add("baseline", "PCA", inputs, x[split == "test"])
    collator = CellCollator(data.aligned, data.extractor)
    for name, source in bench.sources().items():
        model = source.build(ScFusionTTTModel, seed)
        for inputs, shown in data.inputs.items():
            add("model", name, inputs, predict_rows(model, collator, test, "pooler_output", shown))


def score_clusters(embedding: NDArray[np.floating], labels: NDArray[np.str_], seed: int) -> dict[str, float]:
    """Cluster cells into as many groups as there are labels, and compare: ARI and NMI of k-means, ARI of Ward."""
    table = cluster_scores(embedding, labels, (1.0,), seed).set_index("method")
    means, ward = table.loc["k-means"], table.loc["Ward"]
    return {"ari": float(means["ari"]), "nmi": float(means["nmi"]), "ari_ward": float(ward["ari"])}


def _run_imputation(bench: Bench, rows: Rows, seed: int, scores: Scores) -> None:
    """
    Fill in hidden RNA tokens from the other RNA of a cell, with baselines and pretrained models.

    Notes
    -----
    Values are normalised by the library size of the whole cell, for all methods alike: it tells them a little of what
    was hidden.
    """
    aligned, extractor, config = bench.aligned, bench.extractor, bench.config
    used, split = join_rows(rows)
    genes = np.flatnonzero(aligned.rna_observed)
    tokens = np.random.default_rng(seed).random((len(used), extractor.num_rna_tokens)) < config.hidden_fraction
    hidden = extractor.merge_patches(np.repeat(tokens[:, :, None], extractor.patch_size, axis=2))
    hidden = (hidden & aligned.rna_observed_in(used))[:, genes]  # (n, G)
    values = extractor.normalise_rna(aligned.rna[used][:, genes].toarray(), aligned.rna_total_counts[used])
    test, train = split == "test", split == "train"
    scored = np.isin(genes, choose_genes(aligned, extractor, rows["train"], config.scored_genes))
    imputed = {}
    if bench.baselines:
        found = fit_imputation(ImputationTask(values, hidden, split, seed)).test
        imputed = {("baseline", name): found[name] for name in bench.baselines}
    for name, source in bench.sources().items():
        imputed["model", name] = impute(bench, source, rows["test"], tokens[test], seed)[:, genes]
    for (kind, method), guess in imputed.items():
        found = imputation_scores(
            values[test][:, scored], guess[:, scored], hidden[test][:, scored], values[train][:, scored].mean(0)
        )
        scores.add(kind, method, "rna", found)


def impute(
    bench: Bench, source: Source, rows: NDArray[np.int64], tokens: NDArray[np.bool_], seed: int, batch_size: int = 64
) -> NDArray[np.float32]:
    """Predict the RNA of some cells, of which the given tokens (n, N) are hidden and no protein is shown, (n, G)."""
    if source.from_scratch:
        model = source.build(ScFusionTTTForPreTraining, seed).eval()
    else:
        model, _ = load_pretrained(Path(source.path), ScFusionTTTForPreTraining)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    collator = CellCollator(bench.aligned, bench.extractor, modalities=("rna",))
    results = []
    for start in range(0, len(rows), batch_size):
        batch = collator(rows[start : start + batch_size])
        nothing = torch.zeros(len(batch["rna_values"]), bench.extractor.num_proteins)
        batch |= {"adt_values": nothing, "adt_observed": nothing.bool(), "adt_bool_masked_pos": nothing.bool()}
        batch["rna_bool_masked_pos"] = torch.from_numpy(tokens[start : start + batch_size])
        with torch.inference_mode():
            output = model(**{key: value.to(device) for key, value in batch.items()})
        results.append(output.rna_reconstruction.float().cpu().numpy())
    return bench.extractor.merge_patches(np.concatenate(results))


def _mean(scores: dict[str, float], names: tuple[str, ...]) -> float:
    """Average the scores that exist: without a type in two batches, some do not."""
    return float(np.nanmean([scores[name] for name in names]))


def _plain(value: Any) -> Any:
    """Give what a JSON file can hold; None for what is no number."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    number = float(np.nan if value is None else value)
    return number if np.isfinite(number) else None
