"""Use a model on a file: load both, run the model, embed cells, and add results to what was there."""

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from scfusion_fm.data.locations import check_new_path
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.inference.inputs import make_inputs, read_aligned
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.model import ScFusionTTTFeatureExtractor

PROVENANCE = "scfusion_ttt"


@dataclass(frozen=True)
class Request:
    """
    What a user asks for.

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
    """

    model: Path
    input: Path
    output: Path
    key_added: str | None = None
    modality: str = "auto"
    batch_size: int = 64
    device: str | None = None


@dataclass
class Job:
    """
    A request on its way: model, cells and the container that will be written.

    Attributes
    ----------
    request
        What was asked.
    model, extractor
        The model and its feature extractor.
    cells
        The file as read; its container gets the results.
    aligned
        Its counts in the order of the model's vocabulary.
    """

    request: Request
    model: PreTrainedModel
    extractor: ScFusionTTTFeatureExtractor
    cells: Cells
    aligned: AlignedCells

    @classmethod
    def start(cls, request: Request, model_class: type[PreTrainedModel], keys: list[tuple[str, str]]) -> "Job":
        """
        Load model and cells.

        Parameters
        ----------
        request
            What was asked.
        model_class
            Class of the model.
        keys
            Slots and names that will be added.

        Raises
        ------
        ValueError
            If a file or a setting is refused, or a name is taken.
        """
        check_new_path(request.output, "output")
        if request.batch_size < 1:
            raise ValueError(f"`--batch-size` must be at least 1, got {request.batch_size}.")
        model, extractor = load_pretrained(request.model, model_class)
        job = cls(request, model, extractor, *read_aligned(request.input, extractor, request.modality))
        _check_suffix(job.container, request.output)
        for slot, key in keys:
            if key in getattr(job.container, slot):
                raise ValueError(
                    f"`{slot}[{key!r}]` is already in {str(request.input)!r} and would be lost; "
                    "choose another name with --key-added."
                )
        return job

    @property
    def container(self) -> ad.AnnData | md.MuData:
        """What is written in the end."""
        return self.cells.container

    @property
    def read(self) -> NDArray[np.bool_]:
        """Which cells have counts at all."""
        return self.aligned.rna_present | self.aligned.adt_present

    def forward(self, field: str, readable: NDArray[np.bool_], source_only: bool = False) -> NDArray[np.float32]:
        """Run the model over readable cells; NaN rows for the others."""
        return self.forward_fields((field,), readable, source_only)[0]

    def forward_fields(
        self, fields: tuple[str, ...], readable: NDArray[np.bool_], source_only: bool = False
    ) -> list[NDArray[np.float32]]:
        """Run the model over readable cells and give some fields of its output; NaN rows for the others."""
        rows = np.flatnonzero(readable)
        if len(rows) == 0:
            raise ValueError(f"`input` must hold cells that the model can read, got none in {self.request.input}.")
        if len(rows) < len(readable):
            warnings.warn(
                f"{len(readable) - len(rows)} of {len(readable)} cells have no usable counts; their results are NaN.",
                stacklevel=3,
            )
        model = self.model.to(self.device)
        results: list[NDArray[np.float32]] = []
        for part in self.parts(rows):
            inputs = make_inputs(self.aligned, self.extractor, part)
            if source_only:
                inputs = {k: v for k, v in inputs.items() if k.startswith("rna_")}
            with torch.inference_mode():
                output = model(**{k: v.to(self.device) for k, v in inputs.items()})
            found = [output[field].float().cpu().numpy() for field in fields]
            results = results or [np.full((len(readable), x.shape[1]), np.nan, dtype=np.float32) for x in found]
            for result, values in zip(results, found, strict=True):
                result[part] = values
        return results

    @property
    def device(self) -> str:
        """Torch device."""
        return self.request.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def parts(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Cut rows into batches, with a progress bar."""
        size = self.request.batch_size
        with tqdm(total=len(rows), unit="cells", disable=None) as bar:
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                yield part
                bar.update(len(part))

    def rows_of_container(self, values: NDArray) -> NDArray:
        """Put results into the order of the cells of the container."""
        return values[self.cells.obs.index.get_indexer(self.container.obs_names)]

    def finish(self, command: str, facts: dict[str, Any]) -> None:
        """Record the provenance and write the container, all of it or nothing."""
        record = facts | {
            "model": str(self.request.model),
            "model_sha256": hashlib.sha256((self.request.model / "model.safetensors").read_bytes()).hexdigest(),
            "input": str(self.request.input),
            "scfusion_fm": version("scfusion-fm"),
        }
        self.container.uns[PROVENANCE] = {**self.container.uns.get(PROVENANCE, {}), command: record}
        write_container(self.container, self.request.output)
        print(f"wrote {self.request.output}")


def write_container(container: ad.AnnData | md.MuData, output: Path) -> None:
    """Write an AnnData or MuData to a path that does not exist; all of it or nothing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        target = scratch / output.name
        with md.set_options(pull_on_update=False):  # the columns of a MuData are the user's business
            write = container.write_zarr if output.suffix == ".zarr" else container.write
            write(target)
        check_new_path(output, "output")
        target.rename(output)
    finally:
        shutil.rmtree(scratch)


def _check_suffix(container: ad.AnnData | md.MuData, output: Path) -> None:
    allowed = (".h5mu", ".zarr") if isinstance(container, md.MuData) else (".h5ad", ".zarr")
    if output.suffix not in allowed:
        raise ValueError(f"`output` must end in {' or '.join(allowed)} for this input, got {output.name!r}.")
