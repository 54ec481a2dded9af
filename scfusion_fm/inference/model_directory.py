"""Load a model directory."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTModel


def vocabulary_of(extractor: ScFusionTTTFeatureExtractor) -> Vocabulary:
    """Give the genes and proteins that a model knows."""
    names = ("gene_ids", "gene_symbols", "gene_chromosomes", "protein_names", "protein_gene_ids")
    return Vocabulary(**{n: getattr(extractor, n) for n in names})


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
