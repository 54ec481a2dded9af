"""From a file to cells over the vocabulary of a model."""

import dataclasses
from pathlib import Path

from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.coverage import MIN_COVERAGE, check_panel, measure_panel
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.schema import AlignedCells, Cells, Modality
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.model import ScFusionTTTFeatureExtractor


def read_aligned(
    path: str | Path,
    extractor: ScFusionTTTFeatureExtractor,
    modality: Modality = "auto",
    batch_key: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> tuple[Cells, AlignedCells]:
    """
    Read a file and put its counts into the order of a model's vocabulary; see `read_cells` and `align_cells`.

    A file that measures less than `min_coverage` of what the model knows is refused; see `check_panel`.

    Raises
    ------
    ValueError
        If the file is refused.
    """
    cells = read_cells(path, modality=modality)
    aligned = align_cells(cells, vocabulary_of(extractor), batch_key)
    check_panel(measure_panel(cells, aligned), cells.path, min_coverage)
    return cells, aligned


def vocabulary_of(extractor: ScFusionTTTFeatureExtractor) -> Vocabulary:
    """Give the genes and proteins that a model knows."""
    return Vocabulary(**{field.name: getattr(extractor, field.name) for field in dataclasses.fields(Vocabulary)})
