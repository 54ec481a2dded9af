"""`scfusion evaluate`: all folds of all experiments, one file of scores each, and one report.

The scores of a unit of work are written when it is done, all of them or none, so that the same command goes on where an
interrupted one stopped, and one with more seeds, budgets, models or experiments computes what is missing.
"""

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf

from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.comparison.runs import run_fold
from scfusion_fm.comparison.units import Recipe, Unit, UnitFile, check_directory, check_units
from scfusion_fm.config.comparison import EvaluateConfig, EvaluatedModelConfig
from scfusion_fm.config.loading import save_config
from scfusion_fm.evaluation.protocol.crossed_intervals import HeldOut, cross_coverage
from scfusion_fm.evaluation.report.comparison import write_evaluation_report

UNITS = "units"
REPORT = "report.html"
FINE_TUNED = ("annotation", "protein_from_rna", "rna_from_protein")


class Evaluation:
    """
    An evaluation in its directory.

    Parameters
    ----------
    config
        What to do.
    report_line
        Called with each line about the progress.
    command
        How it was called, for the report.

    Raises
    ------
    ValueError
        If the directory holds results of other settings, or of data or models that have changed since.
    """

    def __init__(
        self, config: EvaluateConfig, report_line: Callable[[str], None] = print, command: str = "scfusion evaluate"
    ):
        self.config = config
        self.output = Path(config.output_dir)
        self.report_line = report_line
        self.command = command
        check_directory(self.output, self.output / UNITS)
        data_dir = Path(config.data_dir)
        files: dict = {}
        hashes: dict[Path, str] = {}
        self.experiments = {
            title: Experiment.read(title, settings, data_dir, files) for title, settings in config.experiments.items()
        }
        recipes = {
            title: Recipe.read(experiment.config, experiment.baselines, data_dir, hashes)
            for title, experiment in self.experiments.items()
        }
        self.units = [unit for title in self.experiments for unit in self._plan_units(title)]
        self.files = [UnitFile(self.output / UNITS, unit, recipes[unit.title]) for unit in self.units]
        check_units(self.output, self.files)

    def run(self) -> Path:
        """Compute what is missing, and write the report; give its path."""
        (self.output / UNITS).mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.output / "config.yaml")
        missing = [file for file in self.files if any(file.list_missing())]
        self.report_line(f"{len(self.files)} units of work, {len(self.files) - len(missing)} of them done before")
        start = time.monotonic()
        for number, file in enumerate(missing, 1):
            try:
                self._complete(file)
            except KeyboardInterrupt:
                self.report_line(f"stopped in {file.unit.id}; what is done is kept, and the same command goes on")
                raise
            taken = time.monotonic() - start
            left = taken / number * (len(missing) - number)
            self.report_line(f"{number}/{len(missing)} {file.unit.id} | {taken:.0f} s | about {left:.0f} s left")
        return self.write_report()

    def write_report(self) -> Path:
        """Write the page from the units that are done."""
        records = [file.read() for file in self.files if file.path.is_file()]
        facts = {title: describe_experiment(experiment) for title, experiment in self.experiments.items()}
        settings = OmegaConf.to_yaml(OmegaConf.structured(self.config))
        coverage = {title: found for title in self.experiments if (found := self.measure_coverage(title)) is not None}
        path = self.output / REPORT
        write_evaluation_report(path, records, facts, settings, self.command, coverage)
        self.report_line(f"wrote {path}")
        return path

    def measure_coverage(self, title: str) -> pd.DataFrame | None:
        """
        Count how often intervals of predicted proteins hold; None for other tasks and as long as folds are missing.

        A table of `kind`, `method`, `seed` and the columns of `cross_coverage`; None, too, where groups are too few.
        """
        experiment, tables = self.experiments[title], []
        files = [file for file in self.files if file.unit.title == title]
        if experiment.config.task != "protein_from_rna" or any(any(file.list_missing()) for file in files):
            return None
        arrays = [(file.unit, file.read_arrays()) for file in files]
        if any("measured" not in stored for _, stored in arrays) or len({unit.whole.name for unit, _ in arrays}) < 2:
            return None
        new_groups = experiment.config.split.kind == "leave_group_out"
        methods = [("model", name) for name in experiment.config.models]
        methods += [("baseline", name) for name in experiment.baselines]
        for seed in experiment.config.seeds:
            units = [(unit, stored) for unit, stored in arrays if unit.seed == seed]
            for kind, name in methods:
                folds = [HeldOut(unit.whole.name, stored["measured"], stored[name]) for unit, stored in units]
                found = cross_coverage(folds, list(units[0][1]["names"]), new_groups)
                tables.append(found.assign(kind=kind, method=name, seed=seed))
        coverage = pd.concat(tables, ignore_index=True)
        return None if coverage.empty else coverage

    def _plan_units(self, title: str) -> list[Unit]:
        """List the units of an experiment; refuses test cells that a model has seen."""
        experiment, units = self.experiments[title], []
        for seed in experiment.config.seeds:
            for number, whole in enumerate(experiment.folds(seed)):
                leaks = experiment.find_leaks(whole, seed, gates=not units)  # those of all cells are looked for once
                for budget in experiment.config.label_budgets:
                    fold = experiment.limit(whole, budget, seed)
                    name = f"{slugify(title)}-seed{seed}-fold{number + 1}-{'all' if budget is None else budget}"
                    units.append(Unit(name, title, seed, fold, whole, budget, leaks))
        return units

    def _complete(self, file: UnitFile) -> None:
        """Compute the methods that a unit lacks."""
        # A unit must not depend on what this process did before: sums depend on the number of threads.
        torch.set_num_threads(self.experiments[file.unit.title].config.optim.threads)
        start = time.monotonic()
        experiment = self.experiments[file.unit.title].select(*file.list_missing())
        scores = run_fold(experiment, file.unit.fold.partition, file.unit.seed)
        file.add(scores, time.monotonic() - start)


