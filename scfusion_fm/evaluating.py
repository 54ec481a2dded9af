"""`scfusion evaluate`: all folds of all experiments, one file of scores each, and one report.

A unit of work is one fold of one seed with one budget of labels. Its scores are written when it is done, all of them or
none, so that the same command goes on where an interrupted one stopped.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from omegaconf import OmegaConf

from scfusion_fm.config import config_differences, save_config
from scfusion_fm.config_evaluate import EvaluateConfig
from scfusion_fm.evaluation.evaluation_report import write_evaluation_report
from scfusion_fm.evaluation.leaks import Leak
from scfusion_fm.evaluation.splits import Fold
from scfusion_fm.evaluation_bench import Bench
from scfusion_fm.evaluation_runs import run_fold
from scfusion_fm.finetuning import rows_by_split

UNITS = "units"
PLAN = "plan.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Unit:
    """
    One fold of one seed with one budget of labels.

    Attributes
    ----------
    id
        Name of its files.
    title
        The experiment.
    seed
        Seed of everything in it.
    fold
        Role of every cell, within the budget.
    fold_name
        What the whole fold is called.
    budget
        Labelled cells; None for all.
    leaks
        What was found about its cells.
    """

    id: str
    title: str
    seed: int
    fold: Fold
    fold_name: str
    budget: int | None
    leaks: list[Leak]


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
        self.plan = {"settings": OmegaConf.to_container(OmegaConf.structured(config)), "inputs": hash_inputs(config)}
        self._check_directory()
        files: dict = {}
        self.benches = {
            title: Bench.read(title, experiment, Path(config.data_dir), files)
            for title, experiment in config.experiments.items()
        }
        self.units = [unit for title in self.benches for unit in self._plan_units(title)]

    def run(self) -> Path:
        """Compute what is missing, and write the report; give its path."""
        (self.output / UNITS).mkdir(parents=True, exist_ok=True)
        write_json(self.output / PLAN, self.plan)
        save_config(self.config, self.output / "config.yaml")
        missing = [unit for unit in self.units if not self._file(unit).is_file()]
        self.report_line(f"{len(self.units)} units of work, {len(self.units) - len(missing)} of them done before")
        start = time.monotonic()
        for number, unit in enumerate(missing, 1):
            try:
                self._run_unit(unit)
            except KeyboardInterrupt:
                self.report_line(f"stopped in {unit.id}; what is done is kept, and the same command goes on")
                raise
            taken = time.monotonic() - start
            left = taken / number * (len(missing) - number)
            self.report_line(f"{number}/{len(missing)} {unit.id} | {taken:.0f} s | about {left:.0f} s left")
        return self.write_report()

    def write_report(self) -> Path:
        """Write the page from the units that are done."""
        records = [json.loads(self._file(u).read_text()) for u in self.units if self._file(u).is_file()]
        facts = {title: describe_bench(bench) for title, bench in self.benches.items()}
        settings = OmegaConf.to_yaml(OmegaConf.structured(self.config))
        path = self.output / REPORT
        write_evaluation_report(path, records, facts, settings, self.command)
        self.report_line(f"wrote {path}")
        return path

    def _check_directory(self) -> None:
        path = self.output / PLAN
        if not path.is_file():
            if self.output.exists() and any(self.output.iterdir()):
                raise ValueError(
                    f"`output_dir` must be new or hold an evaluation, got {str(self.output)!r}; choose another."
                )
            return
        before = json.loads(path.read_text())
        changed = config_differences(before["settings"], self.plan["settings"])
        changed += [f"content of {d}" for d in config_differences(before["inputs"], self.plan["inputs"])]
        if changed:
            raise ValueError(
                f"`output_dir` must hold results of the same settings and data, got {str(self.output)!r} with others: "
                f"{'; '.join(changed)}. Choose another `output_dir`, or go back to the old settings."
            )

    def _plan_units(self, title: str) -> list[Unit]:
        """List the units of an experiment; refuses test cells that a model has seen."""
        bench, units = self.benches[title], []
        for seed in bench.config.seeds:
            for number, whole in enumerate(bench.folds(seed)):
                leaks = bench.find_leaks(whole, seed, gates=not units)  # those of all cells are looked for once
                for budget in bench.config.label_budgets:
                    fold = bench.limit(whole, budget, seed)
                    name = f"{slugify(title)}-seed{seed}-fold{number + 1}-{'all' if budget is None else budget}"
                    units.append(Unit(name, title, seed, fold, whole.name, budget, leaks))
        return units

    def _run_unit(self, unit: Unit) -> None:
        start = time.monotonic()
        rows = rows_by_split(np.arange(len(unit.fold.split)), unit.fold.split)
        scores = run_fold(self.benches[unit.title], rows, unit.seed)
        record = {
            "id": unit.id,
            "experiment": unit.title,
            "seed": unit.seed,
            "fold": unit.fold_name,
            "budget": unit.budget,
            "cells": {name: len(part) for name, part in rows.items()},
            "rows_sha256": {name: hashlib.sha256(part.tobytes()).hexdigest() for name, part in rows.items()},
            "leaks": [asdict(leak) for leak in unit.leaks],
            "scores": scores.rows,
            "seconds": round(time.monotonic() - start, 2),
        }
        predictions = self._file(unit).with_suffix(".npz")
        write_atomically(predictions, lambda file: np.savez_compressed(file, **scores.predictions))
        write_json(self._file(unit), record)  # the last: what is there is complete

    def _file(self, unit: Unit) -> Path:
        return self.output / UNITS / f"{unit.id}.json"


def describe_bench(bench: Bench) -> dict[str, Any]:
    """Give what the report tells of the data and settings of an experiment."""
    config, split = bench.config, bench.config.split
    kind = f"{split.folds} folds" if split.kind == "k_fold" else f"one {split.group_key} after the other held out"
    facts = {
        "task": config.task,
        "protocol": config.protocol,
        "data": ", ".join(config.data),
        "cells used": len(bench.usable),
        "split": f"{kind}; seeds {', '.join(map(str, config.seeds))}",
        "models": {name: m.path + (", fresh weights" if m.from_scratch else "") for name, m in config.models.items()},
        "baselines": ", ".join(bench.baselines) or "none",
    }
    if bench.labelled is not None:
        labels, counts = np.unique(bench.labelled.labels[bench.usable], return_counts=True)
        facts |= {
            "labels": f"{config.label_key}, made from: {config.label_derived_from}",
            "classes": {str(label): int(count) for label, count in zip(labels, counts, strict=True)},
            "left out (too few cells)": bench.left_out or "none",
        }
    return facts


def hash_inputs(config: EvaluateConfig) -> dict[str, str]:
    """Give a hash of each file of data and each model's weights, by path."""
    paths = set()
    for experiment in config.experiments.values():
        paths |= {Path(config.data_dir) / file for file in experiment.data}
        paths |= {Path(model.path) / "model.safetensors" for model in experiment.models.values()}
    return {str(path): hash_path(path) for path in sorted(paths)}


def hash_path(path: Path) -> str:
    """Hash a file, or all files of a directory with their names; "none" for what is not there."""
    if not path.exists():
        return "none"
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(str(file.relative_to(path.parent)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def slugify(title: str) -> str:
    """Turn a title into a part of a file's name that no other title gets."""
    plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return plain if plain == title else f"{plain}-{hashlib.sha256(title.encode()).hexdigest()[:6]}"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that nobody ever sees a part of it."""
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that nobody ever sees a part of it."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
