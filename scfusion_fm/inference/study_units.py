"""The units of a study: mean and deviation of each gene over its own cells, whatever their types."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scfusion_fm.data.files.counts import READ_ROWS
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.notices import warn

if TYPE_CHECKING:
    from scfusion_fm.inference.job import Job

Numbers = TypeVar("Numbers", torch.Tensor, NDArray)
LEAST_CELLS, MOST_CELLS = 50, 20_000  # of a file that units are taken from
LEAST_DEVIATION = 1e-4  # of a gene that varies


@dataclass(frozen=True)
class StudyUnits:
    """
    Mean and deviation of each gene over the cells of a study.

    Attributes
    ----------
    means, deviations
        (N, S) of log-normalised expression; both are 0 for a gene that was not measured, or is the same in all cells.
    """

    means: torch.Tensor
    deviations: torch.Tensor

    @contextmanager
    def hold(self, model: PreTrainedModel) -> Iterator[None]:
        """Let a model read genes in these units for a while: it is used for other studies, too."""
        coordinates = model.study_readout.coordinates
        usual = coordinates.means.clone(), coordinates.deviations.clone()
        model.adapt(self.means, self.deviations)
        try:
            yield
        finally:
            coordinates.means.copy_(usual[0])
            coordinates.deviations.copy_(usual[1])


def measure_units(
    parts: Iterable[tuple[AlignedCells, NDArray[np.int64]]], extractor: ScFusionTTTFeatureExtractor
) -> StudyUnits:
    """
    Find the units of a study from its RNA alone.

    Parameters
    ----------
    parts
        Cells, and which of them are of the study and have RNA; some at a time.
    extractor
        Vocabulary and normaliser.
    """
    total, squares, number = (np.zeros(len(extractor.gene_ids)) for _ in range(3))
    for cells, rows in parts:
        counts = cells.rna[rows]
        scale = extractor.target_sum / np.maximum(cells.rna_total_counts[rows], 1.0)
        values = np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr)))
        total += np.bincount(counts.indices, values, len(total))
        squares += np.bincount(counts.indices, values**2, len(total))
        panels, panel = cells.rna_panels_in(rows)
        number += np.bincount(panel, minlength=len(panels)) @ panels
    means = total / np.maximum(number, 1)
    deviations = np.sqrt(np.maximum(squares / np.maximum(number, 1) - means**2, 0.0))
    varies = deviations >= LEAST_DEVIATION
    told = (np.append(np.where(varies, values, 0.0), 0.0).astype(np.float32) for values in (means, deviations))
    patches = extractor.patch_genes()  # a place without a gene has the last number
    return StudyUnits(*(torch.from_numpy(values[patches]) for values in told))


@contextmanager
def in_study_units(job: "Job") -> Iterator[None]:
    """
    Let a model that reads genes in units of the study read the cells of a job in theirs, from their RNA alone.

    At most about `MOST_CELLS` cells are read for it, evenly over the file. Of fewer than `LEAST_CELLS` the units would
    be noise: the average of the training studies is taken. A model without such units stays as it is.
    """
    if not job.model.config.study_genes:
        yield
        return
    number = int(job.has_rna.sum())
    if number < LEAST_CELLS:
        warn(f"{number} cells are too few to tell how their study differs; they are read as an average one.")
        yield
        return
    units = measure_units(sample_cells(job), job.extractor)
    with units.hold(job.model):
        yield


def sample_cells(job: "Job") -> Iterator[tuple[AlignedCells, NDArray[np.int64]]]:
    """Read at most about `MOST_CELLS` cells of a job, evenly over the file, and which of them have RNA."""
    source = job.source
    step = READ_ROWS * max(1, round(len(source) / MOST_CELLS))
    for start in range(0, len(source), step):
        block = slice(start, min(start + READ_ROWS, len(source)))
        rows = np.flatnonzero(job.has_rna[block])
        if len(rows):
            yield source.read(block.start, block.stop), rows


def average_units(units: list[StudyUnits]) -> StudyUnits:
    """Average the units of studies, each gene over those in which it varies, for cells of which no study is known."""
    varies = torch.stack([unit.deviations > 0 for unit in units])
    means, deviations = (
        average_where(torch.stack([getattr(unit, name) for unit in units]), varies) for name in ("means", "deviations")
    )
    return StudyUnits(means, deviations)


def average_where(values: Numbers, chosen: Numbers) -> Numbers:
    """Average over the first dimension where something is chosen; 0 where nothing is."""
    return (values * chosen).sum(0) / chosen.sum(0).clip(1)
