"""The loader deals the same cells for any ranks, threads, stops and resumptions, and never lets training wait long."""

import json
import signal
import subprocess
import sys
import threading
import time
from hashlib import blake2b
from pathlib import Path

import anndata as ad
import fsspec
import numpy as np
import pytest
import zarr

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.config.pretrain import LoaderConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.prepare.store import consolidate
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder

sys.path += [str(folder) for folder in Path(__file__).parents[1:3]]  # a process of its own imports this file
from make_atlas import write_atlas
from make_cells import write_h5mu

BATCH = 24
SETTINGS = {"seed": 5, "block_rows": 8, "window_blocks": 3, "lanes": 12}


def make_order(atlas, **changes):
    """Order the training cells by the settings of these tests, or changed ones."""
    settings = SETTINGS | changes
    return CellOrder(atlas.rows_by_dataset("train"), settings.pop("seed"), LoaderConfig(**settings))


@pytest.fixture(scope="module")
def atlas_path(tmp_path_factory):
    """Two data sets, 500 cells."""
    path = tmp_path_factory.mktemp("loader")
    sources = [SourceConfig(write_h5mu(path / f"{n}.h5mu", n, seed=n), f"cells{n}") for n in (300, 200)]
    write_atlas(PrepareConfig(sources=sources, genes="sources", proteins="sources"), path / "atlas.zarr")
    return path / "atlas.zarr"


@pytest.fixture(scope="module")
def atlas(atlas_path):
    return Atlas(atlas_path)


@pytest.fixture
def make_loader(atlas):
    """Make loaders that are closed after the test."""
    made = []

    def make(batch=BATCH, micro=2, rank=0, world_size=1, threads=1, collate=None, **settings):
        order = make_order(atlas, **settings)
        made.append(AtlasLoader(atlas, order, batch, micro, rank, world_size, threads, collate))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def digest_cells(rows, passes):
    """Hash everything that is delivered of each cell."""
    parts = [rows.row, *rows.as_counts().values(), passes]
    return [blake2b(b"".join(part[i].tobytes() for part in parts), digest_size=8).digest() for i in range(len(passes))]


def next_digests(loaders):
    """Digests of the next global batch, in the order of ranks and micro-batches."""
    return [d for loader in loaders for batch in loader.next_batch() for d in digest_cells(*batch)]


def test_batches_hold_the_cells_of_the_store(make_loader, atlas, atlas_path):
    adata = ad.read_zarr(atlas_path)
    for rows, _ in make_loader(micro=12).next_batch():
        assert np.array_equal(rows.rna, adata.X[rows.row].toarray())
        assert np.array_equal(rows.adt, adata.obsm["adt"][rows.row])
        assert (rows.rna.dtype, rows.adt.dtype) == (np.float32, np.float32)
        expected = atlas.read(rows.row)
        assert digest_cells(rows, rows.row) == digest_cells(expected, rows.row)


def test_every_training_cell_comes_once_per_epoch(make_loader, atlas):
    loader, rows, passes = make_loader(micro=24), [], []
    while loader.cells_seen < 3 * len(loader.order):
        for batch, number in loader.next_batch():
            rows.append(batch.row)
            passes.append(number)
    rows, passes = np.concatenate(rows), np.concatenate(passes)
    for epoch in range(3):
        inside = rows[passes == epoch]
        assert len(set(inside)) == len(inside)
    assert sorted(rows[passes == 1]) == atlas.rows_of("train").tolist()


def test_world_sizes_threads_and_stops_change_nothing(make_loader):
    """Ranks 1, 2, 3, 4 and back, 1 to 3 threads, stops at random steps: every step has the same cells, in order."""
    whole = make_loader()
    expected = [next_digests([whole]) for _ in range(60)]  # more than three epochs
    rng, step = np.random.default_rng(0), 0
    state = make_loader().state_dict()
    for world_size in (1, 2, 3, 4, 3, 2, 1):
        threads = int(rng.integers(1, 4))
        loaders = [make_loader(rank=r, world_size=world_size, threads=threads) for r in range(world_size)]
        for loader in loaders:
            loader.load_state_dict(json.loads(json.dumps(state)))
        for _ in range(rng.integers(3, 10)):
            assert next_digests(loaders) == expected[step]
            step += 1
        assert len({json.dumps(loader.state_dict()) for loader in loaders}) == 1
        state = loaders[0].state_dict()
    assert step > 2 * len(whole.order) / BATCH


def collate(rows, passes):
    """Note what came, and in which thread."""
    return {"digests": digest_cells(rows, np.broadcast_to(passes, rows.row.shape)), "thread": threading.get_ident()}


