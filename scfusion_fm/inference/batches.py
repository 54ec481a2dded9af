"""Batches of cells of a file, and a model run over them."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCrossModalPrediction, ScFusionTTTModel
from scfusion_fm.model.sparse_scfusion_ttt import SparsePatches

Collate = Callable[[NDArray[np.int64]], Mapping[str, torch.Tensor | SparsePatches]]
Output = TypeVar("Output")
MOST_CELLS = {"cpu": (64, 2**24), "gpu": (512, 2**30)}  # of a batch, and bytes of its largest intermediate result
LEAST_CELLS = 8
MOST_WORKERS = 8  # batches side by side; with more, Python is in the way


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
    modalities
        What of the cells is shown.
    """

    def __init__(
        self,
        aligned: AlignedCells,
        extractor: ScFusionTTTFeatureExtractor,
        labels: NDArray[np.int64] | None = None,
        modalities: tuple[str, ...] = ("rna", "adt"),
    ):
        self.aligned = aligned
        self.extractor = extractor
        self.labels = labels
        self.modalities = modalities

    def __call__(self, rows: ArrayLike) -> dict[str, torch.Tensor]:
        """Give the arguments of the model; a modality that the whole file lacks is left out."""
        rows = np.asarray(rows)
        batch = dict(self.extractor.prepare(**self.aligned.as_counts(rows)))
        batch = {k: v for k, v in batch.items() if k.split("_")[0] in self.modalities}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def sparse(self, rows: ArrayLike) -> dict[str, torch.Tensor | SparsePatches]:
        """Give the same for a model that is only used: no labels, and RNA sparse."""
        rows, aligned = np.asarray(rows), self.aligned
        batch: dict[str, torch.Tensor | SparsePatches] = {}
        if aligned.rna_observed.any() and "rna" in self.modalities:
            panels = aligned.rna_panels_in(rows)
            counts = self.extractor.prepare_sparse(aligned.rna[rows], *panels, aligned.rna_total_counts[rows])
            batch["rna_values"] = counts
        if aligned.adt_observed.any() and "adt" in self.modalities:
            observed = aligned.adt_observed_in(rows)
            batch |= self.extractor.prepare(adt_counts=aligned.adt[rows], adt_observed=observed)
        return batch


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

    Returns
    -------
    An array for each field, (n, ...).
    """
    model.eval()
    show = show_modalities(collate, modalities)
    found: list[list[NDArray[np.float32]]] = [[] for _ in fields]
    forward = partial(model, **leave_out(model, fields))
    for _, output in run_batches(forward, show, rows, model.device, batch_size):
        for batches, field in zip(found, fields, strict=True):
            batches.append(output[field].float().cpu().numpy())
    return [np.concatenate(batches) for batches in found]


def show_modalities(collate: Collate, modalities: tuple[str, ...]) -> Collate:
    """Give what prepares the same cells and shows only the given modalities of them."""
    read = collate.sparse if type(collate) is CellCollator else collate

    def show(part: NDArray[np.int64]) -> dict[str, torch.Tensor | SparsePatches]:
        return {name: x for name, x in read(part).items() if name.split("_")[0] in modalities}

    return show


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
) -> Iterator[tuple[NDArray[np.int64], Output]]:
    """
    Call a model, or what takes its arguments, without gradients; the rows of each batch and what came of them.

    On a processor, as many batches are prepared and calculated side by side as torch has threads, each by one thread:
    what comes out does not depend on their number. `forward` and `collate` are called from these threads.
    """

    def run(part: NDArray[np.int64]) -> Output:
        inputs = {name: x.to(device) for name, x in collate(part).items()}
        with torch.inference_mode():
            return forward(**inputs)

    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    workers = min(torch.get_num_threads(), MOST_WORKERS, len(parts)) if device.type == "cpu" else 1
    yield from zip(parts, _map_in_order(run, parts, workers), strict=True)


def _map_in_order(run: Callable[[NDArray[np.int64]], Output], parts: list, workers: int) -> Iterator[Output]:
    """Give what comes of each part, in order; a few are worked on ahead, by threads that share those of torch."""
    if workers <= 1:
        yield from map(run, parts)
        return
    threads, waiting = torch.get_num_threads(), deque[Future[Output]]()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        for part in parts:
            waiting.append(pool.submit(run, part))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread sets for itself is what later threads start with


def choose_batch_size(model: PreTrainedModel, num_tokens: int) -> int:
    """
    Give the number of cells of a forward pass that is about fastest.

    With more, the largest intermediate result leaves the cache of a processor; of a GPU, it would fill the memory.

    Parameters
    ----------
    model
        On its device.
    num_tokens
        Tokens that it reads of a cell, at most.
    """
    most, room = MOST_CELLS["cpu" if model.device.type == "cpu" else "gpu"]
    config = model.config
    width = max(3 * config.hidden_size, config.intermediate_size)
    return min(max(room // (4 * width * max(num_tokens, 1)) // LEAST_CELLS * LEAST_CELLS, LEAST_CELLS), most)


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
