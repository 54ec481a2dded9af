"""A model that is ready for use: from a directory, or from the Hugging Face hub."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from scfusion_fm.inference.model_directory import CLASSES, load_pretrained, refuse_class
from scfusion_fm.inference.model_files import WEIGHTS, ModelFiles
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTModel

HUB_FILES = ["*.json", "*.safetensors", "*.npz", "SHA256SUMS", "README.md"]  # no code, and no pickles


@dataclass
class LoadedModel:
    """
    A model with its feature extractor, as `load` gives it.

    Attributes
    ----------
    path
        Its directory.
    model
        The network with its head.
    extractor
        Vocabulary and normaliser.
    """

    path: Path
    model: PreTrainedModel
    extractor: ScFusionTTTFeatureExtractor

    def network(self, model_class: type[PreTrainedModel]) -> PreTrainedModel:
        """
        Give the network of a class: with the head of that class, or without any.

        Raises
        ------
        ValueError
            If the model has another head.
        """
        if model_class is ScFusionTTTModel:
            return self.model.base_model
        if not isinstance(self.model, model_class):
            raise refuse_class(model_class, type(self.model).__name__)
        return self.model

    @cached_property
    def sha256(self) -> str:
        """Checksum of the weights."""
        with (self.path / WEIGHTS).open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        genes, proteins = len(self.extractor.gene_ids), self.extractor.num_proteins
        name = type(self.model).__name__
        return f"{name} ({millions:.1f} M parameters, {genes:,} genes, {proteins:,} proteins) of {self.path}"


def load(model: Any, *, revision: str | None = None) -> LoadedModel:
    """
    Load a model once, to use it several times.

    Parameters
    ----------
    model
        A model directory, or the id of a model on the Hugging Face hub (`group/name`); a loaded model is given back.
    revision
        Branch, tag or commit on the hub.

    Returns
    -------
    What `embed`, `annotate` and their like take as `model`.

    Raises
    ------
    ValueError
        If there is no such model, or it is damaged.

    Notes
    -----
    Weights are read from safetensors and settings from JSON; no code of the model is run.
    """
    if isinstance(model, LoadedModel):
        return model
    path = find_model(model, revision)
    name = ModelFiles.open(path).read_config().architecture
    (model_class,) = (c for c in CLASSES if c.__name__ == name)
    return LoadedModel(path, *load_pretrained(path, model_class))


def find_model(model: str | Path, revision: str | None = None) -> Path:
    """
    Give the directory of a model, which is downloaded if the hub has it.

    Raises
    ------
    ValueError
        If there is none.
    """
    path, text = Path(model).expanduser(), str(model)
    is_id = isinstance(model, str) and text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if path.exists() or not is_id:
        if revision is not None:
            raise ValueError(f"`revision` must be left out where `model` is a directory, got {revision!r}.")
        return path
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:  # of many kinds: no network, no such model, no access
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"`model` must be a directory, or the id of a model on the Hugging Face hub, got {text!r}, which is no "
            f"directory here and cannot be downloaded ({reason})."
        ) from error
