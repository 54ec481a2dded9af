"""What the fine-tuning scripts share: settings, cells as a data set, and files of results."""

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from scfusion_fm.config import (
    AnnotationConfig,
    CrossModalConfig,
    FinetuneOptimConfig,
    SplitConfig,
    UnimodalTransferConfig,
)
from scfusion_fm.data.fingerprints import fingerprint_cells
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.data.seen import SeenAnswer, SeenCells, SeenPart, load_seen
from scfusion_fm.data.split import assign_split
from scfusion_fm.inference import make_inputs, silence_transformers
from scfusion_fm.model import ScFusionTTTConfig, ScFusionTTTFeatureExtractor

FinetuneConfig = AnnotationConfig | CrossModalConfig | UnimodalTransferConfig


@dataclass(frozen=True)
class Source:
    """
    Where the weights of a model come from that will be fine-tuned.

    Attributes
    ----------
    path
        Directory of a pretrained model.
    from_scratch
        Whether to take its architecture only, and fresh weights.
    """

    path: Path
    from_scratch: bool = False

    def suit(self, settings: "FitSettings") -> "FitSettings":
        """Let fresh embeddings learn as fast as all else; the low rate is there to keep what pretraining found."""
        if not self.from_scratch:
            return settings
        return replace(settings, optim=replace(settings.optim, embedding_lr_ratio=1.0))

    def build(self, model_class: type[PreTrainedModel], seed: int, **settings: Any) -> PreTrainedModel:
        """Build a model; what is not loaded (the head, or all of it) depends on the seed alone."""
        silence_transformers()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.from_scratch:
                return model_class(ScFusionTTTConfig.from_pretrained(self.path, **settings))
            return model_class.from_pretrained(self.path, **settings)


@dataclass(frozen=True)
class FitSettings:
    """
    How a model is fine-tuned for a task.

    Attributes
    ----------
    optim
        Optimisation.
    seed
        Seed of what is not loaded, of the order of cells and of dropout.
    directory
        Where the trainer's files stay; None keeps none, and prints nothing.
    """

    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    seed: int = 0
    directory: Path | None = None

    @contextmanager
    def open_directory(self) -> Iterator[Path]:
        """Give the directory for the trainer's files."""
        if self.directory is not None:
            yield self.directory
            return
        with tempfile.TemporaryDirectory(prefix="scfusion-trainer-") as directory:
            yield Path(directory)