def test_cells_are_collated_ahead_by_threads_whatever_the_ranks_and_stops(make_loader):
    whole, state = make_loader(), make_loader().state_dict()
    for world_size, threads in ((1, 2), (3, 1), (2, 3)):
        loaders = [
            make_loader(rank=r, world_size=world_size, threads=threads, collate=collate) for r in range(world_size)
        ]
        for loader in loaders:
            loader.load_state_dict(state)
        for _ in range(12):
            made = [cells for loader in loaders for cells, _ in loader.next_batch()]
            assert [d for cells in made for d in cells.inputs["digests"]] == next_digests([whole])
            assert threading.get_ident() not in {cells.inputs["thread"] for cells in made}
        next(loaders[0].next_batch())  # a batch that is not read to its end, and two that were made ahead
        state = whole.state_dict()
    told = [make_loader(collate=c).describe()["mebibytes"] for c in (None, collate)]
    assert told[0] <= told[1]


def test_held_out_cells_are_collated_with_the_pass_that_is_asked_for(make_loader, atlas):
    rows = atlas.rows_of("val")[:5]
    found = list(make_loader(collate=collate).deal_rows(rows, -1))
    expected = digest_cells(atlas.read(rows), np.full(len(rows), -1))
    assert [d for cells, _ in found for d in cells.inputs["digests"]][: len(rows)] == expected
    assert np.concatenate([cells.row[counts] for cells, counts in found]).tolist() == rows.tolist()


def test_an_error_of_the_collator_reaches_the_caller(make_loader):
    def fail(rows, passes):
        raise ValueError("of the collator")

    with pytest.raises(ValueError, match="of the collator"):
        next(make_loader(collate=fail).next_batch())


def test_accumulation_cuts_the_same_batch(make_loader):
    expected = next_digests([make_loader(micro=24)])
    assert next_digests([make_loader(micro=3)]) == expected


@pytest.mark.parametrize("lanes", [5, 64, 1000])
def test_lanes_need_not_fit_the_batch_or_the_ranks(make_loader, lanes):
    expected = make_loader(lanes=lanes)
    ranks = [make_loader(lanes=lanes, rank=r, world_size=3) for r in range(3)]
    for _ in range(20):
        assert next_digests(ranks) == next_digests([expected])


def test_another_batch_size_goes_on_with_the_next_cell(make_loader):
    first, other = make_loader(micro=24), make_loader(batch=10, micro=10)
    seen = [rows.row for _ in range(4) for rows, _ in first.next_batch()]
    other.load_state_dict(first.state_dict())
    while other.cells_seen + 10 <= len(other.order):
        seen += [rows.row for rows, _ in other.next_batch()]
    seen = np.concatenate(seen)
    assert len(set(seen)) == len(seen) > len(other.order) - 10


def test_state_counts_what_was_handed_out_not_what_was_read_ahead(make_loader):
    loader = make_loader()
    assert loader.state_dict()["cells_seen"] == 0
    list(loader.next_batch())
    assert loader.state_dict()["cells_seen"] == BATCH
    next(iter(loader.next_batch()))  # the rest of the batch is left out
    expected = make_loader()
    expected.load_state_dict(loader.state_dict())
    assert next_digests([loader]) == next_digests([expected])


def test_state_of_another_atlas_or_order_is_refused(make_loader):
    loader = make_loader()
    state = loader.state_dict()
    with pytest.raises(ValueError, match="`atlas` must be the one that the run started with"):
        loader.load_state_dict(state | {"atlas": "0" * 64})
    for setting in ({"block_rows": 9}, {"seed": 6}, {"weights": {"cells300": 0.5}}):
        name = next(iter(setting))
        with pytest.raises(ValueError, match=f"`loader` and `seed` must be those .* got {{'{name}'"):
            make_loader(**setting).load_state_dict(state)


def test_impossible_loaders_are_refused(make_loader):
    for batch, micro, world_size in ((10, 4, 1), (0, 4, 1), (24, 0, 1), (24, 8, 2)):
        with pytest.raises(ValueError, match="`global_batch_size` must be a multiple"):
            make_loader(batch=batch, micro=micro, world_size=world_size)
    with pytest.raises(ValueError, match="`threads` must be at least 1, got 0"):
        make_loader(threads=0)


def test_memory_stays_below_what_is_reported(make_loader, atlas):
    for world_size in (1, 4):
        loader = make_loader(micro=6, rank=world_size - 1, world_size=world_size)
        told = loader.describe()
        assert told["lanes"] == SETTINGS["lanes"] // world_size
        rows = 3 * told["lanes"] * told["window_rows"]
        for _ in range(40):
            next_digests([loader])
            held = [window.cells.result() for window in loader._windows.values()]
            assert sum(len(cells.size) for cells in held) <= rows
            assert sum(cells.nbytes for cells in held) <= rows * atlas.sparse_bytes_per_cell(SETTINGS["block_rows"])
    assert make_loader(lanes=5).describe()["lanes"] == 5


def test_reading_overlaps_with_training(make_loader):
    loader = make_loader(micro=24)
    list(loader.next_batch())
    waited, start = loader.stall_seconds, time.monotonic()
    for _ in range(10):
        list(loader.next_batch())
        time.sleep(0.1)
    assert loader.stall_seconds - waited < 0.05 * (time.monotonic() - start)


