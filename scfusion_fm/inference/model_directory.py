"""Load a model directory."""

from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import transformers
from transformers import PreTrainedModel

from scfusion_fm.inference.model_config import ConfigFile, ExtractorFile
from scfusion_fm.inference.model_files import CONFIG, WEIGHTS, ModelFiles, find_model
from scfusion_fm.model import (
    ScFusionTTTConfig,
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
)
from scfusion_fm.untrusted.text import show_value
from scfusion_fm.untrusted.weights_file import TensorInfo, read_header

Model = TypeVar("Model", bound=PreTrainedModel)
CLASSES: tuple[type[PreTrainedModel], ...] = (
    ScFusionTTTModel,
    ScFusionTTTForPreTraining,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
)


def load_pretrained(path: str | Path, model_class: type[Model]) -> tuple[Model, ScFusionTTTFeatureExtractor]:
    """
    Load a model directory with its feature extractor, to use and not to train it.

    Parameters
    ----------
    path
        Directory that an export wrote, the name of a model that comes with the package, or an id on the hub.
    model_class
        Class to load: that of the directory, with its head, or `ScFusionTTTModel`, which every directory holds.

    Raises
    ------
    ValueError
        If the directory is no model, is damaged, or is one without the head that is needed.
    """
    files = ModelFiles.open(find_model(path))
    config, extractor = _read_settings(files)
    if model_class is not ScFusionTTTModel and config.architecture != model_class.__name__:
        raise refuse_class(model_class, config.architecture)
    model = load_model(files, config, model_class)
    return model.eval(), _build_extractor(extractor)


def refuse_class(wanted: type[PreTrainedModel], found: str) -> ValueError:
    """Say that a model has another head than is needed."""
    return ValueError(
        f"`model` must be a {wanted.__name__} for this, got a {found}; fine-tune one with the scripts in finetune/."
    )


def load_weights(path: Path, model_class: type[Model], **settings: Any) -> Model:
    """
    Load the weights of a model directory into a class of ours, to train it; what is not there is drawn at random.

    Parameters
    ----------
    path
        Directory that an export wrote.
    model_class
        Any class.
    settings
        Fields of the configuration that replace those of the directory.

    Raises
    ------
    ValueError
        If the directory is no model or is damaged.
    """
    files = ModelFiles.open(path)
    model = load_model(files, _read_settings(files)[0], model_class, **settings)
    # It will learn, so that what else is in the directory will not belong to it.
    model.name_or_path = model.config.name_or_path = ""
    return model


def load_extractor(path: Path) -> ScFusionTTTFeatureExtractor:
    """
    Load the feature extractor of a model directory.

    Raises
    ------
    ValueError
        If the directory is no model or is damaged.
    """
    return _build_extractor(_read_settings(ModelFiles.open(path))[1])


def load_config(path: Path, **settings: Any) -> ScFusionTTTConfig:
    """
    Load the configuration of a model directory, with some fields replaced.

    Raises
    ------
    ValueError
        If the directory is no model or is damaged.
    """
    return build_config(_read_settings(ModelFiles.open(path))[0], **settings)


def load_model(files: ModelFiles, config: ConfigFile, model_class: type[Model], **settings: Any) -> Model:
    """
    Load the weights after their sizes were compared with the configuration; nothing else of the directory is read.

    Raises
    ------
    ValueError
        If the weights do not fit, are damaged or are not finite.

    Notes
    -----
    transformers is given the weights, not the directory, where it would also look for pickles, adapters and code.
    """
    path = files.path / WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"`model` must hold all weights in {WEIGHTS}, got none in {str(files.path)!r}; pickles and several files "
            "are not read. Export it again."
        )
    check_weights(build_config(config), config.architecture, read_header(path), path)
    weights = safetensors.torch.load_file(files.check(WEIGHTS))
    for name, values in weights.items():
        if not values.isfinite().all():
            raise ValueError(f"{str(path)!r} must hold finite weights, got others in `{name}`. Export it again.")
    silence_transformers()
    model = model_class.from_pretrained(None, config=build_config(config, **settings), state_dict=weights)
    model.name_or_path = model.config.name_or_path = str(files.path)
    return model


def build_config(found: ConfigFile, **settings: Any) -> ScFusionTTTConfig:
    """Give the configuration of a file, with some fields replaced."""
    kept = {name: value for name, value in vars(found).items() if name not in ("id2label", "label2id")}
    if found.labels is not None:
        kept["id2label"] = dict(enumerate(found.labels))
    return ScFusionTTTConfig.from_dict(kept, **settings)


def check_weights(config: ScFusionTTTConfig, architecture: str, header: dict[str, TensorInfo], path: Path) -> None:
    """
    Compare the names and shapes of a file of weights with those of the model, before anything is allocated.

    Raises
    ------
    ValueError
        If they differ.
    """
    told = f"{str(path)!r} must hold the weights that {CONFIG} beside it says, got"
    stacks = 2 * (config.num_hidden_layers + config.num_fusion_layers)
    if len(header) < stacks:
        raise ValueError(f"{told} {len(header)} for {stacks} layers. Copy or export the directory again.")
    (model_class,) = (c for c in CLASSES if c.__name__ == architecture)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        expected = {name: list(x.shape) for name, x in model_class(config).state_dict().items()}
    found = {name: info.shape for name, info in header.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{told} {found.get(name, 'none')} for `{show_value(name)[1:-1]}`, which is "
                f"{expected.get(name, 'not of this model')}. Copy or export the directory again."
            )


def silence_transformers() -> None:
    """Keep loading quiet: heads that are not needed are left out on purpose."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _read_settings(files: ModelFiles) -> tuple[ConfigFile, ExtractorFile]:
    config, extractor = files.read_config(), files.read_extractor()
    try:
        config.check_extractor(extractor)
    except ValueError as error:
        raise ValueError(f"{str(files.path / CONFIG)!r}: {error}. Copy or export the directory again.") from error
    return config, extractor


def _build_extractor(found: ExtractorFile) -> ScFusionTTTFeatureExtractor:
    return ScFusionTTTFeatureExtractor(**vars(found))
