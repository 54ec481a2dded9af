"""What the plain files of a model directory tell: nothing here needs torch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from scfusion_fm.data.vocabulary.vocabulary import Vocabulary


def read_config(model: Path) -> dict[str, Any]:
    """
    Read config.json of a model directory.

    Raises
    ------
    ValueError
        If the directory is none of ours.
    """
    if not (model / "config.json").is_file() or not (model / "preprocessor_config.json").is_file():
        raise ValueError(
            f"`model` must be a directory with config.json and preprocessor_config.json, got {str(model)!r}."
        )
    config = json.loads((model / "config.json").read_text())
    if config.get("model_type") != "scfusion_ttt":
        raise ValueError(f"`model` must be a scfusion_ttt model, got {config.get('model_type')!r} in {str(model)!r}.")
    return config


def read_vocabulary(model: Path) -> Vocabulary:
    """
    Read the genes and proteins that a model knows.

    Raises
    ------
    ValueError
        If the directory is no model or does not tell them.
    """
    read_config(model)
    settings = json.loads((model / "preprocessor_config.json").read_text())
    names = [field.name for field in dataclasses.fields(Vocabulary)]
    missing = [name for name in names if name not in settings]
    if missing:
        raise ValueError(
            f"`model` must tell its vocabulary in preprocessor_config.json, got none of {missing} in {str(model)!r}; "
            "export it again."
        )
    return Vocabulary(**{name: settings[name] for name in names})
