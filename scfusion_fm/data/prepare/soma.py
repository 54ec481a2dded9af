"""SOMA experiments as sources of an atlas: which data sets, and their cells over a vocabulary."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scfusion_fm.config.prepare import PrepareConfig, SomaConfig, SourceConfig
from scfusion_fm.data.files.match import match_features
from scfusion_fm.data.files.soma import NoCellsError, SomaCells, SomaPlace, list_datasets, open_soma_cells
from scfusion_fm.data.locations import absolute, is_remote
from scfusion_fm.data.prepare.pieces import FileReader
from scfusion_fm.data.schema import DATASET
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

FIRST_ROWS = 256  # of a data set, whose counts are looked at before anything is written
CHUNK_ROWS = 2048  # neighbours that are read together; each reading asks the server


@dataclass
class SomaSource(SourceConfig):
    """One data set of an experiment; `path` is that of the experiment."""

    dataset: str | None = None
    """Its `dataset_id`; null for all cells."""
    obs_filter: str | None = None
    """Which cells."""
    columns: list[str] = field(default_factory=list)
    """Columns of obs that are read."""
    options: dict[str, str] = field(default_factory=dict)
    """Settings of TileDB."""
    may_be_empty: bool = False
    """Whether it is left out where it has no cell that is read."""

    @property
    def place(self) -> SomaPlace:
        """Where the experiment is."""
        return SomaPlace(self.path, tuple(sorted(self.options.items())))


@dataclass(frozen=True)
class SomaReader(FileReader):
    """Read the cells of a data set over a vocabulary; `values_per_cell` is how many counts a cell has, about."""

    values_per_cell: float = 0.0

    @property
    def mean_values(self) -> float:
        """Stored counts per cell."""
        return self.values_per_cell


def list_soma_sources(config: PrepareConfig) -> list[SomaSource]:
    """
    List the data sets of all experiments of a config.

    Raises
    ------
    ValueError
        If an experiment cannot be opened.
    """
    key = config.split.group_key
    columns = [*config.obs_columns, *([key] if key not in (None, DATASET) else [])]
    return [source for soma in config.soma for source in _list_sources(soma, columns)]


def _list_sources(soma: SomaConfig, columns: Sequence[str]) -> list[SomaSource]:
    uri = absolute(soma.uri)
    given = SomaSource(
        uri,
        modality="rna",
        licence=soma.licence,
        obs_filter=soma.obs_filter,
        columns=list(columns),
        options=dict(soma.options),
    )
    chosen = list(soma.datasets) or list_datasets(given.place)
    if not chosen:
        return [dataclasses.replace(given, name=Path(uri.rstrip("/")).stem)]
    optional = not soma.datasets
    return [dataclasses.replace(given, name=d, dataset=d, may_be_empty=optional) for d in chosen]


def survey_soma(source: SomaSource) -> SomaCells | None:
    """
    Find the cells of a data set, and look at the counts of the first; None where it has none and may be left out.

    What is no count would else stop the work when most of it is done; all others are checked when they are read.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    try:
        found = open_soma_cells(source.place, source.dataset, source.obs_filter, source.columns)
    except NoCellsError:
        if source.may_be_empty:
            return None
        raise
    assert found.file.rna is not None
    found.file.rna.read(0, min(FIRST_ROWS, len(found.file.obs)))
    return found


def match_soma(cells: SomaCells, vocabulary: Vocabulary) -> SomaReader:
    """
    Find the genes that a data set measured in the vocabulary.

    Raises
    ------
    ValueError
        As `match_features`.
    """
    alignment = match_features(cells.file, vocabulary)
    assert alignment.rna is not None
    measured = dataclasses.replace(alignment, rna=np.where(cells.measured, alignment.rna, -1))
    return SomaReader(cells.file, measured, values_per_cell=cells.mean_values)


def is_fixed(source: SourceConfig) -> bool:
    """Tell whether what is behind a source cannot be watched for changes: an experiment on a server."""
    return isinstance(source, SomaSource) and is_remote(source.path)
