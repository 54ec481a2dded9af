"""A model that is ready for use: from a directory, or from the Hugging Face hub."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from scfusion_fm.inference.model_directory import CLASSES, load_pretrained, refuse_class
from scfusion_fm.inference.model_files import WEIGHTS, ModelFiles, find_model
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTModel


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
        A model directory, the name of a model that comes with the package (`scfusion models` lists them), or the id of
        a model on the Hugging Face hub (`group/name`); a loaded model is given back.
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