class CellRows(Dataset):
    """Rows of aligned cells; the collator looks up the cells themselves."""

    def __init__(self, rows: NDArray[np.int64]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return int(self.rows[index])


class CellCollator:
    """
    Prepare a batch of rows for the model.

    Parameters
    ----------
    aligned
        All cells of the file.
    extractor
        Normaliser and vocabulary.
    labels
        (n,) class index per cell; None when the task has no labels of its own.
    modality_dropout
        Probability that a paired cell loses one of its modalities, in [0, 1].
    seed
        Seed of that choice.
    modalities
        What of the cells is shown.
    target
        Modality that a task without labels of its own learns.
    token_dropout
        Largest share of its tokens that a cell loses, in [0, 1); what is learned loses none.

    Raises
    ------
    ValueError
        If `modality_dropout` is out of range.
    """

    def __init__(
        self,
        aligned: AlignedCells,
        extractor: ScFusionTTTFeatureExtractor,
        labels: NDArray[np.int64] | None = None,
        modality_dropout: float = 0.0,
        seed: int = 0,
        modalities: tuple[str, ...] = ("rna", "adt"),
        target: str = "adt",
        token_dropout: float = 0.0,
    ):
        check_modality_dropout(modality_dropout)
        self.aligned = aligned
        self.extractor = extractor
        self.labels = labels
        self.modality_dropout = modality_dropout
        self.modalities = modalities
        self.token_dropout = token_dropout
        # What the trainer takes for labels; a task without its own learns the values of a modality.
        self.label_names = [f"{target}_values", f"{target}_observed"] if labels is None else ["labels"]
        self._random = np.random.default_rng(seed)

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Give the arguments of the model."""
        rows = np.asarray(rows)
        batch = make_inputs(self.aligned, self.extractor, rows)
        batch = {k: v for k, v in batch.items() if k.split("_")[0] in self.modalities}
        if self.modality_dropout > 0 and {"rna_observed", "adt_observed"} <= batch.keys():
            self._drop_modalities(batch)
        if self.token_dropout > 0:
            self._drop_tokens(batch)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def _drop_modalities(self, batch: dict[str, torch.Tensor]) -> None:
        rna, adt = batch["rna_observed"], batch["adt_observed"]
        paired = rna.flatten(1).any(1) & adt.any(1)
        draw = torch.from_numpy(self._random.random(len(paired)))
        batch["rna_observed"] = rna & ~(paired & (draw < self.modality_dropout / 2))[:, None, None]
        drop_adt = paired & (draw >= self.modality_dropout / 2) & (draw < self.modality_dropout)
        batch["adt_observed"] = adt & ~drop_adt[:, None]

    def _drop_tokens(self, batch: dict[str, torch.Tensor]) -> None:
        for name in ("rna_observed", "adt_observed"):
            if name in batch and name not in self.label_names:
                observed = batch[name]
                share = self.token_dropout * self._random.random((len(observed), 1))
                kept = torch.from_numpy(self._random.random(observed.shape[:2]) >= share)
                batch[name] = observed & kept.reshape(kept.shape + (1,) * (observed.ndim - 2))


def check_modality_dropout(probability: float) -> None:
    """Refuse what is no probability."""
    if not 0 <= probability <= 1:
        raise ValueError(f"`modality_dropout` must lie in [0, 1], got {probability}.")


def predict_rows(
    model: PreTrainedModel,
    collator: CellCollator,
    rows: NDArray[np.int64],
    field: str = "logits",
    modalities: tuple[str, ...] = ("rna", "adt"),
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Run a model over rows, shown only the given modalities; the `field` of its output, row by row."""
    model.eval()
    results = []
    for start in range(0, len(rows), batch_size):
        batch = collator(rows[start : start + batch_size])
        shown = {k: v.to(model.device) for k, v in batch.items() if k.split("_")[0] in modalities}
        with torch.inference_mode():
            results.append(model(**shown)[field].float().cpu().numpy())
    return np.concatenate(results)


def split_cells(obs: pd.DataFrame, rule: SplitConfig) -> NDArray[np.str_]:
    """
    Assign cells to train, val and test by the rule that atlases use.

    Raises
    ------
    ValueError
        If the column of groups is missing.
    """
    if rule.group_key is not None and rule.group_key not in obs:
        raise ValueError(
            f"`split.group_key` must be a column of obs, got {rule.group_key!r}; it has {list(obs.columns)}."
        )
    groups = None if rule.group_key is None else obs[rule.group_key].astype(str).to_numpy()
    return assign_split(obs.index.astype(str), rule.val_fraction, rule.test_fraction, rule.seed, groups)


def rows_by_split(rows: NDArray[np.int64], split: NDArray[np.str_]) -> dict[str, NDArray[np.int64]]:
    """
    Sort rows into `train`, `val` and `test`.

    Raises
    ------
    ValueError
        If one of them gets no cell.
    """
    parts = {name: rows[split[rows] == name] for name in ("train", "val", "test")}
    empty = [name for name, part in parts.items() if len(part) == 0]
    if empty:
        raise ValueError(
            f"`split` must leave cells for train, val and test, got none for {empty}; change its fractions."
        )
    return parts


def set_apart_calibration(
    rows: dict[str, NDArray[np.int64]], fraction: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """
    Move some rows of `val` to `calibration`, so that they neither train nor choose anything.

    Raises
    ------
    ValueError
        If the fraction is out of range, or one of both gets no cell.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`calibration_fraction` must lie in (0, 1), got {fraction}.")
    order = np.random.default_rng([seed, len(rows["val"])]).permutation(rows["val"])
    number = round(fraction * len(order))
    if not 0 < number < len(order):
        raise ValueError(
            f"`calibration_fraction` must leave cells for validation and calibration, got {fraction} of {len(order)} "
            "cells; raise `split.val_fraction`."
        )
    return rows | {"val": np.sort(order[number:]), "calibration": np.sort(order[:number])}


@dataclass(frozen=True)
class SeenByModel:
    """
    What a fine-tuned model has seen, and how many of its test cells were among that before.

    Attributes
    ----------
    cells
        What the pretrained model and the fine-tuning have seen; None where the model does not tell.
    test_cells
        For the results: `known`, and where it is, `seen`, `of`, `expected_by_chance` and `beyond_chance`.
    """

    cells: SeenCells | None
    test_cells: dict[str, Any]


def check_test_cells(
    config: FinetuneConfig,
    aligned: AlignedCells,
    extractor: ScFusionTTTFeatureExtractor,
    rows: dict[str, NDArray[np.int64]],
) -> SeenByModel:
    """
    Refuse test cells that the model was trained on.

    Parameters
    ----------
    config
        Tells the model, the file, and whether to go on in spite of seen cells.
    aligned
        All cells of the file.
    extractor
        Vocabulary of the model.
    rows
        Rows of `test`, and of `train` and others that the fine-tuning uses.

    Raises
    ------
    ValueError
        If more test cells were seen than chance explains, and `allow_seen_test_cells` is false.

    Notes
    -----
    Warns where the model does not tell what it has seen.
    """
    seen = load_seen(Path(config.model))
    if seen is None:
        message = f"{config.model} does not tell which cells it was trained on: test cells may be among them."
        warnings.warn(message, stacklevel=1)
        return SeenByModel(None, {"known": False})
    prints = fingerprint_cells(aligned, extractor.gene_ids, extractor.protein_names)
    answer = seen.look_up(prints[rows["test"]])
    refuse_seen_cells(answer, config.allow_seen_test_cells)
    used = np.concatenate([part for name, part in rows.items() if name != "test"])
    return SeenByModel(
        seen + SeenPart.build(f"fine-tuning on {Path(config.data).name}", prints[used]),
        {
            "known": True,
            "seen": answer.seen,
            "of": answer.num_cells,
            "expected_by_chance": answer.expected_by_chance,
            "beyond_chance": answer.beyond_chance,
        },
    )


def refuse_seen_cells(answer: SeenAnswer, allowed: bool) -> None:
    """
    Refuse test cells that a model was trained on, unless that is allowed.

    Raises
    ------
    ValueError
        If more test cells were seen than chance explains.
    """
    if answer.beyond_chance and not allowed:
        raise ValueError(
            f"`data` must hold test cells that the model was not trained on, got {answer.seen:,} of "
            f"{answer.num_cells:,} that it was ({', '.join(f'{n:,} in {name}' for name, n in answer.seen_in.items())}; "
            f"chance explains {answer.expected_by_chance:.2g}). Use the `split` of the atlas or other data; or set "
            "`allow_seen_test_cells: true`, and the results will tell of it."
        )


def describe_provenance(container: AnnData | MuData) -> str:
    """Say in a line where a file is from, if it tells."""
    facts = container.uns.get("provenance", {})
    return "; ".join(f"{k}: {v}" for k, v in facts.items()) if isinstance(facts, dict) else str(facts)


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Write `results.json`."""
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
