"""Use a model on a file: load both, run the model, embed cells, and add results to what was there."""

import hashlib
import json
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
import transformers
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from scfusion_fm.data.align import align_cells
from scfusion_fm.data.fingerprints import fingerprint_cells
from scfusion_fm.data.prepare import check_new_path
from scfusion_fm.data.readers import read_cells
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.data.seen import SEEN_CELLS, SeenAnswer, SeenCells
from scfusion_fm.data.vocabulary import Vocabulary
from scfusion_fm.model import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTModel,
)

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


def embed(request: Request) -> None:
    """Write cell embeddings to `obsm["X_scfusion_ttt"]`; NaN for cells without counts."""
    key = request.key_added or "X_scfusion_ttt"
    job = Job.start(request, ScFusionTTTModel, [("obsm", key)])
    embedding = job.forward("pooler_output", job.read)
    job.container.obsm[key] = job.rows_of_container(embedding)
    job.finish("embed", {"obsm": key})


def softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Turn logits (n, classes) into probabilities."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def make_inputs(
    aligned: AlignedCells, extractor: ScFusionTTTFeatureExtractor, rows: NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    """Prepare some cells for the model; a modality that the whole file lacks is left out."""
    arguments: dict[str, Any] = {}
    if aligned.rna_observed.any():
        arguments |= {
            "rna_counts": aligned.rna[rows].toarray(),
            "rna_observed": aligned.rna_observed_in(rows),
            "rna_total_counts": aligned.rna_total_counts[rows],
        }
    if aligned.adt_observed.any():
        arguments |= {
            "adt_counts": aligned.adt[rows],
            "adt_observed": aligned.adt_observed_in(rows),
        }
    return dict(extractor(**arguments))


def read_aligned(
    path: Path, extractor: ScFusionTTTFeatureExtractor, modality: str = "auto"
) -> tuple[Cells, AlignedCells]:
    """Read a file and put its counts into the order of a model's vocabulary."""
    cells = read_cells(path, modality=modality)
    return cells, align_cells(cells, vocabulary_of(extractor))


def vocabulary_of(extractor: ScFusionTTTFeatureExtractor) -> Vocabulary:
    """Give the genes and proteins that a model knows."""
    names = ("gene_ids", "gene_symbols", "gene_chromosomes", "protein_names", "protein_gene_ids")
    return Vocabulary(**{n: getattr(extractor, n) for n in names})


def find_seen(model: Path, file: Path, modality: str = "auto") -> SeenAnswer:
    """
    Count the cells of a file that a model was trained on.

    Raises
    ------
    ValueError
        If the directory is no model or carries no fingerprints, or the file is refused.
    """
    extractor = load_extractor(model)
    seen = SeenCells.load(model / SEEN_CELLS)
    _, aligned = read_aligned(file, extractor, modality)
    return seen.look_up(fingerprint_cells(aligned, extractor.gene_ids, extractor.protein_names))


def load_pretrained(
    path: Path, model_class: type[PreTrainedModel], needs_head: bool = True
) -> tuple[PreTrainedModel, ScFusionTTTFeatureExtractor]:
    """
    Load a model directory with its feature extractor.

    Parameters
    ----------
    path
        Directory that an export wrote.
    model_class
        Class to load.
    needs_head
        Whether the directory must hold this very class, heads included; the base model fits every directory.

    Raises
    ------
    ValueError
        If the directory is no model, or one without the head that is needed.
    """
    config = _read_model_config(path)
    saved = (config.get("architectures") or [""])[0]
    if needs_head and model_class is not ScFusionTTTModel and saved != model_class.__name__:
        raise ValueError(
            f"`model` must be a {model_class.__name__} for this command, got a {saved}; fine-tune one with the "
            "scripts in finetune/."
        )
    silence_transformers()
    model = model_class.from_pretrained(path)
    return model.eval(), load_extractor(path)


def silence_transformers() -> None:
    """Keep loading quiet: heads that are not needed are left out on purpose."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_extractor(path: Path) -> ScFusionTTTFeatureExtractor:
    """
    Load the feature extractor of a model directory.

    Raises
    ------
    ValueError
        If the directory is no model.
    """
    _read_model_config(path)
    return ScFusionTTTFeatureExtractor.from_pretrained(path)


def _read_model_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file() or not (path / "preprocessor_config.json").is_file():
        raise ValueError(
            f"`model` must be a directory with config.json and preprocessor_config.json, got {str(path)!r}."
        )
    config = json.loads((path / "config.json").read_text())
    if config.get("model_type") != "scfusion_ttt":
        raise ValueError(f"`model` must be a scfusion_ttt model, got {config.get('model_type')!r} in {str(path)!r}.")
    return config


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