def test_errors_of_threads_reach_the_caller(atlas_path, tmp_path):
    zarr_copy = tmp_path / "atlas.zarr"
    subprocess.run(["cp", "-r", atlas_path, zarr_copy], check=True)
    (zarr_copy / "X/data/c/0").unlink()
    atlas = Atlas(zarr_copy)
    loader = AtlasLoader(atlas, make_order(atlas), 8, 8)
    with loader, pytest.raises(ValueError, match="of `X/data` is missing"):
        next(loader.next_batch())


def test_an_error_of_its_user_leaves_no_threads(atlas):
    before = set(threading.enumerate())
    loader = AtlasLoader(atlas, make_order(atlas), 8, 8)

    def train():
        with loader:
            next(loader.next_batch())
            assert set(threading.enumerate()) > before
            raise RuntimeError("of the loop")

    with pytest.raises(RuntimeError, match="of the loop"):
        train()
    assert set(threading.enumerate()) == before


def test_rows_beyond_the_manifest_are_not_read(atlas_path, tmp_path):
    """An append that was interrupted leaves longer arrays behind."""
    longer = tmp_path / "atlas.zarr"
    subprocess.run(["cp", "-r", atlas_path, longer], check=True)
    group = zarr.open_group(longer, mode="a", use_consolidated=False)
    end = int(group["X/indptr"][-1])
    group["X/indptr"].append(np.array([end + 3]))
    group["X/data"].append(np.ones(3, np.uint16))
    group["X/indices"].append(np.zeros(3, np.uint16))
    group["obsm/adt"].append(np.ones((1, group["obsm/adt"].shape[1]), group["obsm/adt"].dtype))
    for name in ("rna_present", "adt_present", "rna_total_counts", "split/codes", "dataset/codes"):
        group[f"obs/{name}"].append(group[f"obs/{name}"][:1])
    consolidate(longer)
    atlas, sound = Atlas(longer), Atlas(atlas_path)
    assert len(atlas) == len(sound)
    rows = np.arange(len(sound))
    assert digest_cells(atlas.read(rows), rows) == digest_cells(sound.read(rows), rows)
    assert np.array_equal(atlas.rows_of("train"), sound.rows_of("train"))


def test_atlas_in_an_object_store_gives_the_same_batches(atlas_path, make_loader):
    fsspec.filesystem("memory").put(str(atlas_path), "/loader-atlas", recursive=True)
    atlas = Atlas("memory://loader-atlas")
    local = make_loader()
    with AtlasLoader(atlas, make_order(atlas), BATCH, 2) as remote:
        for _ in range(5):
            assert next_digests([remote]) == next_digests([local])


@pytest.mark.parametrize("number", [0, 1, 7, 12, 13])
def test_rows_are_dealt_once_and_as_many_to_each_rank(atlas, make_loader, number):
    rows = atlas.rows_of("val")[:number]
    dealt = [list(make_loader(batch=12, rank=rank, world_size=3).deal_rows(rows)) for rank in range(3)]
    assert len({len(batches) for batches in dealt}) == 1
    assert all(len(cells.row) == len(counts) == 2 for batches in dealt for cells, counts in batches)
    counted = [cells.row[counts] for batches in dealt for cells, counts in batches]
    assert sorted(np.concatenate([*counted, np.array([], int)])) == rows.tolist()


def test_killed_process_resumes_with_the_next_batch(atlas_path, make_loader, tmp_path):
    """SIGKILL in the middle of reading: what the last saved state says is what comes next."""
    script = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_loader import BATCH, Atlas, AtlasLoader, make_order, next_digests
atlas, state = Atlas(sys.argv[1]), Path(sys.argv[2])
loader = AtlasLoader(atlas, make_order(atlas), BATCH, 2, threads=3)
if state.exists():
    loader.load_state_dict(json.loads(state.read_text()))
while True:
    print(loader.cells_seen // BATCH, b"".join(next_digests([loader])).hex(), flush=True)
    state.with_suffix(".new").write_text(json.dumps(loader.state_dict()))
    os.replace(state.with_suffix(".new"), state)
"""
    whole = make_loader()
    expected = [b"".join(next_digests([whole])).hex() for _ in range(60)]
    command = [sys.executable, "-c", script, atlas_path, tmp_path / "state.json", Path(__file__).parent]
    last = -1
    for lines in (7, 30):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(lines):
            step, digest = process.stdout.readline().split()
            assert digest == expected[int(step)]
            assert int(step) in (last, last + 1), "at most the batch after the last saved state comes again"
            last = int(step)
        process.send_signal(signal.SIGKILL)
        for line in process.communicate()[0].splitlines():
            if len(line.split()) == 2 and line.split()[1] in expected:
                last = int(line.split()[0])
    assert last >= 35
