"""Settings of `scfusion evaluate`: experiments, and how they are split, fitted and scored."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf

from scfusion_fm.config.finetune import INPUTS, FinetuneOptimConfig
from scfusion_fm.config.ranges import COUNT_OR_NONE, PROPER_SHARE, SEED, SHARE, check_ranges

CHOICES = {
    "task": ("annotation", "protein_from_rna", "rna_from_protein", "clustering", "integration", "imputation"),
    "split.kind": ("k_fold", "leave_group_out"),
    "protocol": ("held_out", "paper"),
    "label_derived_from": ("unknown", "none", "adt", "rna", "rna+adt"),
}
EXPERIMENT_RANGES = {
    "cells_per_group": "[2, 1e12]",
    "min_cells_per_class": COUNT_OR_NONE,
    "modality_dropout": SHARE,
    "scored_genes": "[2, 1e12]",
    "hidden_fraction": PROPER_SHARE,
    "split.folds": "[2, 1e12]",
    "split.val_fraction": "(0, 0.5]",
}
RESERVED = ("test_rows", "cells", "labels", "names", "measured")


@dataclass
class EvaluationSplitConfig:
    """Which cells are held out, fold by fold."""

    kind: str = "k_fold"
    """k_fold: every cell is a test cell once, classes spread evenly; leave_group_out: one group after the other."""
    folds: int = 5
    """Number of folds of k_fold."""
    group_key: str = "dataset"
    """Column of obs with the groups (donors, batches) of leave_group_out, or the batches that integration should mix;
    `dataset` is the file."""
    test_groups: list[str] = field(default_factory=list)
    """Groups that leave_group_out holds out, one after the other; the others are always trained on. Empty for all."""
    val_fraction: float = 0.1
    """Share of the other cells on which settings are chosen, in (0, 0.5]."""


@dataclass
class EvaluatedModelConfig:
    """A model that takes part."""

    path: str = MISSING
    """Directory of a pretrained model, name of one of `scfusion models`, or id on the Hugging Face hub."""
    from_scratch: bool = False
    """Whether to take its architecture with fresh weights: what pretraining is worth."""
    projected_proteins: bool | None = None
    """null: all of the model is fine-tuned. Otherwise the paper's third stage, transfer to cells with RNA alone:
    encoders and fusion stay as they are, the head is trained, and with true the projection, too, by which the model
    makes the latents of the missing proteins. Of annotation from rna."""


@dataclass
class ExperimentConfig:
    """One question to some data."""

    task: str = ""
    """annotation, protein_from_rna, rna_from_protein: models are fine-tuned. clustering, integration: of the pretrained
    embedding. imputation: pretrained models fill in hidden RNA."""
    data: list[str] = field(default_factory=list)
    """Files, in `data_dir`; several are put together, each with what it measured."""
    studies: dict[str, list[str]] = field(default_factory=dict)
    """Studies that have several of the files, by name: the column `study` of obs, for `split.group_key` and
    `background_key`. The other files are studies of their own. Empty to leave obs as it is."""
    cells_per_group: int | None = None
    """Most cells of each group of leave_group_out, drawn once, the same for every seed; null for all."""
    labels_key: str = "cell_type"
    """Column of obs with the labels, in every file; not needed to predict a modality."""
    label_derived_from: str = "unknown"
    """What the labels were made from: adt, rna, rna+adt (then scores from the same counts say less), none (elsewhere,
    such as sorting), or unknown."""
    unlabelled: list[str] = field(default_factory=lambda: ["unknown", "nan", ""])
    """Values of the column that mean: no label."""
    min_cells_per_class: int = 10
    """Classes with fewer cells are left out, and listed in the report."""
    inputs: list[str] = field(default_factory=list)
    """What methods are shown: rna, adt, rna+adt; empty for all that the data allow. Of tasks with labels."""
    split: EvaluationSplitConfig = field(default_factory=EvaluationSplitConfig)
    """Held-out cells."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of folds, labels drawn, heads, order and baselines; each gives all folds once."""
    label_budgets: list[int | None] = field(default_factory=lambda: [None])
    """Labelled cells for training and validation together; null for all. Of annotation."""
    models: dict[str, EvaluatedModelConfig] = field(default_factory=dict)
    """Models by the names of the report; all of one vocabulary. Without any, baselines get the protein-coding genes
    and all proteins that are known."""
    baselines: list[str] | None = None
    """Baselines to show, by name; null for all."""
    background_key: str | None = None
    """Column of obs with groups in which genes and proteins have units of their own, such as batches; `dataset` is the
    file. Models learn the units that they share, which is for cells of new groups. Null: no such groups. Of
    protein_from_rna and annotation."""
    protocol: str = "held_out"
    """held_out; or paper: scores over all cells, those trained on included, beside the held-out ones."""
    modality_dropout: float = 0.3
    """Probability that a paired training cell loses one of its modalities, in [0, 1]. Of annotation."""
    balance_classes: bool = True
    """Whether the loss gives every class the same weight. Of annotation."""
    scored_genes: int = 1000
    """Genes that rna_from_protein predicts and imputation is scored on: those that vary most in the training cells."""
    hidden_fraction: float = 0.15
    """Share of the RNA tokens of a cell that imputation hides, in (0, 1)."""
    allow_seen_test_cells: bool = False
    """Whether to go on, and say so in the report, when a model was trained on some of the test cells."""
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    """How models are fine-tuned."""


