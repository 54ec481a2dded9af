"""The data of an experiment, its folds, and what one fold is good for: models and baselines on the same rows.

Letters: n cells.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scfusion_fm import annotation_task, cross_modal_task
from scfusion_fm.annotation_task import INPUTS, AnnotationSettings, LabelledCells, clean_labels, join_rows
from scfusion_fm.config_evaluate import ExperimentConfig
from scfusion_fm.cross_modal_task import PairedCells
from scfusion_fm.data.fingerprints import CellFingerprints, fingerprint_cells
from scfusion_fm.data.seen import load_seen
from scfusion_fm.data.stack import DATASET, StackedCells, stack_aligned
from scfusion_fm.evaluation.annotation_baselines import ANNOTATION_METHODS, fit_annotation
from scfusion_fm.evaluation.features import build_inputs
from scfusion_fm.evaluation.leaks import Evidence, Leak, find_leaks, find_seen
from scfusion_fm.evaluation.metrics import annotation_scores, class_scores, clustering_scores
from scfusion_fm.evaluation.prediction_baselines import BLEND, OWN, PREDICTION_METHODS, fit_prediction
from scfusion_fm.evaluation.splits import Fold, k_folds, leave_group_out, limit_labels
from scfusion_fm.finetuning import CellCollator, FitSettings, Source, View, predict_rows, refuse_seen_cells
from scfusion_fm.inference import load_extractor, read_aligned
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTModel

Rows = dict[str, NDArray[np.int64]]
TARGETS = {"protein_from_rna": "adt", "rna_from_protein": "rna"}
BASELINES = {
    "annotation": tuple(ANNOTATION_METHODS),
    "protein_from_rna": (*PREDICTION_METHODS, OWN, BLEND),
    "rna_from_protein": (*PREDICTION_METHODS, OWN, BLEND),
    "clustering": ("PCA",),
}


@dataclass
class Scores:
    """What a unit gave.

    Attributes
    ----------
    rows
        Scores by method, inputs and protocol, for the report.
    predictions
        Arrays to keep by name.
    """

    rows: list[dict[str, Any]]
    predictions: dict[str, NDArray]

    def add(self, kind: str, method: str, inputs: str, scores: dict[str, Any], protocol: str = "held_out") -> None:
        """Add the scores of a method."""
        names = {"kind": kind, "method": method, "inputs": inputs, "protocol": protocol}
        self.rows.append(names | {key: _plain(value) for key, value in scores.items()})


@dataclass
class Bench:
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
    def read(cls, title: str, config: ExperimentConfig, data_dir: Path) -> "Bench":
        """
        Read the files of an experiment.

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
        parts = [read_aligned(data_dir / file, extractor)[1] for file in config.data]
        aligned = stack_aligned(parts, [Path(file).name for file in config.data])
        labelled, left_out = None, {}
        if config.task in TARGETS:
            usable = PairedCells(aligned, extractor, "adt", np.arange(0)).paired
            strata = aligned.obs[DATASET].to_numpy(str)
        else:
            labels, left_out = clean_labels(
                aligned.obs, config.label_key, config.unlabelled, config.min_cells_per_class
            )
            shown = tuple({m: None for name in config.inputs or INPUTS for m in INPUTS[name]})
            labelled = LabelledCells(aligned, extractor, labels, shown)
            wanted = config.inputs or list(labelled.inputs)
            labelled.inputs = {name: part for name, part in labelled.inputs.items() if name in wanted}
            usable, strata = labelled.used, labels
        prints = fingerprint_cells(aligned, extractor.gene_ids, extractor.protein_names)
        return cls(config, extractor, aligned, labelled, left_out, usable, strata, prints)

    def folds(self, seed: int) -> list[Fold]:
        """
        Divide the usable cells; the others have no role.

        Raises
        ------
        ValueError
            If the column of groups is missing, or as `k_folds` and `leave_group_out`.
        """
        split, strata = self.config.split, self.strata[self.usable]
        if split.kind == "k_fold":
            folds = k_folds(split.folds, strata, seed, split.val_fraction)
        else:
            if split.group_key not in self.aligned.obs:
                raise ValueError(
                    f"`split.group_key` must be a column of obs, got {split.group_key!r}; "
                    f"there are {list(self.aligned.obs.columns)}."
                )
            groups = self.aligned.obs[split.group_key].astype(str).to_numpy()[self.usable]
            folds = leave_group_out(groups, seed, split.val_fraction, strata)
        return [Fold(fold.name, self._widen(fold.split)) for fold in folds]

    def limit(self, fold: Fold, budget: int | None, seed: int) -> Fold:
        """Keep as many labels of a fold as the budget allows; all for None."""
        if budget is None:
            return fold
        few = limit_labels(Fold(fold.name, fold.split[self.usable]), self.strata[self.usable], budget, seed)
        return Fold(fold.name, self._widen(few.split))

    def _widen(self, split: NDArray[np.str_]) -> NDArray[np.str_]:
        roles = np.full(len(self.aligned.obs), "", dtype="<U5")
        roles[self.usable] = split
        return roles

    def find_leaks(self, fold: Fold, seed: int, gates: bool) -> list[Leak]:
        """
        Look for ways in which a fold's test cells could have been known before; on request for gates in labels, too.

        Raises
        ------
        ValueError
            If a model has seen more of the test cells than chance explains, and `allow_seen_test_cells` is false.
        """
        config, labelled = self.config, self.labelled
        prints = {"rna": self.prints.rna, "adt": self.prints.adt}
        source = config.label_derived_from
        inputs = ("rna+adt",) if labelled is None else labelled.inputs
        modalities = {}
        if gates and labelled is not None:
            features = annotation_task.build_features(labelled, np.arange(len(self.strata)))
            modalities = {"rna": features.rna, "adt": features.adt}
        evidence = Evidence(
            fold=fold,
            tested=tuple({m: None for name in inputs for m in INPUTS[name]}),
            fingerprints={name: np.stack([values, values], axis=1) for name, values in prints.items()},
            labels=None if labelled is None else labelled.labels,
            label_source=None if source == "unknown" else {"derived_from": source.split("+")},
            modalities={name: values for name, values in modalities.items() if values is not None},
            datasets=self.aligned.obs[DATASET].to_numpy(str),
            donors=self.aligned.obs["donor"].to_numpy(str) if "donor" in self.aligned.obs else None,
        )
        about_data = [leak for leak in find_leaks(evidence, seed) if not leak.kind.startswith("seen")]
        return self._find_seen(fold) + about_data

    def _find_seen(self, fold: Fold) -> list[Leak]:
        """Look up the test cells in what each model has seen; fresh weights have seen nothing."""
        found = []
        for name, model in self.config.models.items():
            if model.from_scratch:
                continue
            seen = load_seen(Path(model.path))
            answer = None if seen is None else seen.look_up(self.prints[fold.rows("test")])
            if answer is not None:
                refuse_seen_cells(answer, self.config.allow_seen_test_cells)
            known = (None, 0.0) if answer is None else (answer.seen, answer.expected_by_chance)
            found += [
                dataclasses.replace(leak, message=f"{name}: {leak.message}")
                for leak in find_seen(Evidence(fold, seen=known[0], expected_by_chance=known[1]))
            ]
        return found

    def run(self, rows: Rows, seed: int) -> Scores:
        """Fit models and baselines on the same rows, and score them."""
        scores = Scores([], {"test_rows": rows["test"], "cells": self.aligned.obs.index.to_numpy(str)[rows["test"]]})
        runner = {"annotation": _run_annotation, "clustering": _run_clustering}.get(self.config.task, _run_prediction)
        runner(self, rows, seed, scores)
        return scores

    def sources(self) -> dict[str, Source]:
        """Give where the weights of each model come from."""
        return {name: Source(Path(m.path), m.from_scratch) for name, m in self.config.models.items()}

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the baselines that are fitted."""
        return BASELINES[self.config.task] if self.config.baselines is None else tuple(self.config.baselines)


def _read_shared_extractor(title: str, config: ExperimentConfig) -> ScFusionTTTFeatureExtractor:
    extractors = {name: load_extractor(Path(model.path)) for name, model in config.models.items()}
    first, *rest = extractors
    for name in rest:
        if extractors[name].to_dict() != extractors[first].to_dict():
            raise ValueError(
                f"`experiments.{title}.models` must share vocabulary and patches, so that all methods see the same; "
                f"{name!r} and {first!r} differ. Give each an experiment of its own."
            )
    return extractors[first]


def _run_annotation(bench: Bench, rows: Rows, seed: int, scores: Scores) -> None:
    """Annotate with baselines and models."""
    config, data = bench.config, bench.labelled
    truth = data.labels[rows["test"]]
    scores.predictions["labels"] = truth
    if bench.baselines:
        found = fit_annotation(annotation_task.build_baseline_task(data, rows, seed), bench.baselines)
        for method, inputs in found.test:
            if inputs in data.inputs:
                _add_annotation(scores, "baseline", (method, inputs), truth, found.labels(method, inputs))
    settings = AnnotationSettings(
        config.optim,
        seed,
        balance_classes=config.balance_classes,
        modality_dropout=config.modality_dropout,
        view=View(data.modalities),
    )
    for name, source in bench.sources().items():
        fitted = annotation_task.fit_annotation(source, data, rows, settings)
        for inputs, shown in data.inputs.items():
            guess = data.names_of(fitted.predict(data.aligned, rows["test"], shown))
            _add_annotation(scores, "model", (name, inputs), truth, guess)
            if config.protocol == "paper":
                every = np.sort(np.concatenate(list(rows.values())))
                embedding = fitted.embed(data.aligned, every, shown)
                scores.add("model", name, inputs, score_clusters(embedding, data.labels[every], seed), "paper")
                held_out = score_clusters(embedding[np.isin(every, rows["test"])], truth, seed)
                scores.add("model", name, inputs, held_out, "paper, test cells only")
    if config.protocol == "paper":
        used, split = join_rows(rows)
        features = build_inputs(annotation_task.build_features(data, used), split, seed)
        for inputs in data.inputs:
            all_cells, test = features[inputs], features[inputs][split == "test"]
            scores.add("baseline", "PCA", inputs, score_clusters(all_cells, data.labels[used], seed), "paper")
            scores.add("baseline", "PCA", inputs, score_clusters(test, truth, seed), "paper, test cells only")


def _add_annotation(
    scores: Scores, kind: str, name: tuple[str, str], truth: NDArray[np.str_], guess: NDArray[np.str_]
) -> None:
    method, inputs = name
    parts = {label: float(f1) for label, f1 in class_scores(truth, guess)["f1"].items()}
    scores.add(kind, method, inputs, {**annotation_scores(truth, guess), "parts": parts})
    scores.predictions[f"{method} ({inputs})"] = guess


def score_clusters(embedding: NDArray[np.floating], labels: NDArray[np.str_], seed: int) -> dict[str, float]:
    """Cluster cells into as many groups as there are labels (k-means), and compare: ARI and NMI."""
    clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=seed).fit_predict(embedding)
    return {
        "ari": float(adjusted_rand_score(labels, clusters)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
    }


def _run_prediction(bench: Bench, rows: Rows, seed: int, scores: Scores) -> None:
    """Predict one modality from the other with baselines and models."""
    config, target = bench.config, TARGETS[bench.config.task]
    panel = None
    if target == "rna":
        panel = cross_modal_task.choose_genes(bench.aligned, bench.extractor, rows["train"], config.scored_genes)
    data = PairedCells(bench.aligned, bench.extractor, target, panel)
    inputs = cross_modal_task.SOURCE_OF[target]
    predictions = {}
    if bench.baselines:
        task = cross_modal_task.build_baseline_task(data, rows, seed)
        predictions = {("baseline", m): p for m, p in fit_prediction(task, bench.baselines).test.items()}
    for name, source in bench.sources().items():
        fitted = cross_modal_task.fit_cross_modal(source, data, rows, FitSettings(config.optim, seed))
        predictions["model", name] = fitted.predict(rows["test"])
    scores.predictions["names"] = np.array(data.names)
    for (kind, method), values in predictions.items():
        table, summary = data.score(rows["test"], values)
        parts = dict(zip(data.names, map(_plain, table["pearson"]), strict=True))
        scores.add(kind, method, inputs, {**summary, "parts": parts})
        scores.predictions[method] = np.asarray(values, np.float32)


def _run_clustering(bench: Bench, rows: Rows, seed: int, scores: Scores) -> None:
    """Score how the embedding separates cell types; nothing is trained but the projection of the baseline."""
    data, test = bench.labelled, rows["test"]
    truth = data.labels[test]

    def add(kind: str, method: str, inputs: str, embedding: NDArray[np.floating]) -> None:
        scores.add(kind, method, inputs, score_clusters(embedding, truth, seed) | clustering_scores(embedding, truth))
        scores.predictions[f"{method} ({inputs})"] = np.asarray(embedding, np.float32)

    if bench.baselines:
        used, split = join_rows(rows)
        for inputs, x in build_inputs(annotation_task.build_features(data, used), split, seed).items():
            if inputs in data.inputs:
                add("baseline", "PCA", inputs, x[split == "test"])
    collator = CellCollator(data.aligned, data.extractor)
    for name, source in bench.sources().items():
        model = source.build(ScFusionTTTModel, seed)
        for inputs, shown in data.inputs.items():
            add("model", name, inputs, predict_rows(model, collator, test, "pooler_output", shown))


def _plain(value: Any) -> Any:
    """Give what a JSON file can hold; None for what is no number."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    number = float(value)
    return number if np.isfinite(number) else None
