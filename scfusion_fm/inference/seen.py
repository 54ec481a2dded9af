"""`scfusion seen`: how many cells of a file a model was trained on."""

from pathlib import Path

from scfusion_fm.data.files.align import open_aligned
from scfusion_fm.data.files.readers import Given, closing, open_cells
from scfusion_fm.data.fingerprints.cells import fingerprint_file
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, SeenAnswer, SeenCells
from scfusion_fm.data.schema import Modality
from scfusion_fm.inference.model_files import ModelFiles, read_vocabulary


def count_seen(model: Path, file: Given, modality: Modality = "auto") -> SeenAnswer:
    """
    Count the cells of a file that a model was trained on; the model itself is not loaded.

    Raises
    ------
    ValueError
        If the directory is no model or carries no fingerprints, or the file is refused.
    """
    vocabulary = read_vocabulary(model)
    seen = load_model_seen(model)
    if seen is None:
        raise ValueError(
            f"`model` must carry the fingerprints of its training cells, got no {SEEN_CELLS} in {str(model)!r}. "
            "Export it again with this version, from an atlas prepared with it."
        )
    with closing():
        return seen.look_up(fingerprint_file(open_aligned(open_cells(file, modality), vocabulary)))


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
