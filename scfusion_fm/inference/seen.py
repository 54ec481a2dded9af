"""`seen`: how many cells of a file or object a model was trained on."""

from pathlib import Path
from typing import Any

from scfusion_fm.data.files.align import open_aligned
from scfusion_fm.data.files.readers import Given, closing, open_cells
from scfusion_fm.data.fingerprints.cells import fingerprint_file
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, SeenAnswer, SeenCells
from scfusion_fm.data.schema import Modality
from scfusion_fm.inference.model_files import ModelFiles, find_model, read_vocabulary


def seen(adata: Given, model: Any, *, modality: Modality = "auto") -> SeenAnswer:
    """
    Count the cells that a model was trained on. Nothing is written or changed, and the model itself is not loaded.

    Parameters
    ----------
    adata
        AnnData or MuData with raw counts, in memory, backed or lazy; or the path of a file.
    model
        Model directory, name of a model of `list_models`, id on the Hugging Face hub, or what `load` gives.
    modality
        What a single AnnData holds where its names do not tell: `rna` or `adt`.

    Returns
    -------
    What was found. It prints as `scfusion seen` does and shows as a table in a notebook; `seen` is the number, and
    `beyond_chance` tells whether it is more than chance explains.

    Raises
    ------
    ValueError
        If the directory is no model or carries no fingerprints, or the cells are refused.
    """
    path = find_model(getattr(model, "path", model))  # of a loaded model
    vocabulary, remembered = read_vocabulary(path), load_model_seen(path)
    if remembered is None:
        raise ValueError(
            f"`model` must carry the fingerprints of its training cells, got no {SEEN_CELLS} in {str(path)!r}. "
            "Export it again with this version, from an atlas prepared with it."
        )
    with closing():
        return remembered.look_up(fingerprint_file(open_aligned(open_cells(adata, modality), vocabulary)))


def load_model_seen(model: Path) -> SeenCells | None:
    """
    Read what a model directory tells of the cells that were seen in training; None where it does not.

    Raises
    ------
    ValueError
        If it is no model directory, or the file is damaged.
    """
    files = ModelFiles.open(model)
    return SeenCells.load(files.check(SEEN_CELLS)) if files.holds(SEEN_CELLS) else None
