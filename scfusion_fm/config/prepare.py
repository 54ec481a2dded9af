"""Settings of `scfusion prepare`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from scfusion_fm.config.ranges import SEED, check_ranges
from scfusion_fm.config.split import SplitConfig


@dataclass
class SourceConfig:
    """One file that goes into an atlas."""

    path: str = MISSING
    """An .h5ad, .h5mu, 10x .h5 or zarr store with raw counts; a path, or a URL such as s3://bucket/cells.h5ad."""
    name: str | None = None
    """Name of the data set; the stem of the file by default."""
    modality: str = "auto"
    """What a single AnnData holds: auto, rna or adt."""
    batch_key: str | None = None
    """Column of obs whose batches may have panels of their own. A batch without a count of features that should have
    some becomes a data set of its own, NAME/BATCH, that does not measure them. Null: zeros are zeros, with a warning.
    """
    licence: str = "unknown"
    """Licence of the data, copied into the manifest."""
    reference: str = ""
    """Where the data come from, copied into the manifest."""


@dataclass
class SomaConfig:
    """Cells of a CELLxGENE Census, or of another SOMA experiment: RNA alone. Needs the package extra `census`."""

    uri: str = MISSING
    """A Census (`.../soma`), of which the human experiment is read, or one experiment: a path or a URL."""
    datasets: list[str] = field(default_factory=list)
    """Values of `dataset_id`, each of which becomes a data set of the atlas. Empty: all of a Census that have cells
    which are read, or the whole experiment as one."""
    obs_filter: str | None = None
    """Which cells, as TileDB writes it, such as "is_primary_data == True and tissue_general == 'blood'". Null: those
    with `is_primary_data` where obs has that column, so that no cell of a Census comes twice."""
    options: dict[str, str] = field(default_factory=dict)
    """Settings of TileDB, such as `vfs.s3.region`."""
    licence: str = "unknown"
    """Licence of the data, copied into the manifest."""


@dataclass
class PrepareConfig:
    """`scfusion prepare`: files to atlas."""

    output: str = MISSING
    """Directory or URL of the new atlas; must not exist."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Files to read."""
    genes: str = "protein_coding"
    """Gene vocabulary: protein_coding (all human ones) or sources (what the files measured)."""
    proteins: str = "all"
    """Protein vocabulary: all known ones or sources."""
    obs_columns: list[str] = field(default_factory=list)
    """Columns of obs to carry into the atlas where a source has them."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Cells held out of pretraining."""
    seed: int = 0
    """Seed of the order of rows in the store."""
    codec: str = "lz4"
    """Compression: lz4, or zstd, which takes about a quarter less space and decodes 1.7 times slower."""
    workers: int = 1
    """Processes that read and write at a time."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers see the same files; null works on this machine."""
    work_dir: str | None = None
    """Directory of unfinished work; by default a hidden one beside the output."""
    soma: list[SomaConfig] = field(default_factory=list)
    """Cells of SOMA experiments to read beside the files."""

    def __post_init__(self):
        check_ranges(self, {"seed": SEED, "workers": "[1, 1024]"})
