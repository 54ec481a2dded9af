"""Units of work of an evaluation, what each was computed with, and their files.

A unit is one fold of one seed with one budget of labels. Its file says which settings, data and weights its scores are
of, so that seeds, budgets, models, baselines and experiments can be added to a finished run.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from scfusion_fm.comparison.scores import Scores
from scfusion_fm.config.comparison import ExperimentConfig
from scfusion_fm.config.loading import config_differences
from scfusion_fm.evaluation.protocol.leaks import Leak
from scfusion_fm.evaluation.protocol.splits import Fold
from scfusion_fm.evaluation.protocol.spread import HELD_OUT
from scfusion_fm.evaluation.report.run_files import UNREADABLE_ARRAYS, replace_file
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.records import SEAL, checksum_bytes, read_record, seal_record

# What units are listed from, and what says something about the cells but changes no score.
LISTS = ("seeds", "label_budgets", "models", "baselines")
REMARKS = ("label_derived_from", "allow_seen_test_cells")
ARCHITECTURE, WEIGHTS = ("config.json", "preprocessor_config.json"), ("model.safetensors",)


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
        Its cells, within the budget.
    whole
        The same with all labels.
    budget
        Labelled cells; None for all.
    leaks
        What was found about its cells.
    """

    id: str
    title: str
    seed: int
    fold: Fold
    whole: Fold
    budget: int | None
    leaks: list[Leak]

    def describe(self) -> dict[str, Any]:
        """Give what the report tells of it, but for its scores."""
        partition = self.fold.partition
        return {
            "id": self.id,
            "experiment": self.title,
            "seed": self.seed,
            "fold": self.whole.name,
            "budget": self.budget,
            "cells": partition.counts,
            "test_ratio": len(partition.test) / len(self.whole.partition.known),
            "rows_sha256": {name: hashlib.sha256(part.tobytes()).hexdigest() for name, part in partition.parts.items()},
            "leaks": [asdict(leak) for leak in self.leaks],
        }


@dataclass(frozen=True)
class Recipe:
    """
    What the scores of an experiment's units depend on, beside their cells.

    Attributes
    ----------
    settings
        Its settings, without those that list units and methods.
    data
        Hash of each file.
    models
        Settings and hash of each model.
    baselines
        Names of the baselines.
    """

    settings: dict[str, Any]
    data: dict[str, str]
    models: dict[str, dict[str, Any]]
    baselines: list[str]

    @classmethod
    def read(
        cls, config: ExperimentConfig, baselines: tuple[str, ...], data_dir: Path, hashes: dict[Path, str]
    ) -> "Recipe":
        """Read it from an experiment's settings and files; `hashes` gets those that were not known."""

        def find_hash(path: Path) -> str:
            if path not in hashes:
                hashes[path] = hash_path(path)
            return hashes[path]

        settings: dict = OmegaConf.to_container(OmegaConf.structured(config))
        models = {}
        for name, given in settings["models"].items():
            path = find_model(given.pop("path"))
            files = ARCHITECTURE if given["from_scratch"] else ARCHITECTURE + WEIGHTS
            models[name] = {"settings": given, "files": {file: find_hash(path / file) for file in files}}
        data = {file: find_hash(data_dir / file) for file in config.data}
        kept = {key: value for key, value in settings.items() if key not in LISTS + REMARKS}
        return cls(kept, data, models, list(baselines))


RECORD_KEYS = {"made_with", "rows_sha256", "scores", "seconds"}
ARRAYS = "arrays"
"""Entry of a record with the checksum of each array of the unit."""


def checksum_array(array: np.ndarray) -> str:
    """Give the CRC-32C of an array, its type and its shape."""
    return checksum_bytes(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())


