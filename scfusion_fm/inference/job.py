"""A model used on a file: load both, run the model, and write the file again with the results added."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scfusion_fm.data.files.coverage import MIN_COVERAGE, measure_panel
from scfusion_fm.data.files.writers import (
    Added,
    check_added,
    check_writable,
    write_container,
    zarr_format_of,
)
from scfusion_fm.data.schema import AlignedCells, Cells, Modality
from scfusion_fm.data.scratch import check_destination
from scfusion_fm.inference.batches import CellCollator, choose_device, predict_fields
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.notices import warn

PROVENANCE = "scfusion_ttt"


@dataclass(frozen=True)
class FileRequest:
    """
    What a user asks for of any command that uses a model on a file.

    Parameters
    ----------
    model
        Directory of a model.
    input
        File to read.
    output
        New file of the same kind, with the result added.
    key_added
        Name of the added column or matrix; the default of the command when None.
    modality
        What a single AnnData holds: auto, rna or adt.
    batch_size
        Cells per forward pass; does not change the result beyond float rounding.
    device
        Torch device; CUDA where there is one when None.
    batch_key
        Column of obs whose groups may have panels of their own: what has no count in a group is not measured there.
    min_coverage
        Share of the model's genes (proteins where there are none) below which a file is refused.

    Raises
    ------
    ValueError
        If `batch_size` is not positive or `key_added` is empty.
    """

    model: Path
    input: Path
    output: Path
    key_added: str | None = None
    modality: Modality = "auto"
    batch_size: int = 64
    device: str | None = None
    batch_key: str | None = None
    min_coverage: float = MIN_COVERAGE

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"`--batch-size` must be at least 1, got {self.batch_size}.")
        if self.key_added is not None and not self.key_added.strip():
            raise ValueError(f"`--key-added` must be a name, got {self.key_added!r}; leave it out for the default.")


@dataclass
class Job:
    """
    A request on its way: model, cells and the container that will be written.

    Attributes
    ----------
    request
        What was asked.
    model, extractor
        The model, on its device, and its feature extractor.
    cells
        The file as read; its container gets the results.
    aligned
        Its counts in the order of the model's vocabulary.
    added
        Slots and names of what will be added to the container.
    """

    request: FileRequest
    model: PreTrainedModel
    extractor: ScFusionTTTFeatureExtractor
    cells: Cells
    aligned: AlignedCells
    added: Added

    @classmethod
    def start(cls, request: FileRequest, model_class: type[PreTrainedModel], added: Added) -> "Job":
        """
        Load model and cells, and check that the result can be written.

        Parameters
        ----------
        request
            What was asked.
        model_class
            Class of the model.
        added
            Slots and names that will be added.

        Raises
        ------
        ValueError
            If a file or a setting is refused, or the result could not be written.
        """
        check_destination(request.output)
        device = choose_device(request.device)
        model, extractor = load_pretrained(request.model, model_class)
        cells, aligned = read_aligned(
            request.input, extractor, request.modality, request.batch_key, request.min_coverage
        )
        print("; ".join(found.describe() for found in measure_panel(cells, aligned)), file=sys.stderr)
        assert cells.container is not None
        check_added(cells.container, added)
        check_writable(cells.container, request.output)
        if not isinstance(cells.container.uns.get(PROVENANCE, {}), Mapping):
            raise ValueError(
                f"`uns[{PROVENANCE!r}]` must be a table of earlier results, got something else. Rename it."
            )
        return cls(request, model.to(device), extractor, cells, aligned, added)

    @property
    def container(self) -> ad.AnnData | md.MuData:
        """What is written in the end."""
        return self.cells.container

    @property
    def has_counts(self) -> NDArray[np.bool_]:
        """(n,) which cells have counts of any modality."""
        return self.aligned.rna_present | self.aligned.adt_present

    def forward(
        self, fields: tuple[str, ...], readable: NDArray[np.bool_], modalities: tuple[str, ...] = ("rna", "adt")
    ) -> list[NDArray[np.float32]]:
        """
        Run the model over readable cells and give some fields of its output, (n, ...) each; NaN for the other cells.

        Raises
        ------
        ValueError
            If no cell is readable, or the model gives no finite numbers.
        """
        rows = np.flatnonzero(readable)
        if len(rows) == 0:
            raise ValueError(f"`input` must hold cells that the model can read, got none in {self.request.input}.")
        if len(rows) < len(readable):
            warn(
                f"{len(readable) - len(rows)} of {len(readable)} cells have no usable counts; their results are NaN.",
            )
        collator = CellCollator(self.aligned, self.extractor)
        found = predict_fields(self.model, collator, rows, fields, modalities, self.request.batch_size, progress=True)
        bad = sum(int((~np.isfinite(values)).reshape(len(rows), -1).any(1).sum()) for values in found)
        if bad:
            raise ValueError(
                f"`model` must give finite numbers, got others for {bad} of {len(rows)} cells: its weights or settings "
                f"in {str(self.request.model)!r} are none that were trained. Export it again."
            )
        results = [np.full((len(readable), *values.shape[1:]), np.nan, dtype=np.float32) for values in found]
        for result, values in zip(results, found, strict=True):
            result[rows] = values
        return results

    def rows_of_container(self, values: NDArray) -> NDArray:
        """Put results into the order of the cells of the container."""
        return values[self.cells.obs.index.get_indexer(self.container.obs_names)]

    def finish(self, command: str, facts: dict[str, Any]) -> None:
        """Record where the results are from, and write the container, all of it or nothing."""
        with (self.request.model / "model.safetensors").open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
        record = facts | {
            "model": str(self.request.model),
            "model_sha256": digest,
            "input": str(self.request.input),
            "panel_coverage": {found.noun: found.share for found in measure_panel(self.cells, self.aligned)},
            "scfusion_fm": version("scfusion-fm"),
        }
        self.container.uns[PROVENANCE] = {**self.container.uns.get(PROVENANCE, {}), command: record}
        write_container(self.container, self.request.output, self.added, zarr_format_of(self.request.input))
        print(f"wrote {self.request.output}")