@dataclass
class EvaluateConfig:
    """`scfusion evaluate`: experiments to one report."""

    output_dir: str = MISSING
    """Directory of the results; what is found there of the same settings is not computed again."""
    data_dir: str = "."
    """Directory that the files of all experiments are in."""
    defaults: ExperimentConfig = field(default_factory=ExperimentConfig)
    """Settings that experiments share; an experiment's own replace them."""
    experiments: dict[str, ExperimentConfig] = field(default_factory=dict)
    """Experiments by the titles of the report."""

    @staticmethod
    def complete(given: DictConfig) -> DictConfig:
        """Give every experiment the defaults that it does not replace."""
        defaults = given.get("defaults") or {}
        experiments = given.get("experiments")
        if not (OmegaConf.is_dict(experiments) and OmegaConf.is_dict(defaults)):
            return given
        full = {name: OmegaConf.merge(defaults, own or {}) for name, own in experiments.items()}
        return cast(DictConfig, OmegaConf.merge(given, {"experiments": full}))

    def __post_init__(self):
        if not self.experiments:
            raise ValueError("`experiments` must hold at least one experiment, got none.")
        for name, experiment in self.experiments.items():
            _check_experiment(f"experiments.{name}", experiment)


def _check_experiment(name: str, experiment: ExperimentConfig) -> None:
    """Refuse settings that cannot be run, before anything is."""
    for key, allowed in CHOICES.items():
        value = _look_up(experiment, key)
        if value not in allowed:
            raise ValueError(f"`{name}.{key}` must be one of {', '.join(allowed)}, got {value!r}.")
    for key in ("data", "seeds", "label_budgets"):
        if not getattr(experiment, key):
            raise ValueError(f"`{name}.{key}` must have an entry, got none.")
    for key in ("data", "seeds", "label_budgets", "inputs", "split.test_groups"):
        values = _look_up(experiment, key)
        if len(set(values)) < len(values):
            raise ValueError(f"`{name}.{key}` must name everything once, got {values}.")
    _check_studies(name, experiment)
    taken = sorted(set(experiment.models) & set(RESERVED))
    if taken:
        raise ValueError(f"`{name}.models` must have names other than {', '.join(RESERVED)}, got {taken[0]!r}.")
    unknown = [x for x in experiment.inputs if x not in INPUTS]
    if unknown:
        raise ValueError(f"`{name}.inputs` must be of {', '.join(INPUTS)}, got {unknown}.")
    if experiment.label_budgets != [None] and experiment.task != "annotation":
        raise ValueError(f"`{name}.label_budgets` is for the task annotation, got {experiment.task!r}.")
    if experiment.protocol == "paper" and experiment.task != "annotation":
        raise ValueError(f"`{name}.protocol` paper is for the task annotation, got {experiment.task!r}.")
    if experiment.background_key is not None and experiment.task not in ("annotation", "protein_from_rna"):
        raise ValueError(f"`{name}.background_key` is for annotation and protein_from_rna, got {experiment.task!r}.")
    transferred = [name for name, model in experiment.models.items() if model.projected_proteins is not None]
    if transferred and (experiment.task, experiment.inputs) != ("annotation", ["rna"]):
        raise ValueError(
            f"`{name}.models.{transferred[0]}.projected_proteins` is for the task annotation with `inputs: [rna]`, got "
            f"{experiment.task!r} with {experiment.inputs}."
        )
    if experiment.task == "integration" and experiment.split.kind != "k_fold":
        raise ValueError(f"`{name}.split.kind` must be k_fold for integration, got {experiment.split.kind!r}.")
    if experiment.split.test_groups and experiment.split.kind != "leave_group_out":
        raise ValueError(f"`{name}.split.test_groups` is for the kind leave_group_out, got {experiment.split.kind!r}.")
    check_ranges(experiment, EXPERIMENT_RANGES, f"{name}.")
    for seed in experiment.seeds:
        check_ranges(SimpleNamespace(seeds=seed), {"seeds": SEED}, f"{name}.")


def _check_studies(name: str, experiment: ExperimentConfig) -> None:
    """Refuse studies of unknown files, files of several studies, and a sample of cells where groups mean nothing."""
    named = [file for files in experiment.studies.values() for file in files]
    if len(set(named)) < len(named) or not set(named) <= set(experiment.data):
        raise ValueError(f"`{name}.studies` must name files of `data`, each once, got {named}.")
    if experiment.cells_per_group is not None and experiment.split.kind != "leave_group_out":
        raise ValueError(
            f"`{name}.cells_per_group` is for the split leave_group_out, got {experiment.split.kind!r}. Leave it out."
        )


def _look_up(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings
