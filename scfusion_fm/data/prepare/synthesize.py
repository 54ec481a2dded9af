"""Write atlases of made-up cells, of any size, for those who size a machine or measure a loader."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.locations import Location, check_new_path
from scfusion_fm.data.prepare.job import AtlasJob
from scfusion_fm.data.prepare.pieces import CountsBlock, PieceSource
from scfusion_fm.data.prepare.sources import Origin, atlas_obs
from scfusion_fm.data.prepare.synthetic import SyntheticSettings, SyntheticSource

OBS_COLUMNS = ("plate", "cell_type")


@dataclass(frozen=True)
class SyntheticReader:
    """
    Make up the cells of one data set when they are read.

    Parameters
    ----------
    source
        All cells.
    first
        Row of the first cell of the data set.
    """

    source: SyntheticSource
    first: int

    @property
    def mean_values(self) -> float:
        """Counts per cell, about."""
        return self.source.density * self.source.vocabulary.num_genes

    def read(self, start: int, stop: int) -> CountsBlock:
        """Make up neighbouring cells."""
        rna, adt = self.source.read(np.arange(self.first + start, self.first + stop))
        return CountsBlock(rna, np.asarray(rna.sum(axis=1, dtype=np.float64)).ravel(), adt)


def synthesize_atlas(
    settings: SyntheticSettings,
    output: Location,
    workers: int = 1,
    report: Callable[[str], None] = print,
) -> dict:
    """
    Write an atlas of made-up cells, as `prepare_atlas` writes one of files.

    Parameters
    ----------
    settings
        Which cells.
    output
        Directory or URL of the new atlas.
    workers
        Processes that write at a time.
    report
        Receives progress lines.

    Returns
    -------
    The manifest.

    Raises
    ------
    ValueError
        If `output` exists, or a setting is out of range.
    """
    check_new_path(output, "output")
    source = SyntheticSource(settings)
    config = PrepareConfig(
        output=output,
        sources=[SourceConfig("made up", name) for name in source.dataset_names],
        obs_columns=list(OBS_COLUMNS),
        split=SplitConfig(0.0, 0.0),  # all cells are for training
        workers=workers,
    )
    job = AtlasJob(config, report=report)
    job.take_up({"synthetic": asdict(settings)}, lambda: _make_sources(source, config))
    job.write_pieces()
    return job.merge()


def _make_sources(source: SyntheticSource, config: PrepareConfig) -> list[tuple[PieceSource, Origin]]:
    obs = source.obs(0, source.n_obs)
    made = []
    for number, name in enumerate(source.dataset_names):
        rows = np.flatnonzero(obs["dataset"] == name)
        dataset = PieceSource(
            name=name,
            reader=SyntheticReader(source, int(rows[0])),
            obs=atlas_obs(config, name, obs.iloc[rows]),
            rna_observed=source.rna_panel[:, number],
            adt_observed=source.adt_panel[:, number],
            vocabulary=source.vocabulary,
            seed=config.seed,
        )
        made.append((dataset, Origin("made up", "", "CC0", "scfusion synthesize")))
    return made
