"""
Model directories as they come with the package: weights of half the size, and no code, which the package has.

What was fitted in closed form stays in float32; rounding it would be felt. Loaded, all weights are float32 again.
"""

import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
from transformers import PreTrainedModel

from scfusion_fm.data.scratch import Scratch
from scfusion_fm.inference.export import bind_to_weights
from scfusion_fm.inference.loaded import load
from scfusion_fm.inference.model_files import CONFIG, EXTRACTOR, WEIGHTS, ModelFiles, verify_model
from scfusion_fm.inference.shipped import CARD
from scfusion_fm.model.blocks_scfusion_ttt import FixedModule
from scfusion_fm.model.files_scfusion_ttt import (
    CALIBRATIONS,
    EXTRACTOR_CODE,
    MODEL_CODE,
    SEEN_CELLS,
    update_checksums,
)

LARGEST_SHIPPED = 15_000_000
FIGURES = "figures.json"  # scores by study, which its card tells, too


def ship_model(model: Path, output: Path, card: str, figures: bytes | None = None) -> None:
    """
    Write a model directory again as it comes with the package; all of it or nothing.

    Parameters
    ----------
    model
        Directory that an export wrote.
    output
        New directory.
    card
        Its README.
    figures
        Content of `FIGURES`; None for none.

    Raises
    ------
    ValueError
        If the model is damaged, `output` exists, or more than `LARGEST_SHIPPED` bytes would be written.
    """
    files = ModelFiles.open(model)
    verify_model(model)
    with Scratch(output) as scratch:
        path = scratch.path
        path.mkdir()
        safetensors.torch.save_file(round_weights(load(model).model), path / WEIGHTS, {"format": "pt"})
        for name, entries in ((CONFIG, MODEL_CODE), (EXTRACTOR, EXTRACTOR_CODE)):
            settings = json.loads((files.path / name).read_text())
            kept = {key: value for key, value in settings.items() if key not in entries}
            (path / name).write_text(json.dumps(kept, separators=(",", ":")) + "\n")
        if files.holds(SEEN_CELLS):
            shutil.copyfile(files.path / SEEN_CELLS, path / SEEN_CELLS)
        for name in CALIBRATIONS:
            if files.holds(name):
                (path / name).write_bytes(bind_to_weights(name, (files.path / name).read_bytes(), path))
        (path / CARD).write_text(card)
        if figures is not None:
            (path / FIGURES).write_bytes(figures)
        update_checksums(path, ["*"])
        for file in path.iterdir():
            file.chmod(0o644)
        check_size(path)
        scratch.publish()


def round_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Give the weights of a model by name, in bfloat16 but for those that were fitted in closed form."""
    exact = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, FixedModule))
    weights = {name: values.detach().contiguous() for name, values in model.state_dict().items()}
    return {
        name: x if name.startswith(exact) or not x.is_floating_point() else x.bfloat16() for name, x in weights.items()
    }


def check_size(path: Path) -> None:
    """
    Compare the size of a directory with what the package takes.

    Raises
    ------
    ValueError
        If it is larger.
    """
    sizes = {file.name: file.stat().st_size for file in path.iterdir()}
    if sum(sizes.values()) > LARGEST_SHIPPED:
        largest = max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"`model` must have at most {LARGEST_SHIPPED:,} bytes to come with the package, got "
            f"{sum(sizes.values()):,}, {sizes[largest]:,} of them in {largest}. Make a smaller one."
        )
