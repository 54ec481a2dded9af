"""Batches of cells of a file, and a model run over them."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCrossModalPrediction, ScFusionTTTModel

Collate = Callable[[NDArray[np.int64]], dict[str, torch.Tensor]]
Output = TypeVar("Output")


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

    def __call__(self, rows: ArrayLike) -> dict[str, torch.Tensor]:
        """Give the arguments of the model; a modality that the whole file lacks is left out."""
        rows = np.asarray(rows)
        batch = dict(self.extractor.prepare(**self.aligned.as_counts(rows)))
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
    collate: Collate,
    rows: NDArray[np.int64],
    field: str = "logits",
    modalities: tuple[str, ...] = ("rna", "adt"),
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Run a model over rows, shown only the given modalities; a field of its output, row by row."""
    (found,) = predict_fields(model, collate, rows, (field,), modalities, batch_size)
    return found


def predict_fields(
    model: PreTrainedModel,
    collate: Collate,
    rows: NDArray[np.int64],
    fields: tuple[str, ...],
    modalities: tuple[str, ...] = ("rna", "adt"),
    batch_size: int = 64,
    progress: bool = False,
) -> list[NDArray[np.float32]]:
    """
    Run a model over rows once, and give some fields of its output.

    Parameters
    ----------
    model
        A model, on the device on which it shall run.
    collate
        Prepares the rows of a batch; a `CellCollator`, or what adds something to one.
    rows
        (n,) rows of cells.
    fields
        Names in the output of the model, each with one entry per cell.
    modalities
        What the model is shown of the cells.
    batch_size
        Cells per forward pass.
    progress
        Whether to draw a progress bar on a terminal.

    Returns
    -------
    An array for each field, (n, ...).
    """
    model.eval()

    def show(part: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return {name: x for name, x in collate(part).items() if name.split("_")[0] in modalities}

    found: list[list[NDArray[np.float32]]] = [[] for _ in fields]
    forward = partial(model, **leave_out(model, fields))
    for _, output in run_batches(forward, show, rows, model.device, batch_size, progress):
        for batches, field in zip(found, fields, strict=True):
            batches.append(output[field].float().cpu().numpy())
    return [np.concatenate(batches) for batches in found]


def leave_out(model: PreTrainedModel, fields: Collection[str]) -> dict[str, bool]:
    """Give the arguments with which a model calculates nothing that only fields which nobody asked for need."""
    if isinstance(model, ScFusionTTTModel):
        return {"output_tokens": not {"last_hidden_state", "attention_mask"}.isdisjoint(fields)}
    if isinstance(model, ScFusionTTTForCrossModalPrediction):
        return {"output_embedding": "pooler_output" in fields}
    return {}


def run_batches(
    forward: Callable[..., Output],
    collate: Collate,
    rows: NDArray[np.int64],
    device: torch.device,
    batch_size: int = 64,
    progress: bool = False,
) -> Iterator[tuple[NDArray[np.int64], Output]]:
    """Call a model, or what takes its arguments, without gradients; the rows of each batch and what came of them."""
    with tqdm(total=len(rows), unit="cells", disable=None if progress else True) as bar:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            inputs = {name: x.to(device) for name, x in collate(part).items()}
            with torch.inference_mode():
                output = forward(**inputs)
            yield part, output
            bar.update(len(part))


def choose_batch_size(device: torch.device) -> int:
    """Give the number of cells of a forward pass that is about fastest on a device."""
    return 64 if device.type == "cpu" else 512


def choose_device(name: str | None = None) -> torch.device:
    """
    Give the device of this name; CUDA where there is one, and else the processor, when None.

    Raises
    ------
    ValueError
        If torch knows no such device, or it cannot be used here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition(". ")[0]
        raise ValueError(
            f"`device` must be one that this machine has, such as cpu or cuda, got {name!r} ({reason})."
        ) from error
    return device
