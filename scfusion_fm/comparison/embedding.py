"""Embeddings of test cells: clusters, and batches that mix."""

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.comparison.scores import Scores
from scfusion_fm.evaluation.baselines.features import build_inputs
from scfusion_fm.evaluation.metrics.clusters import cluster_scores, separation_scores
from scfusion_fm.evaluation.metrics.integration import integration_scores, overall_score
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.tasks.annotation.baselines import show_features


def run_embedding(experiment: Experiment, partition: Partition, seed: int, scores: Scores) -> None:
    """Score embeddings of the test cells; nothing is trained but the principal components of the baseline."""
    data, test = experiment.labelled, partition.test
    truth = data.labels[test]
    batches = experiment.groups()[test] if experiment.config.task == "integration" else None

    def add(kind: str, method: str, inputs: str, embedding: NDArray[np.floating]) -> None:
        if batches is None:
            found = cluster_scores(embedding, truth, seed) | separation_scores(embedding, truth, seed=seed)
        else:
            found = integration_scores(embedding, batches, truth, seed)
            found["overall"] = overall_score(found)
        scores.add(kind, method, inputs, found)
        scores.predictions[f"{method} ({inputs})"] = np.asarray(embedding, np.float32)

    if experiment.baselines:
        used, places = partition.join()
        for inputs, x in build_inputs(show_features(data, used), places.train, seed).items():
            if inputs in data.inputs:
                add("baseline", "PCA", inputs, x[places.test])
    collator = CellCollator(data.aligned, data.extractor)
    for name, weights in experiment.weights().items():
        model = weights.build(ScFusionTTTModel, seed)
        for inputs, shown in data.inputs.items():
            add("model", name, inputs, predict_rows(model, collator, test, "pooler_output", shown))
