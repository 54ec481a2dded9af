"""Types of a new study by what `study_key` learns of RNA, without a network: the first line of the table in the docs.

    python benchmarks/new_laboratory_types.py configs/evaluate/new_laboratory_types.yaml [data_dir=DIR]

One study is left out in turn, with the cells of `scfusion evaluate` and the same settings. Prints macro-F1 and accuracy
by study.
"""

import sys
from pathlib import Path

import pandas as pd

from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.loading import load_config
from scfusion_fm.data.schema import DATASET
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.tasks.annotation.study_types import StudyReadout


def score_studies(experiment: Experiment) -> pd.DataFrame:
    """Give the scores of each left-out study."""
    data, scores = experiment.labelled, {}
    files = data.aligned.obs[DATASET].to_numpy(str)
    for fold in experiment.folds(seed=0):
        part = fold.partition
        readout = StudyReadout.fit(data, files, part.known)
        guess = data.names_of(readout.logits(data.aligned, part.test))
        scores[fold.name] = annotation_scores(data.labels[part.test], guess)
    table = pd.DataFrame(scores).T[["macro_f1", "accuracy"]]
    return pd.concat([table, table.mean().to_frame("mean").T])


def main() -> None:
    """Read the experiments of a config, and print a table for each."""
    path, *overrides = sys.argv[1:]
    config = load_config(EvaluateConfig, Path(path), overrides)
    for title, experiment in config.experiments.items():
        found = score_studies(Experiment.read(title, experiment, Path(config.data_dir)))
        print(title, found.round(3).to_string(), sep="\n")


if __name__ == "__main__":
    main()
