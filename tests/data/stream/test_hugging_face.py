"""The data set of Hugging Face shows what the loader shows: every cell once over all nodes, and exact resumption."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
from datasets.distributed import split_dataset_by_node
from make_atlas import write_atlas
from make_cells import GENES, write_h5mu
from torch.utils.data import DataLoader

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.config.pretrain import LoaderConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.stream.hugging_face import build_iterable_dataset
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder

SEED, NEIGHBOURHOODS = 5, LoaderConfig(block_rows=8, window_blocks=3, lanes=12)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    path = tmp_path_factory.mktemp("hugging_face")
    sources = [SourceConfig(write_h5mu(path / f"{n}.h5mu", n, seed=n), f"cells{n}") for n in (130, 70)]
    write_atlas(PrepareConfig(sources=sources, genes="sources", proteins="sources"), path / "atlas.zarr")
    return Atlas(path / "atlas.zarr")


@pytest.fixture
def dataset(atlas):
    return build_iterable_dataset(atlas, CellOrder(atlas.rows_by_dataset("train"), SEED, NEIGHBOURHOODS), threads=1)


def rows_of(dataset):
    return [example["row"] for example in dataset]


def test_examples_are_the_cells_of_the_atlas(dataset, atlas):
    examples = list(dataset)
    expected = atlas.read(np.array([e["row"] for e in examples])).as_counts()
    for name, values in expected.items():
        assert np.array_equal(np.stack([e[name] for e in examples]), values), name
    assert {e["pass"] for e in examples} == {0}


def test_one_node_follows_the_order_of_the_loader(dataset, atlas):
    order = CellOrder(atlas.rows_by_dataset("train"), SEED, NEIGHBOURHOODS)
    loader, expected = AtlasLoader(atlas, order, 12, 12), []
    while loader.cells_seen + 12 <= len(order):
        expected += [row for cells, _ in loader.next_batch() for row in cells.row]
    loader.close()
    assert rows_of(dataset)[: len(expected)] == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 12, 13])
def test_all_nodes_together_see_every_cell_once(dataset, atlas, world_size):
    """Also where the nodes do not divide the lanes."""
    nodes = [rows_of(split_dataset_by_node(dataset, rank, world_size)) for rank in range(world_size)]
    assert sorted(row for rows in nodes for row in rows) == atlas.rows_of("train").tolist()
    if world_size in (2, 3, 4):
        assert max(map(len, nodes)) - min(map(len, nodes)) <= 12 // world_size


def test_epochs_follow_set_epoch(dataset, atlas):
    first = rows_of(dataset)
    dataset.set_epoch(1)
    second = list(dataset)
    assert {e["pass"] for e in second} == {1}
    assert sorted(e["row"] for e in second) == sorted(first)
    assert [e["row"] for e in second] != first
    dataset.set_epoch(0)
    assert rows_of(dataset) == first


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("stop", [1, 11, 12, 25])
def test_resumption_loses_and_repeats_nothing(dataset, world_size, stop):
    node = split_dataset_by_node(dataset, world_size - 1, world_size)
    whole, seen, iterator = rows_of(node), [], iter(node)
    for _ in range(min(stop, len(rows_of(node)))):
        seen.append(next(iterator)["row"])
    state = node.state_dict()
    iterator.close()
    resumed = split_dataset_by_node(dataset, world_size - 1, world_size)
    resumed.load_state_dict(state)
    assert seen + rows_of(resumed) == whole


def test_loader_of_torch_with_and_without_workers(dataset, atlas):
    for workers in (0, 2):
        found = []
        for batch in DataLoader(dataset, batch_size=16, num_workers=workers):
            assert batch["rna_counts"].shape == (len(batch["row"]), len(GENES))
            found += batch["row"].tolist()
        assert sorted(found) == atlas.rows_of("train").tolist()


def test_state_of_another_node_or_order_is_refused(dataset, atlas):
    first, second = (split_dataset_by_node(dataset, rank, 2) for rank in (0, 1))
    next(iter(first))
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="`state_dict` must be that of node and worker 1 of 2, got that of 0 of 2"):
        next(iter(second))
    other = build_iterable_dataset(
        atlas, CellOrder(atlas.rows_by_dataset("train"), SEED, replace(NEIGHBOURHOODS, lanes=6))
    )
    next(iter(dataset))
    other.load_state_dict(dataset.state_dict())
    with pytest.raises(ValueError, match="`loader` and `seed` must be those that the run started with"):
        next(iter(other))


def test_the_view_can_be_sent_to_spawned_workers(dataset, atlas):
    loader = DataLoader(dataset, batch_size=16, num_workers=1, multiprocessing_context="spawn")
    assert sorted(row for batch in loader for row in batch["row"].tolist()) == atlas.rows_of("train").tolist()
