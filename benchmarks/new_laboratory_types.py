"""Types of a new study by what `study_key` learns of RNA, without a network: the figures of the docs.

    python benchmarks/new_laboratory_types.py CONFIG data_dir=DIR                   # macro-F1 and accuracy by study
    python benchmarks/new_laboratory_types.py CONFIG data_dir=DIR --unknown HSPC B  # AUROC of types not in training
    python benchmarks/new_laboratory_types.py CONFIG data_dir=DIR --sorted          # files that hold one type alone
    python benchmarks/new_laboratory_types.py CONFIG data_dir=DIR --rejected        # known cells called unknown

CONFIG is configs/evaluate/new_laboratory_types.yaml. One study is left out in turn, with the cells of `scfusion
evaluate` and the same settings.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.loading import load_config
from scfusion_fm.data.schema import DATASET
from scfusion_fm.evaluation.calibration.conformal import conformal_quantiles
from scfusion_fm.evaluation.calibration.unknown import CellOutputs, score_unknown
from scfusion_fm.evaluation.metrics.labels import annotation_scores
from scfusion_fm.tasks.annotation.study_types import StudyReadout

LEAST_UNKNOWN, LEAST_SORTED = 9, 50  # cells of a type in a study or file that is scored
SCORES = ("energy", "max_softmax")
RATES = (0.05, 0.1)  # of known cells that may be called unknown


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


def score_unknown_types(experiment: Experiment, types: list[str]) -> pd.DataFrame:
    """Give how well scores tell cells of types that no training cell had, by type and left-out study."""
    data, rows = experiment.labelled, []
    files, labels = data.aligned.obs[DATASET].to_numpy(str), np.asarray(data.labels, str)
    for name in types:
        for fold in experiment.folds(seed=0):
            known, test = fold.partition.known, fold.partition.test
            known = known[labels[known] != name]
            test = test[np.isin(labels[test], [name, *labels[known]])]
            unknown = labels[test] == name
            if unknown.sum() < LEAST_UNKNOWN or unknown.all():
                continue
            logits = StudyReadout.fit(data, files, known).logits(data.aligned, test)
            cells = CellOutputs(logits, logits)
            found = {score: roc_auc_score(unknown, score_unknown(score, cells)) for score in SCORES}
            rows.append({"type": name, "study": fold.name, "cells": unknown.sum()} | found)
    table = pd.DataFrame(rows)
    means = table.groupby("type", as_index=False)[list(SCORES)].mean().assign(study="mean")
    return pd.concat([table, means])


def score_rejections(experiment: Experiment) -> pd.DataFrame:
    """Give the share of known cells that are called unknown by `energy`, by left-out study and promised rate."""
    data, shares = experiment.labelled, {}
    files, labels = data.aligned.obs[DATASET].to_numpy(str), np.asarray(data.labels, str)
    for fold in experiment.folds(seed=0):
        known, test = fold.partition.known, fold.partition.test
        test = test[np.isin(labels[test], labels[known])]
        readout = StudyReadout.fit(data, files, known)
        held_out, named = readout.logits_when_left_out(known)
        errors, scores = (
            score_unknown("energy", CellOutputs(x, x)) for x in (held_out[named], readout.logits(data.aligned, test))
        )
        limits = conformal_quantiles(errors[:, None], tuple(1 - rate for rate in RATES))
        shares[fold.name] = {f"at {rate:.0%}": (scores > x).mean() for rate, x in zip(RATES, limits[:, 0], strict=True)}
    table = pd.DataFrame(shares).T
    return pd.concat([table, table.mean().to_frame("mean").T])


def score_sorted_files(experiment: Experiment) -> pd.DataFrame:
    """Give the accuracy for the cells of one type in a file, in the whole file and alone, by type."""
    data, rows = experiment.labelled, []
    files, labels = data.aligned.obs[DATASET].to_numpy(str), np.asarray(data.labels, str)
    for fold in experiment.folds(seed=0):
        known, test = fold.partition.known, fold.partition.test
        readout = StudyReadout.fit(data, files, known)
        for file, name in {(files[row], labels[row]) for row in test if labels[row] in labels[known]}:
            own = test[(files[test] == file) & (labels[test] == name)]
            if len(own) < LEAST_SORTED:
                continue
            alone = np.where(np.isin(np.arange(len(files)), own), "alone", files)
            guesses = [x.logits(data.aligned, own) for x in (readout, replace(readout, studies=alone))]
            whole, sorted_ = ((data.names_of(guess) == name).mean() for guess in guesses)
            rows.append({"type": name, "files": 1, "in the whole file": whole, "alone": sorted_})
    table = pd.DataFrame(rows).sort_values("type")
    by_type = table.groupby("type").agg({"files": "sum", "in the whole file": "mean", "alone": "mean"})
    every = table.agg({"files": "sum", "in the whole file": "mean", "alone": "mean"}).to_frame("all").T
    return pd.concat([by_type, every])


def main() -> None:
    """Read the experiments of a config, and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings as key=value")
    parser.add_argument("--unknown", nargs="+", metavar="TYPE", help="types to leave out of training")
    parser.add_argument("--sorted", action="store_true", help="score files that hold one type alone")
    parser.add_argument("--rejected", action="store_true", help="count known cells that are called unknown")
    args = parser.parse_args()
    config = load_config(EvaluateConfig, args.config, args.overrides)
    for title, settings in config.experiments.items():
        experiment = Experiment.read(title, settings, Path(config.data_dir))
        if args.unknown:
            found = score_unknown_types(experiment, args.unknown)
        elif args.rejected:
            found = score_rejections(experiment)
        else:
            found = score_sorted_files(experiment) if args.sorted else score_studies(experiment)
        print(title, found.round(3).to_string(), sep="\n")


if __name__ == "__main__":
    main()
