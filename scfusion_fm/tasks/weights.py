"""Where the weights of a model come from that will be fine-tuned."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from scfusion_fm.inference.model_directory import load_config, load_weights
from scfusion_fm.tasks.settings import FitSettings


@dataclass(frozen=True)
class Weights:
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.from_scratch:
                return model_class(load_config(self.path, **settings))
            return load_weights(self.path, model_class, **settings)
