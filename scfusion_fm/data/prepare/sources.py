"""What goes into an atlas, and what is known of a source before its counts are read."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import MISSING

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.files.counts import CellsFile
from scfusion_fm.data.files.match import match_features
from scfusion_fm.data.files.readers import open_cells
from scfusion_fm.data.files.soma import SomaCells
from scfusion_fm.data.locations import absolute, checksum, state_of
from scfusion_fm.data.prepare.batches import split_batches, warn_of_batches
from scfusion_fm.data.prepare.pieces import FileReader, PieceSource
from scfusion_fm.data.prepare.soma import CHUNK_ROWS, SomaSource, is_fixed, match_soma, survey_soma
from scfusion_fm.data.prepare.store import PLAIN_COLUMNS
from scfusion_fm.data.schema import DATASET, NO_VALUE, as_text, read_categories
from scfusion_fm.data.split import assign_split
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.notices import ScFusionWarning, warn

ATLAS_COLUMNS = ("_index", DATASET, "split", *PLAIN_COLUMNS)


@dataclass(frozen=True)
class Origin:
    """Say in the manifest where the cells of a data set are from."""

    file: str
    sha256: str
    licence: str
    reference: str


@dataclass(frozen=True)
class Survey:
    """
    Hold what is known of a source when it has been opened and looked through.

    Attributes
    ----------
    file
        The open file.
    sha256
        Checksum of its bytes.
    warnings
        What was warned of.
    soma
        What an experiment says of the data set; None of a file.
    """

    file: CellsFile
    sha256: str
    warnings: list[str]
    soma: SomaCells | None = None


def complete_source(source: SourceConfig) -> SourceConfig:
    """Give a source its full path, since workers may stand elsewhere, and its name."""
    return replace(source, path=absolute(source.path), name=source.name or Path(str(source.path)).stem)


def check_config(config: PrepareConfig, sources: Sequence[SourceConfig]) -> None:
    """
    Check what can be checked without a look at the files.

    Parameters
    ----------
    config
        Settings of the atlas.
    sources
        Its sources, with their names.

    Raises
    ------
    ValueError
        If there is no output or no source, names repeat, a column is not to be had, or the codec is unknown.
    """
    if config.output == MISSING:
        raise ValueError("`output` must name the directory or URL of the new atlas, got nothing.")
    names = [source.name for source in sources]
    if not names:
        raise ValueError("`sources` must name at least one file, got none.")
    if len(set(names)) < len(names):
        raise ValueError(f"`sources` must have different names, got {names}.")
    for column in config.obs_columns:
        if column in ATLAS_COLUMNS or not column or list(config.obs_columns).count(column) > 1:
            raise ValueError(
                f"`obs_columns` must name each column once, and none that every atlas has, got {column!r}. Leave "
                f"it out, or rename the column of the source; every atlas has {', '.join(ATLAS_COLUMNS)}."
            )
    if config.codec not in ("lz4", "zstd"):
        raise ValueError(f"`codec` must be lz4 or zstd, got {config.codec!r}.")


def survey_source(source: SourceConfig) -> Survey | None:
    """
    Open a source, check all its values, and hash its bytes; None of a data set of a Census without cells that are read.

    The counts of an experiment are checked when they are read, and have no bytes of their own.
    """
    if isinstance(source, SomaSource):
        found = survey_soma(source)
        return None if found is None else Survey(found.file, "", [], found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScFusionWarning)
        file = open_cells(source.path, modality=source.modality)
    told = [str(w.message) for w in caught if w.category is ScFusionWarning]
    return Survey(file, checksum(source.path), told)


def describe_file(file: CellsFile) -> str:
    """Say in a few words what a file holds."""
    parts = [f"{len(file.obs)} cells"]
    if file.rna is not None:
        parts.append(f"{len(file.rna.var)} genes")
    if file.adt is not None:
        parts.append(f"{len(file.adt.var)} antibodies")
    return ", ".join(parts)


def check_fits(file: CellsFile, types: dict[str, str]) -> None:
    """
    Refuse counts that an atlas cannot hold before anything is written.

    Raises
    ------
    ValueError
        If a count is too large for the types of the atlas.
    """
    for name, modality in (("rna", file.rna), ("adt", file.adt)):
        limit = np.iinfo(types[name]).max
        if modality is not None and modality.largest > limit:
            raise ValueError(
                f"`--append` must add {name} counts up to {limit:,}, which this atlas holds, got "
                f"{modality.largest:,.0f} in {modality.name}. Prepare the atlas anew with all sources."
            )


def match_source(
    config: PrepareConfig, source: SourceConfig, survey: Survey, vocabulary: Vocabulary
) -> list[tuple[PieceSource, Origin]]:
    """
    Find the features of a source in the vocabulary; give what tasks and the manifest must know of its data sets.

    They are one, or more where batches have panels of their own.
    """
    if survey.soma is not None:
        return [_match_soma(config, source, survey.soma, vocabulary)]
    reader = FileReader(survey.file, match_features(survey.file, vocabulary))
    if source.batch_key is None:
        warn_of_batches(reader, vocabulary)
        readers = {source.name: reader}
    else:
        readers = split_batches(reader, source.batch_key, source.name)
    origin = Origin(Path(source.path).name, survey.sha256, source.licence, source.reference)
    matched = [
        PieceSource(
            name=name,
            reader=part,
            obs=atlas_obs(config, name, part.file.obs),
            rna_observed=part.alignment.rna_observed,
            adt_observed=part.alignment.adt_observed,
            vocabulary=vocabulary,
            seed=config.seed,
            path=source.path,
            state=state_of(source.path),
        )
        for name, part in readers.items()
    ]
    return [(found, origin) for found in matched]


def _match_soma(
    config: PrepareConfig, source: SourceConfig, cells: SomaCells, vocabulary: Vocabulary
) -> tuple[PieceSource, Origin]:
    reader = match_soma(cells, vocabulary)
    found = PieceSource(
        name=source.name,
        reader=reader,
        obs=atlas_obs(config, source.name, cells.file.obs),
        rna_observed=reader.alignment.rna_observed,
        adt_observed=reader.alignment.adt_observed,
        vocabulary=vocabulary,
        seed=config.seed,
        path=None if is_fixed(source) else source.path,
        state=None if is_fixed(source) else state_of(source.path),
        chunk_rows=CHUNK_ROWS,
    )
    return found, Origin(cells.file.path, "", source.licence, cells.reference)


def is_known(source: SourceConfig, known: set[str]) -> bool:
    """Tell whether an atlas has a source, as one data set or as several."""
    return source.name in known or (
        source.batch_key is not None and any(name.startswith(f"{source.name}/") for name in known)
    )


def check_names(datasets: list[tuple[PieceSource, Origin]]) -> list[tuple[PieceSource, Origin]]:
    """
    Check that data sets have different names.

    Raises
    ------
    ValueError
        If a batch of one source is called as another source.
    """
    names = [source.name for source, _ in datasets]
    if len(set(names)) < len(names):
        raise ValueError(f"`sources` and their batches must have different names, got {names}. Rename a source.")
    return datasets


def atlas_obs(config: PrepareConfig, name: str, obs: pd.DataFrame) -> pd.DataFrame:
    """
    Give the columns of obs that go into the atlas, with the split of each cell.

    Raises
    ------
    ValueError
        If the column by whose groups cells are held out is missing.
    """
    key, names = config.split.group_key, obs.index.astype(str)
    groups = None
    if key == DATASET:
        groups = [name] * len(obs)
    elif key is not None:
        if key not in obs:
            raise ValueError(
                f"`split.group_key` must be a column of obs in every source, got {key!r}, which {name} lacks; it has "
                f"{list(obs.columns)}."
            )
        groups = read_categories(obs[key])
    columns = {"split": _assign_split(name, names, config.split, groups)}
    absent = [c for c in config.obs_columns if c not in obs]
    if absent:
        warn(f"{name} has no column {absent} in obs; written as {NO_VALUE!r}.")
    for column in config.obs_columns:
        columns[column] = as_text(obs[column]).to_numpy() if column in obs else NO_VALUE
    return pd.DataFrame(columns, index=name + ":" + names)


def _assign_split(name: str, cells: pd.Index, rule: SplitConfig, groups: Sequence[str | None] | None) -> np.ndarray:
    """Assign cells to parts; those without a group are of no group that could be held out, and trained on."""
    if groups is None:
        return assign_split(cells, rule)
    known = np.array([group is not None for group in groups], dtype=bool)
    if not known.all():
        message = (
            f"{name}: {(~known).sum():,} of {len(cells):,} cells have no {rule.group_key!r} and are trained on; remove "
            "them if they may be of a group that is held out."
        )
        warn(message)
    split = np.full(len(cells), "train", dtype="<U5")
    split[known] = assign_split(cells[known], rule, [group for group in groups if group is not None])
    return split
