"""From a file to what the model reads."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.schema import AlignedCells, Cells
from scfusion_fm.inference.model_directory import vocabulary_of
from scfusion_fm.model import ScFusionTTTFeatureExtractor


def softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Turn logits (n, classes) into probabilities."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def make_inputs(
    aligned: AlignedCells, extractor: ScFusionTTTFeatureExtractor, rows: NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    """Prepare some cells for the model; a modality that the whole file lacks is left out."""
    return dict(extractor(**aligned.as_counts(rows)))


def read_aligned(
    path: Path, extractor: ScFusionTTTFeatureExtractor, modality: str = "auto"
) -> tuple[Cells, AlignedCells]:
    """Read a file and put its counts into the order of a model's vocabulary."""
    cells = read_cells(path, modality=modality)
    return cells, align_cells(cells, vocabulary_of(extractor))
