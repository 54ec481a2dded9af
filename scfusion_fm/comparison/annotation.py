"""Cell types by baselines and fine-tuned models."""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.comparison.scores import Scores
from scfusion_fm.evaluation.baselines.annotation import fit_annotation_baselines
from scfusion_fm.evaluation.baselines.features import build_inputs
from scfusion_fm.evaluation.metrics.clusters import paper_protocol_scores
from scfusion_fm.evaluation.metrics.labels import annotation_scores, class_scores
from scfusion_fm.evaluation.metrics.probabilities import probability_scores
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.protocol.spread import PAPER, PAPER_TEST
from scfusion_fm.tasks.annotation.baselines import build_annotation_task, show_features
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, choose_projected, fit_annotation


def run_annotation(experiment: Experiment, partition: Partition, seed: int, scores: Scores) -> None:
    """Annotate with baselines and fine-tuned models."""
    config, data = experiment.config, experiment.labelled
    truth = data.labels[partition.test]
    scores.predictions["labels"] = truth

    def add(kind: str, method: str, inputs: str, probabilities: NDArray, classes: NDArray[np.str_]) -> None:
        guess = classes[probabilities.argmax(1)]
        parts = {label: float(f1) for label, f1 in class_scores(truth, guess)["f1"].items()}
        found = annotation_scores(truth, guess) | probability_scores(probabilities, classes, truth)
        scores.add(kind, method, inputs, {**found, "parts": parts})
        scores.predictions[f"{method} ({inputs})"] = guess

    if experiment.baselines:
        fitted = fit_annotation_baselines(build_annotation_task(data, partition, seed), experiment.baselines)
        for (method, inputs), probabilities in fitted.test.items():
            if inputs in data.inputs:
                add("baseline", method, inputs, probabilities, fitted.classes)
    every = np.sort(partition.rows)
    embeddings = {}
    for name, weights in experiment.weights().items():
        fitted = fit_annotation(weights, data, partition, _choose_settings(experiment, name, seed))
        for inputs, shown in data.inputs.items():
            logits = fitted.predict(data.aligned, partition.test, shown).astype(np.float64)
            add("model", name, inputs, softmax(logits, axis=1), np.array(data.classes))
            if config.protocol == PAPER:
                embeddings["model", name, inputs] = fitted.embed(data.aligned, every, shown)
    if config.protocol == PAPER:
        _add_paper_scores(experiment, partition, seed, scores, embeddings)


def _choose_settings(experiment: Experiment, name: str, seed: int) -> AnnotationSettings:
    """Say how a model is fine-tuned: all of it, or as in the paper's third stage."""
    config, data = experiment.config, experiment.labelled
    studies = experiment.batches()
    settings = AnnotationSettings(
        config.optim,
        seed,
        balance_classes=config.balance_classes,
        modality_dropout=config.modality_dropout,
        modalities=data.modalities,
        studies=None if studies is None else studies.astype(str),
    )
    projects = config.models[name].projected_proteins
    if projects is None:
        return settings
    places = choose_projected(data, None) if projects else None
    return dataclasses.replace(settings, projected=places, trained=("adt_projection",) if projects else ())


def _add_paper_scores(
    experiment: Experiment,
    partition: Partition,
    seed: int,
    scores: Scores,
    embeddings: dict[tuple[str, str, str], NDArray],
) -> None:
    """Score embeddings of all cells, and of test cells alone, as the papers do; beside principal components."""
    data = experiment.labelled
    used, places = partition.join()
    order = np.argsort(used)
    features = build_inputs(show_features(data, used), places.train, seed)
    embeddings |= {("baseline", "PCA", inputs): features[inputs][order] for inputs in data.inputs}
    is_test, labels = np.isin(order, places.test), data.labels[used[order]]
    for name, embedding in embeddings.items():
        scores.add(*name, paper_protocol_scores(embedding, labels, seed), PAPER)
        scores.add(*name, paper_protocol_scores(embedding[is_test], labels[is_test], seed), PAPER_TEST)
