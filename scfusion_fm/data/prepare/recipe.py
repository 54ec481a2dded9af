"""What goes into an atlas, and what is known of a source before its counts are read."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from scfusion_fm.data.files.modalities import CellsFile
from scfusion_fm.data.files.readers import open_cells
from scfusion_fm.data.locations import Location, absolute, checksum
from scfusion_fm.data.prepare.store import PLAIN_COLUMNS
from scfusion_fm.data.split import assign_split

RESERVED = ("_index", "dataset", "split", *PLAIN_COLUMNS)
DATASET = "dataset"  # the column that every atlas has, and a group by which whole data sets are held out


@dataclass
class Source:
    """A file that becomes a data set of an atlas; see `scfusion_fm.config.prepare.SourceConfig`."""

    path: Location
    name: str
    modality: str = "auto"
    licence: str = "unknown"
    reference: str = ""

    def __post_init__(self):
        self.path = absolute(self.path)  # workers may stand elsewhere


@dataclass
class SplitRule:
    """How cells are held out; see `scfusion_fm.config.split.SplitConfig`."""

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    group_key: str | None = None


@dataclass
class AtlasRecipe:
    """What goes into an atlas and how; see `scfusion_fm.config.prepare.PrepareConfig`."""

    sources: Sequence[Source]
    genes: str = "protein_coding"
    proteins: str = "all"
    obs_columns: Sequence[str] = ()
    split: SplitRule = field(default_factory=SplitRule)
    seed: int = 0
    codec: str = "lz4"

    def check(self) -> None:
        """
        Check what can be checked without a look at the files.

        Raises
        ------
        ValueError
            If there are no sources, names repeat, a column is not to be had, or the codec is unknown.
        """
        names = [s.name for s in self.sources]
        if not names:
            raise ValueError("`sources` must name at least one file, got none.")
        if len(set(names)) < len(names):
            raise ValueError(f"`sources` must have different names, got {names}.")
        for column in self.obs_columns:
            if column in RESERVED or not column or list(self.obs_columns).count(column) > 1:
                raise ValueError(
                    f"`obs_columns` must name each column once, and none that every atlas has, got {column!r}. Leave "
                    f"it out, or rename the column of the source; every atlas has {', '.join(RESERVED)}."
                )
        if self.codec not in ("lz4", "zstd"):
            raise ValueError(f"`codec` must be lz4 or zstd, got {self.codec!r}.")


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
    """

    file: CellsFile
    sha256: str
    warnings: list[str]


def survey_source(source: Source) -> Survey:
    """Open a source, check all its values, and hash its bytes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        file = open_cells(source.path, modality=source.modality)
    told = [str(w.message) for w in caught if w.category is UserWarning]
    return Survey(file, checksum(source.path), told)


def describe(file: CellsFile) -> str:
    """Say in a few words what a file holds."""
    parts = [f"{len(file.obs)} cells"]
    if file.rna is not None:
        parts.append(f"{len(file.rna.var)} genes")
    if file.adt is not None:
        parts.append(f"{len(file.adt.var)} antibodies")
    return ", ".join(parts)


def atlas_obs(recipe: AtlasRecipe, name: str, obs: pd.DataFrame) -> pd.DataFrame:
    """
    Give the columns of obs that go into the atlas, with the split of each cell.

    Raises
    ------
    ValueError
        If the column by whose groups cells are held out is missing.
    """
    rule, names = recipe.split, obs.index.astype(str)
    groups = None
    if rule.group_key == DATASET:
        groups = [name] * len(obs)
    elif rule.group_key is not None:
        if rule.group_key not in obs:
            raise ValueError(
                f"`split.group_key` must be a column of obs in every source, got {rule.group_key!r}, which "
                f"{name} lacks; it has {list(obs.columns)}."
            )
        groups = obs[rule.group_key].astype(str).to_numpy()
        missing = int(obs[rule.group_key].isna().sum())
        if missing:
            message = f"{name}: {missing:,} cells have no {rule.group_key!r} and are held out, or not, together."
            warnings.warn(message, UserWarning, stacklevel=2)
    split = assign_split(names, rule.val_fraction, rule.test_fraction, rule.seed, groups)
    columns = {"split": split}
    absent = [c for c in recipe.obs_columns if c not in obs]
    if absent:
        warnings.warn(f"{name} has no column {absent} in obs; written as 'nan'.", UserWarning, stacklevel=2)
    for column in recipe.obs_columns:
        columns[column] = obs[column].astype(str).to_numpy() if column in obs else "nan"
    return pd.DataFrame(columns, index=name + ":" + names)
