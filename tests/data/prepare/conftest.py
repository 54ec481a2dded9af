"""Fixtures: three small files, settings for an atlas of them, and pieces, chunks and shards that are small too."""

from pathlib import Path

import pytest
from make_cells import write_h5mu

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.prepare import merge, pieces, store


@pytest.fixture
def small_pieces(monkeypatch):
    """Let a few hundred cells make many pieces, chunks and shards."""
    monkeypatch.setattr(pieces, "SOURCE_CHUNK_ROWS", 8)
    monkeypatch.setattr(pieces, "PIECE_ROWS", 32)
    monkeypatch.setattr(merge, "MIN_CHUNK_VALUES", 16)
    monkeypatch.setattr(merge, "RNA_CHUNK_ROWS", 2)
    monkeypatch.setattr(store, "CHUNKS_PER_SHARD", 8)
    monkeypatch.setattr(store, "ADT_CHUNK_ROWS", 4)
    monkeypatch.setattr(store, "COLUMN_CHUNK", 50)


@pytest.fixture
def sources(tmp_path: Path) -> list[SourceConfig]:
    paths = [write_h5mu(tmp_path / f"{name}.h5mu", 110 + 30 * i, seed=i) for i, name in enumerate("abc")]
    return [SourceConfig(path, path.stem, licence="CC0") for path in paths]


@pytest.fixture
def settings(sources: list[SourceConfig]) -> PrepareConfig:
    return PrepareConfig(sources=sources, obs_columns=["donor", "cell_type"])