class UnitFile:
    """
    The files of a unit: scores and what they are of, and predictions.

    Parameters
    ----------
    folder
        Directory of the files of all units.
    unit
        The unit.
    recipe
        What it is to be computed with.
    """

    def __init__(self, folder: Path, unit: Unit, recipe: Recipe):
        self.path = folder / f"{unit.id}.json"
        self.unit = unit
        self.recipe = recipe

    def find_changes(self) -> list[str]:
        """Say where the scores that are there were computed with something else; none for a unit without scores."""
        before, title = self._load(), f"experiments.{self.unit.title}"
        if before is None:
            return []
        made, recipe = before["made_with"], self.recipe
        changes = config_differences(made["settings"], recipe.settings, title)
        changes += [f"content of {name}" for name in recipe.data if made["data"].get(name) != recipe.data[name]]
        for name in set(made["models"]) & set(recipe.models):
            changes += name_model_changes(made["models"][name], recipe.models[name], f"{title}.models.{name}")
        if not changes and before["rows_sha256"] != self.unit.describe()["rows_sha256"]:
            changes = [f"the cells of {self.unit.id}"]
        if not changes and self.path.with_suffix(".npz").exists():
            self.read_arrays()  # damage is told before anything is computed
        return changes

    def list_missing(self) -> tuple[list[str], list[str]]:
        """List the models and the baselines that have no scores yet."""
        before = self._load()
        made: dict = {"models": {}, "baselines": []} if before is None else before["made_with"]
        return (
            [name for name in self.recipe.models if name not in made["models"]],
            [name for name in self.recipe.baselines if name not in made["baselines"]],
        )

    def add(self, scores: Scores, seconds: float) -> None:
        """Add what was missing; other methods' scores and predictions stay as they are."""
        made = asdict(self.recipe)
        rows, predictions = scores.rows, scores.predictions
        before = self._load()
        if before is not None:
            known = {name_score(row) for row in before["scores"]}
            rows = before["scores"] + [row for row in rows if name_score(row) not in known]
            made["models"] = before["made_with"]["models"] | made["models"]
            made["baselines"] = list(dict.fromkeys(before["made_with"]["baselines"] + made["baselines"]))
            seconds += before["seconds"]
            predictions = predictions | self.read_arrays()
        record = self.unit.describe() | {"made_with": made, "scores": rows, "seconds": round(seconds, 2)}
        # One for each array, not for the file: killed after the next line, the old record knows the old ones again.
        record[ARRAYS] = {name: checksum_array(array) for name, array in predictions.items()}
        arrays = io.BytesIO()
        np.savez_compressed(arrays, **predictions)
        replace_file(self.path.with_suffix(".npz"), arrays.getvalue())
        # The last: what is there is complete.
        replace_file(self.path, json.dumps(seal_record(record), indent=1).encode())

    def read(self) -> dict[str, Any]:
        """Give the record with the scores of the methods that are asked for, and what is known of its cells now."""
        record = self._load() or {}
        wanted = [row for row in record["scores"] if self._is_wanted(row)]
        return record | self.unit.describe() | {"scores": wanted}

    def read_arrays(self) -> dict[str, np.ndarray]:
        """
        Give the arrays of the unit, by name.

        Raises
        ------
        ValueError
            If they are not as they were written.
        """
        path, record = self.path.with_suffix(".npz"), self._load() or {}
        try:
            with path.open("rb") as content, np.load(content) as stored:
                names = record.get(ARRAYS, dict.fromkeys(stored))
                arrays = {name: stored[name] for name in names}
        except UNREADABLE_ARRAYS as error:
            raise ValueError(f"`{path}` must hold the arrays of its unit, got: {error}; {self._advice}.") from error
        changed = [name for name, array in arrays.items() if names[name] not in (None, checksum_array(array))]
        if changed:
            raise ValueError(f"`{path}` must be as it was written, got another array {changed[0]!r}; {self._advice}.")
        return arrays

    def _load(self) -> dict[str, Any] | None:
        """Read the record; None where there is none."""
        if not self.path.is_file():
            return None
        record = read_record(self.path, self._advice)
        if (ARRAYS in record) != (SEAL in record) or not record.keys() >= RECORD_KEYS:
            raise ValueError(f"`{self.path}` must be the record of a unit, got another; {self._advice}.")
        return record

    @property
    def _advice(self) -> str:
        return "remove it, and that unit is computed again"

    def _is_wanted(self, row: dict[str, Any]) -> bool:
        if row["kind"] == "model":
            return row["method"] in self.recipe.models
        return row["protocol"] != HELD_OUT or row["method"] in self.recipe.baselines


def name_model_changes(old: dict[str, Any], new: dict[str, Any], name: str) -> list[str]:
    """Say what has changed of a model: its settings with both values, or its files without."""
    changes = config_differences(old["settings"], new["settings"], name)
    return changes or [
        f"content of {name}: {file}" for file in new["files"] if old["files"][file] != new["files"][file]
    ]


def name_score(row: dict[str, Any]) -> tuple[str, ...]:
    """Give what tells a score from others of its unit."""
    return row["kind"], row["method"], row["inputs"], row["protocol"]


def check_directory(output: Path, folder: Path) -> None:
    """
    Refuse a directory with something else in it.

    Raises
    ------
    ValueError
        If it holds files, and no units.
    """
    if not folder.is_dir() and output.exists() and any(output.iterdir()):
        raise ValueError(f"`output_dir` must be new or hold an evaluation, got {str(output)!r}; choose another.")


def check_units(output: Path, files: list[UnitFile]) -> None:
    """
    Refuse to mix scores.

    Raises
    ------
    ValueError
        If a unit was computed with other settings, or with data or models that have changed since.
    """
    changes = list(dict.fromkeys(change for file in files for change in file.find_changes()))
    if changes:
        raise ValueError(
            f"`output_dir` must hold results of the same settings and data, got {str(output)!r} with others: "
            f"{'; '.join(changes)}. Choose another `output_dir`, give a changed model another name, or go back to the "
            "old settings."
        )


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
