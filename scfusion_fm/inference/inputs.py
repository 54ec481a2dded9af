"""From a file or an object to cells over the vocabulary of a model."""

import dataclasses

from scfusion_fm.data.files.align import AlignedFile, open_aligned
from scfusion_fm.data.files.counts import CellsFile
from scfusion_fm.data.files.coverage import MIN_COVERAGE, check_panel
from scfusion_fm.data.files.readers import Given, read_cells
from scfusion_fm.data.schema import AlignedCells, Cells, Modality
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.model import ScFusionTTTFeatureExtractor


def read_aligned(
    given: Given,
    extractor: ScFusionTTTFeatureExtractor,
    modality: Modality = "auto",
    batch_key: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> tuple[Cells, AlignedCells]:
    """
    Put the counts of a file, an AnnData or a MuData into the order of a model's vocabulary.

    What measures less than `min_coverage` of what the model knows is refused; see `check_panel`, and `read_cells` and
    `align_cells` for the rest.

    Raises
    ------
    ValueError
        If the file is refused.
    """
    cells = read_cells(given, modality=modality)
    return cells, open_for(cells, extractor, batch_key, min_coverage).read_all()


def open_for(
    cells: Cells | CellsFile,
    extractor: ScFusionTTTFeatureExtractor,
    batch_key: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> AlignedFile:
    """
    Find the features of cells in a model, to read their counts by rows; see `open_aligned`.

    Raises
    ------
    ValueError
        If the file is refused.
    """
    found = open_aligned(cells, vocabulary_of(extractor), batch_key)
    check_panel(found.coverage, cells.path, min_coverage)
    return found


def vocabulary_of(extractor: ScFusionTTTFeatureExtractor) -> Vocabulary:
    """Give the genes and proteins that a model knows."""
    return Vocabulary(**{field.name: getattr(extractor, field.name) for field in dataclasses.fields(Vocabulary)})
