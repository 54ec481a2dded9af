"""`scfusion seen`: how many cells of a file a model was trained on."""

from pathlib import Path

from scfusion_fm.data.fingerprints.cells import fingerprint_cells
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, SeenAnswer, SeenCells
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor


def find_seen(model: Path, file: Path, modality: str = "auto") -> SeenAnswer:
    """
    Count the cells of a file that a model was trained on.

    Raises
    ------
    ValueError
        If the directory is no model or carries no fingerprints, or the file is refused.
    """
    extractor = load_extractor(model)
    seen = SeenCells.load(model / SEEN_CELLS)
    _, aligned = read_aligned(file, extractor, modality)
    return seen.look_up(fingerprint_cells(aligned, extractor.gene_ids, extractor.protein_names))
