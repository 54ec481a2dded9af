"""Load a model directory."""

from pathlib import Path
from typing import TypeVar

import transformers
from transformers import PreTrainedModel

from scfusion_fm.inference.model_files import read_config
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTModel

Model = TypeVar("Model", bound=PreTrainedModel)


def load_pretrained(path: str | Path, model_class: type[Model]) -> tuple[Model, ScFusionTTTFeatureExtractor]:
    """
    Load a model directory with its feature extractor, to use and not to train it.

    Parameters
    ----------
    path
        Directory that an export wrote.
    model_class
        Class to load: that of the directory, with its head, or `ScFusionTTTModel`, which every directory holds.

    Raises
    ------
    ValueError
        If the directory is no model, or one without the head that is needed.
    """
    path = Path(path)
    saved = (read_config(path).get("architectures") or [""])[0]
    if model_class is not ScFusionTTTModel and saved != model_class.__name__:
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
    read_config(path)
    return ScFusionTTTFeatureExtractor.from_pretrained(path)
