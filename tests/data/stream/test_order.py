"""The order of cells: every row once per pass, the same for any way of asking, mixed as well as drawing at random."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfusion_fm.config.pretrain import LoaderConfig
from scfusion_fm.data.stream.order import CellOrder, rank_slots


def take(order, position):
    """Give (row, pass) at positions of the stream."""
    position = np.asarray(position)
    rows, passes = np.empty_like(position), np.empty_like(position)
    epoch, window, inside = order.locate(position)
    for e, w in set(zip(epoch.tolist(), window.tolist(), strict=True)):
        here = (epoch == e) & (window == w)
        found = order.window(e, w)
        rows[here], passes[here] = (values[inside[here]] for values in found)
    return rows, passes


def take_epoch(order, epoch):
    return take(order, np.arange(epoch * len(order), (epoch + 1) * len(order)))


def split_rows(sizes):
    """Rows 3i + 1 of data sets of these sizes."""
    rows = np.arange(sum(sizes)) * 3 + 1
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    return {f"d{i}": part for i, part in enumerate(parts)}


layouts = {
    "sizes": st.lists(st.integers(0, 120), min_size=1, max_size=4).filter(sum),
    "block_rows": st.integers(1, 40),
    "window_blocks": st.integers(1, 6),
    "lanes": st.integers(1, 12),
    "seed": st.integers(0, 2**32),
}


@settings(max_examples=60, deadline=None)
@given(**layouts, epoch=st.integers(0, 5))
def test_every_row_comes_once_per_epoch(sizes, block_rows, window_blocks, lanes, seed, epoch):
    order = CellOrder(split_rows(sizes), seed, LoaderConfig(block_rows, window_blocks, lanes))
    rows, passes = take_epoch(order, epoch)
    assert sorted(rows) == (np.arange(sum(sizes)) * 3 + 1).tolist()
    assert (passes == epoch).all()


@settings(max_examples=40, deadline=None)
@given(**layouts, weight=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0]))
def test_weights_repeat_or_thin_out_a_data_set(sizes, block_rows, window_blocks, lanes, seed, weight):
    rows = split_rows([*sizes, 8])
    order = CellOrder(rows, seed, LoaderConfig(block_rows, window_blocks, lanes, weights={"d0": weight}))
    shown = round(weight * len(rows["d0"]))
    assert len(order) == sum(len(r) for r in rows.values()) - len(rows["d0"]) + shown
    stream = [take_epoch(order, e) for e in range(5)]
    for drawn, _ in stream:
        assert np.isin(drawn, rows["d0"]).sum() == shown
    drawn, passes = (np.concatenate(x) for x in zip(*stream, strict=True))
    mine = np.isin(drawn, rows["d0"])
    whole = 5 * shown // max(len(rows["d0"]), 1)
    for number in range(whole):
        assert sorted(drawn[mine & (passes == number)]) == sorted(rows["d0"])
    assert passes[mine].max(initial=0) <= whole


def test_half_a_weight_shows_every_cell_once_in_two_epochs():
    order = CellOrder({"a": np.arange(100), "b": np.arange(100, 130)}, 0, LoaderConfig(8, 2, 4, weights={"a": 0.5}))
    drawn = np.concatenate([take_epoch(order, e)[0] for e in range(2)])
    assert sorted(drawn[drawn < 100]) == list(range(100))
    assert sorted(drawn[drawn >= 100]) == sorted([*range(100, 130)] * 2)


def test_epochs_and_seeds_give_other_orders():
    rows = {"a": np.arange(200)}
    first, second = (take_epoch(CellOrder(rows, 0, LoaderConfig(8)), e)[0] for e in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, take_epoch(CellOrder(rows, 1, LoaderConfig(8)), 0)[0])
    assert not np.array_equal(first, rows["a"])


def test_any_part_of_the_stream_can_be_read_alone():
    def order():
        return CellOrder({"a": np.arange(100), "b": np.arange(100, 150)}, 3, LoaderConfig(8, 4, 6))

    stream, passes = take(order(), np.arange(1000))
    position = np.array([999, 0, 421, 149, 150, 300])
    rows, alone = take(order(), position)
    assert np.array_equal(rows, stream[position])
    assert np.array_equal(alone, passes[position])


@pytest.mark.parametrize("batch", [24, 60])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_the_slots_of_a_batch(batch, world_size):
    slots = [rank_slots(batch, 12, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(slots)) == list(range(batch))
    assert {len(s) for s in slots} == {batch // world_size}
    if batch % 12 == 0:
        lanes = [set(s % 12) for s in slots]
        assert sum(len(x) for x in lanes) == 12, "each lane belongs to one rank"


def test_a_rank_needs_few_windows_at_a_time():
    order = CellOrder({"a": np.arange(20_000)}, 0, LoaderConfig(16, 4, 16))
    slots = rank_slots(64, 16, 1, 4)
    for step in (0, 100, 311, 313, 400):
        epoch, window, _ = order.locate(step * 64 + slots)
        assert len(set(zip(epoch, window, strict=True))) <= 2 * 4


def entropy(labels):
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return -(share * np.log(share)).sum()


@pytest.fixture(scope="module")
def natural_atlas():
    """Labels of 24 data sets that stand in their natural order: sorted by plate, and by cell type inside a plate."""
    rng = np.random.default_rng(0)
    sizes = rng.dirichlet(np.full(24, 3.0)) * 100_000 + 500
    dataset = np.repeat(np.arange(24), sizes.astype(int))
    plate = np.sort(dataset * 4 + rng.integers(4, size=len(dataset)))
    mixture = rng.dirichlet(np.full(40, 0.15), 96)
    kind = np.concatenate([np.sort(rng.choice(40, n, p=mixture[i])) for i, n in enumerate(np.bincount(plate))])
    return dataset, kind


@pytest.mark.parametrize("batch", [512, 1024])
def test_batches_are_mixed_like_independent_draws(natural_atlas, batch):
    """With the settings that a user gets by default, on the hardest order of rows."""
    dataset = natural_atlas[0]
    rows = np.arange(len(dataset))
    order = CellOrder({str(d): rows[dataset == d] for d in range(24)}, 0, LoaderConfig())
    drawn, _ = take_epoch(order, 0)
    random = np.random.default_rng(1).permutation(rows)
    starts = range(0, len(rows) - batch, batch)
    for labels in natural_atlas:
        ours, independent = (np.mean([entropy(labels[x[s : s + batch]]) for s in starts]) for x in (drawn, random))
        assert ours > 0.97 * independent


def test_impossible_orders_are_refused():
    rows = {"a": np.arange(10)}
    with pytest.raises(ValueError, match="`rows` must name at least one cell"):
        CellOrder({"a": np.array([], dtype=int)}, 0, LoaderConfig())
    with pytest.raises(ValueError, match="`rows` must name at least one cell"):
        CellOrder(rows, 0, LoaderConfig(weights={"a": 0.0}))
    with pytest.raises(ValueError, match=r"`weights` must name data sets of the atlas, got \['b'\]; it has \['a'\]"):
        CellOrder(rows, 0, LoaderConfig(weights={"b": 1.0}))
    for bad in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="`weights` must be finite and at least 0"):
            CellOrder(rows, 0, LoaderConfig(weights={"a": bad}))
