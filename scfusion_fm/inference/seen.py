"""`scfusion seen`: how many cells of a file a model was trained on."""

from pathlib import Path

from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import closing, load_cells, open_cells
from scfusion_fm.data.fingerprints.cells import fingerprint_cells
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, SeenAnswer, SeenCells
from scfusion_fm.data.schema import Modality
from scfusion_fm.inference.model_files import read_vocabulary


def count_seen(model: Path, file: Path, modality: Modality = "auto") -> SeenAnswer:
    """
    Count the cells of a file that a model was trained on; the model itself is not loaded.

    Raises
    ------
    ValueError
        If the directory is no model or carries no fingerprints, or the file is refused.
    """
    vocabulary = read_vocabulary(model)
    seen = SeenCells.load(model / SEEN_CELLS)
    with closing():
        aligned = align_cells(load_cells(open_cells(file, modality)), vocabulary)
    return seen.look_up(fingerprint_cells(aligned, vocabulary.gene_ids, vocabulary.protein_names))