def describe_experiment(experiment: Experiment) -> dict[str, Any]:
    """Give what the report tells of the data and settings of an experiment."""
    config, split = experiment.config, experiment.config.split
    kind = f"{split.folds} folds" if split.kind == "k_fold" else f"one {split.group_key} after the other held out"
    facts = {
        "task": config.task,
        "protocol": config.protocol,
        "data": ", ".join(config.data),
        "cells used": len(experiment.usable),
        "split": f"{kind}; seeds {', '.join(map(str, config.seeds))}",
        "models": {name: describe_evaluated_model(model) for name, model in config.models.items()},
        "baselines": ", ".join(experiment.baselines) or "none",
    }
    if config.task in FINE_TUNED:
        optim = config.optim
        facts["fine-tuning of models"] = (
            f"at most {optim.epochs:g} passes over the training cells, {optim.batch_size} cells a step, "
            f"highest learning rate {optim.lr:g}"
        )
    if experiment.labelled is not None:
        labels, counts = np.unique(experiment.labelled.labels[experiment.usable], return_counts=True)
        facts |= {
            "labels": f"{config.labels_key}, made from: {config.label_derived_from}",
            "classes": {str(label): int(count) for label, count in zip(labels, counts, strict=True)},
            "left out (too few cells)": experiment.left_out or "none",
        }
    return facts


def describe_evaluated_model(model: EvaluatedModelConfig) -> str:
    """Say where a model is from and what of it is trained, if that is not all or nothing."""
    text = model.path + (", fresh weights" if model.from_scratch else "")
    if model.projected_proteins is None:
        return text
    return text + (
        ", head and projected proteins alone trained" if model.projected_proteins else ", head alone trained"
    )


def slugify(title: str) -> str:
    """Turn a title into a part of a file's name that no other title gets."""
    plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return plain if plain == title else f"{plain}-{hashlib.sha256(title.encode()).hexdigest()[:6]}"
