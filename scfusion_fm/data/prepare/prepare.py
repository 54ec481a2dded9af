"""`sf.prepare`: an atlas of files, for those who write Python."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from scfusion_fm.config.loading import build_config, load_config
from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.locations import Location
from scfusion_fm.data.prepare.job import prepare_atlas

Source = Location | SourceConfig


def prepare(
    sources: Source | Sequence[Source] | PrepareConfig,
    output: Location | None = None,
    *,
    batch_key: str | None = None,
    append: bool = False,
    **settings: Any,
) -> Atlas:
    """
    Write an atlas from files, as `scfusion prepare` does; the same call goes on with one that was interrupted.

    Parameters
    ----------
    sources
        Files (.h5ad, .h5mu, 10x .h5, zarr) or URLs, each a path or a `SourceConfig` that names it and its modality;
        or all settings, as a `PrepareConfig` or a YAML file.
    output
        Directory or URL of the atlas; it must not exist, but with `append`.
    batch_key
        Column of obs of all sources whose batches may have panels of their own, see `SourceConfig`.
    append
        Add the sources that an existing atlas lacks, instead of writing a new one.
    **settings
        Fields of `PrepareConfig`, such as `genes="sources"`, `obs_columns=["cell_type"]`, `workers=8` or
        `split={"group_key": "donor"}`; they replace those of a config.

    Returns
    -------
    The atlas, open.

    Raises
    ------
    ValueError
        If a setting or a file is refused, or `output` exists (or does not, with `append`).
    """
    given = _as_dict(sources)
    if output is not None:
        given["output"] = str(output)
    if given.get("output", MISSING) == MISSING:
        raise ValueError("`output` must name the directory or URL of the new atlas, got nothing.")
    if batch_key is not None:
        given["sources"] = [source | {"batch_key": batch_key} for source in given["sources"]]
    config = build_config(PrepareConfig, given | settings, "the arguments")
    prepare_atlas(config, append)
    return Atlas(config.output)


def _as_dict(sources: Source | Sequence[Source] | PrepareConfig) -> dict[str, Any]:
    """Give all settings as a YAML file has them."""
    if isinstance(sources, str | Path) and Path(sources).suffix in (".yaml", ".yml"):
        sources = load_config(PrepareConfig, sources)
    if isinstance(sources, PrepareConfig):
        given = asdict(sources)
        return given | {"output": str(sources.output), "sources": [_describe(source) for source in sources.sources]}
    if isinstance(sources, str | Path | SourceConfig):
        sources = [sources]
    if not isinstance(sources, Sequence):
        raise ValueError(
            f"`sources` must be paths of files, a YAML file or a PrepareConfig, got {type(sources).__name__}. Write "
            "what is in memory to a file first."
        )
    return {"sources": [_describe(source) for source in sources]}


def _describe(source: Source) -> dict[str, Any]:
    if isinstance(source, SourceConfig):
        return asdict(source) | {"path": str(source.path)}
    if not isinstance(source, str | Path):
        raise ValueError(
            f"`sources` must hold paths or SourceConfig, got {type(source).__name__}. Write what is in memory to a "
            "file first."
        )
    return {"path": str(source)}
