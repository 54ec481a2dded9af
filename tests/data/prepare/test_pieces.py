"""Pieces of an atlas: small, random, and arrays as numpy saves them."""

from pathlib import Path

import numpy as np
import pytest
from make_atlas import plan_atlas
from make_cells import write_h5mu

from scfusion_fm.config.prepare import PrepareConfig
from scfusion_fm.data.prepare import pieces

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_pieces_are_small_and_random_and_cover_the_source(settings: PrepareConfig, tmp_path: Path):
    job = plan_atlas(settings, tmp_path / "atlas.zarr")
    source = pieces.load_source(job.work, 2)
    chunks = [source.chunks_of(p) for p in range(source.num_pieces)]
    assert sorted(np.concatenate(chunks)) == list(range(source.num_chunks))
    assert max(len(c) for c in chunks) * 8 <= 32
    assert any((np.diff(c) > 1).any() for c in chunks)


@pytest.mark.parametrize("shape", [(3, 4), (0,), (5, 0)])
def test_saved_arrays_are_those_of_numpy(tmp_path: Path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    pieces.save_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_a_full_disk_is_told_as_such():
    with pytest.raises(OSError, match="No space left on device"):
        pieces.save_array(Path("/dev/full"), np.zeros(10))


def test_a_source_that_is_replaced_meanwhile_is_refused(settings, sources, tmp_path):
    job = plan_atlas(settings, tmp_path / "atlas.zarr")
    write_h5mu(tmp_path / "new.h5mu", 110, seed=5).replace(sources[0].path)
    with pytest.raises(ValueError, match="must stay as it is while it is read, got another file than was surveyed"):
        job.write_pieces()
