"""The data of an experiment, its folds, and ways in which test cells could have been known before.

Letters: n cells.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.config.comparison import ExperimentConfig
from scfusion_fm.config.finetune import INPUTS
from scfusion_fm.data.files.stack import StackedCells, stack_aligned
from scfusion_fm.data.fingerprints.cells import CellFingerprints, fingerprint_cells
from scfusion_fm.data.schema import DATASET, AlignedCells, as_text, read_categories
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary
from scfusion_fm.evaluation.baselines.annotation import ALL_ANNOTATION_METHODS
from scfusion_fm.evaluation.baselines.imputation import IMPUTATION_METHODS
from scfusion_fm.evaluation.baselines.prediction import AVERAGE, OWN, PREDICTION_METHODS
from scfusion_fm.evaluation.protocol.leaks import Evidence, Leak, find_leaks, find_pretrained_cells
from scfusion_fm.evaluation.protocol.splits import Fold, k_folds, leave_group_out, limit_labels
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.inference.seen import load_model_seen
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.notices import warn
from scfusion_fm.tasks.annotation.baselines import show_features
from scfusion_fm.tasks.annotation.cells import LabelledCells, drop_rare_classes, read_labels
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.seen import refuse_seen_cells
from scfusion_fm.tasks.weights import Weights

STUDY = "study"
TARGETS = {"protein_from_rna": "adt", "rna_from_protein": "rna"}
BASELINES = {
    "annotation": ALL_ANNOTATION_METHODS,
    "protein_from_rna": (*PREDICTION_METHODS, OWN, AVERAGE),
    "rna_from_protein": (*PREDICTION_METHODS, OWN, AVERAGE),
    "clustering": ("PCA",),
    "integration": ("PCA",),
    "imputation": IMPUTATION_METHODS,
}


@dataclass
class Experiment:
    """
    An experiment with its data.

    Attributes
    ----------
    config
        The experiment.
    extractor
        Vocabulary and normaliser of its models.
    aligned
        The cells of all files.
    labelled
        The same with labels; None for tasks without.
    left_out
        Cells of classes that are too small, by class.
    usable
        Rows that take part.
    strata
        (n,), what folds spread evenly.
    prints
        Fingerprints of the cells.
    """

    config: ExperimentConfig
    extractor: ScFusionTTTFeatureExtractor
    aligned: StackedCells
    labelled: LabelledCells | None
    left_out: dict[str, int]
    usable: NDArray[np.int64]
    strata: NDArray[np.str_]
    prints: CellFingerprints

    @classmethod
    def read(cls, title: str, config: ExperimentConfig, data_dir: Path, files: dict | None = None) -> "Experiment":
        """
        Read the files of an experiment.

        Parameters
        ----------
        title
            The experiment.
        config
            Its settings.
        data_dir
            Directory of its files.
        files
            Files that were read before, by path and vocabulary; gets those that are read now.

        Raises
        ------
        ValueError
            If its models differ in vocabulary, a name of a baseline is unknown, or the files lack what the task needs.
        """
        known = BASELINES[config.task]
        unknown = sorted(set(config.baselines or ()) - set(known))
        if unknown:
            raise ValueError(f"`experiments.{title}.baselines` must be among {list(known)}, got {unknown}.")
        extractor = _read_shared_extractor(title, config)
        parts = [_read_once(data_dir / file, extractor, {} if files is None else files) for file in config.data]
        aligned = stack_aligned(parts, [Path(file).name for file in config.data])
        if config.studies:
            study_of = {Path(file).name: name for name, files in config.studies.items() for file in files}
            aligned.obs[STUDY] = [study_of.get(file, file) for file in aligned.obs[DATASET]]
        labelled, left_out = None, {}
        if config.task in TARGETS or config.task == "imputation":
            paired = PairedCells(aligned, extractor, "adt", np.arange(0)).paired if config.task in TARGETS else None
            usable = np.flatnonzero(aligned.rna_present) if paired is None else paired
            strata = aligned.obs[DATASET].to_numpy(str)
        else:
            labels = read_labels(aligned.obs, config.labels_key, config.unlabelled)
            labels, left_out = drop_rare_classes(labels, config.min_cells_per_class)
            shown = tuple({m: None for name in config.inputs or INPUTS for m in INPUTS[name]})
            labelled = LabelledCells(aligned, extractor, labels, shown)
            wanted = config.inputs or list(labelled.inputs)
            labelled.inputs = {name: part for name, part in labelled.inputs.items() if name in wanted}
            usable, strata = labelled.used, labels
        prints = fingerprint_cells(aligned, extractor.gene_ids, extractor.protein_names)
        experiment = cls(config, extractor, aligned, labelled, left_out, usable, strata, prints)
        experiment.batches()  # a missing column is told before anything is computed
        experiment.leave_out_cells_without_group()
        experiment.draw_cells()
        return experiment

    def draw_cells(self) -> None:
        """Keep at most `cells_per_group` cells of each group; the seeds of the experiment do not change which."""
        if self.config.cells_per_group is None:
            return
        groups = self.groups()[self.usable]
        draws = np.random.default_rng(0).random(len(groups))
        order = np.lexsort((draws, groups))
        places = np.arange(len(groups)) - np.searchsorted(groups[order], groups[order])
        self.usable = np.sort(self.usable[order[places < self.config.cells_per_group]])

    def leave_out_cells_without_group(self) -> None:
        """Leave cells out of all folds that have no group, with a warning, where groups are held out or mixed."""
        if self.config.split.kind == "k_fold" and self.config.task != "integration":
            return
        known = self.groups()[self.usable] != ""
        if not known.all():
            key = self.config.split.group_key
            message = f"{(~known).sum():,} of {len(known):,} cells have no {key!r} and are left out."
            warn(message)
            self.usable = self.usable[known]

    def folds(self, seed: int) -> list[Fold]:
        """
        Divide the usable cells; the others are in no part.

        Raises
        ------
        ValueError
            If the column of groups is missing, or as `k_folds` and `leave_group_out`.
        """
        split, strata = self.config.split, self.strata[self.usable]
        if split.kind == "k_fold":
            folds = k_folds(split.folds, strata, seed, split.val_fraction)
        else:
            groups = self.groups()[self.usable]
            folds = leave_group_out(groups, seed, split.val_fraction, strata, split.test_groups)
        return [Fold(fold.name, fold.partition.of(self.usable)) for fold in folds]

    def groups(self) -> NDArray[np.str_]:
        """
        Give the group of every cell: donor, batch or file; '' where a cell has none.

        Raises
        ------
        ValueError
            If the column is missing.
        """
        groups = read_categories(self._read_column("split.group_key", self.config.split.group_key))
        return np.where(pd.isna(groups), "", groups).astype(str)

    def batches(self) -> NDArray[np.object_] | None:
        """
        Give the batch of every cell, in which proteins have levels of their own; None without.

        Raises
        ------
        ValueError
            If the column is missing.
        """
        key = self.config.background_key
        return None if key is None else read_categories(self._read_column("background_key", key))

    def _read_column(self, name: str, key: str) -> pd.Series:
        obs = self.aligned.obs
        if key not in obs:
            raise ValueError(f"`{name}` must be a column of obs, got {key!r}; there are {list(obs.columns)}.")
        return obs[key]

    def limit(self, fold: Fold, budget: int | None, seed: int) -> Fold:
        """Keep as many labels of a fold as the budget allows; all for None."""
        return fold if budget is None else limit_labels(fold, self.strata, budget, seed)

    def find_leaks(self, fold: Fold, seed: int, gates: bool) -> list[Leak]:
        """
        Look for ways in which a fold's test cells could have been known before; on request for gates in labels, too.

        Raises
        ------
        ValueError
            If a model has seen more of the test cells than chance explains, and `allow_seen_test_cells` is false.
        """
        config, labelled = self.config, self.labelled
        source = config.label_derived_from
        inputs = ("rna+adt",) if labelled is None else labelled.inputs
        modalities = {}
        if gates and labelled is not None:
            features = show_features(labelled, np.arange(len(self.strata)))
            modalities = features.given
        evidence = Evidence(
            partition=fold.partition,
            tested=tuple({m: None for name in inputs for m in INPUTS[name]}),
            fingerprints={"rna": self.prints.rna, "adt": self.prints.adt},
            labels=None if labelled is None else labelled.labels,
            label_derived_from=None if source == "unknown" else source.split("+"),
            modalities=modalities,
            datasets=self.aligned.obs[DATASET].to_numpy(str),
            donors=as_text(self.aligned.obs["donor"]).to_numpy(str) if "donor" in self.aligned.obs else None,
        )
        return self._find_pretrained_cells(fold) + find_leaks(evidence, seed)

    def _find_pretrained_cells(self, fold: Fold) -> list[Leak]:
        """Look up the test cells in what each model has seen; fresh weights have seen nothing."""
        found = []
        for name, model in self.config.models.items():
            if model.from_scratch:
                continue
            seen = load_model_seen(find_model(model.path))
            answer = None if seen is None else seen.look_up(self.prints[fold.partition.test])
            if answer is not None:
                refuse_seen_cells(answer, self.config.allow_seen_test_cells)
            known = (None,) if answer is None else (answer.seen, answer.expected_by_chance, answer.beyond_chance)
            found += [
                dataclasses.replace(leak, message=f"{name}: {leak.message}") for leak in find_pretrained_cells(*known)
            ]
        return found

    def select(self, models: list[str], baselines: list[str]) -> "Experiment":
        """Give the same with some of the models and baselines only."""
        chosen = {name: self.config.models[name] for name in models}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, models=chosen, baselines=baselines))

    def weights(self) -> dict[str, Weights]:
        """Give where the weights of each model come from."""
        return {name: Weights(find_model(m.path), m.from_scratch) for name, m in self.config.models.items()}

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the baselines that are fitted."""
        return BASELINES[self.config.task] if self.config.baselines is None else tuple(self.config.baselines)


def _read_once(path: Path, extractor: ScFusionTTTFeatureExtractor, files: dict) -> AlignedCells:
    key = (str(path), extractor.to_json_string())
    if key not in files:
        files[key] = read_aligned(path, extractor, min_coverage=0)[1]
    return files[key]


def _read_shared_extractor(title: str, config: ExperimentConfig) -> ScFusionTTTFeatureExtractor:
    extractors = {name: load_extractor(find_model(model.path)) for name, model in config.models.items()}
    if not extractors:
        return ScFusionTTTFeatureExtractor(**build_vocabulary(None, "protein_coding", "all").to_dict())
    first, *rest = extractors
    for name in rest:
        if extractors[name].to_dict() != extractors[first].to_dict():
            raise ValueError(
                f"`experiments.{title}.models` must share vocabulary and patches, so that all methods see the same; "
                f"{name!r} and {first!r} differ. Give each an experiment of its own."
            )
    return extractors[first]
