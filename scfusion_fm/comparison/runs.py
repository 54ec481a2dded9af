"""One fold of an experiment: models and baselines on the same cells, and their scores."""

from scfusion_fm.comparison.annotation import run_annotation
from scfusion_fm.comparison.embedding import run_embedding
from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.comparison.imputation import run_imputation
from scfusion_fm.comparison.prediction import run_prediction
from scfusion_fm.comparison.scores import Scores
from scfusion_fm.evaluation.partition import Partition


def run_fold(experiment: Experiment, partition: Partition, seed: int) -> Scores:
    """Fit models and baselines on the same cells, and score them on the test cells."""
    test = partition.test
    scores = Scores([], {"test_rows": test, "cells": experiment.aligned.obs.index.to_numpy(str)[test]})
    {
        "annotation": run_annotation,
        "protein_from_rna": run_prediction,
        "rna_from_protein": run_prediction,
        "clustering": run_embedding,
        "integration": run_embedding,
        "imputation": run_imputation,
    }[experiment.config.task](experiment, partition, seed, scores)
    return scores
