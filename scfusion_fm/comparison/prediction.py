"""One modality from the other by baselines and fine-tuned models."""

import numpy as np

from scfusion_fm.comparison.experiment import TARGETS, Experiment
from scfusion_fm.comparison.scores import Scores, to_plain
from scfusion_fm.evaluation.baselines.prediction import fit_prediction_baselines
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.tasks.cross_modal.baselines import build_prediction_task
from scfusion_fm.tasks.cross_modal.cells import SOURCE_OF, PairedCells, choose_genes
from scfusion_fm.tasks.cross_modal.fit import fit_cross_modal
from scfusion_fm.tasks.settings import FitSettings


def run_prediction(experiment: Experiment, partition: Partition, seed: int, scores: Scores) -> None:
    """Predict one modality from the other with baselines and fine-tuned models."""
    config, target = experiment.config, TARGETS[experiment.config.task]
    panel = None
    if target == "rna":
        panel = choose_genes(experiment.aligned, experiment.extractor, partition.train, config.scored_genes)
    data = PairedCells(experiment.aligned, experiment.extractor, target, panel, experiment.batches())
    predictions = {}
    if experiment.baselines:
        task = build_prediction_task(data, partition, seed)
        predictions = {("baseline", m): p for m, p in fit_prediction_baselines(task, experiment.baselines).test.items()}
    for name, weights in experiment.weights().items():
        fitted = fit_cross_modal(weights, data, partition, FitSettings(config.optim, seed))
        predictions["model", name] = fitted.predict(partition.test)
    test = partition.test
    scores.predictions["names"] = np.array(data.names)
    scores.predictions["measured"] = np.where(data.observed[test], data.measured[test], np.nan).astype(np.float32)
    for (kind, method), values in predictions.items():
        table, summary = data.score(partition.test, values)
        parts = dict(zip(data.names, map(to_plain, table["pearson"]), strict=True))
        scores.add(kind, method, SOURCE_OF[target], {**summary, "parts": parts})
        scores.predictions[method] = np.asarray(values, np.float32)
