"""The order of cells: once per epoch, and the same for any ranks, batches and interruptions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfusion_fm.data.hashing import hash_keys, uniform
from scfusion_fm.data.loader import ElasticLoader, ElasticOrder


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(1, 300),
    block=st.integers(1, 40),
    window=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_every_row_comes_once_per_epoch(number, block, window, seed, epoch):
    rows = np.arange(number) * 3 + 1
    order = ElasticOrder(rows, seed, block_size=block, window_blocks=window)
    epoch_rows = order.take(np.arange(epoch * number, (epoch + 1) * number))
    assert sorted(epoch_rows) == rows.tolist()


def test_epochs_and_seeds_give_other_orders():
    rows = np.arange(200)
    first, second = (ElasticOrder(rows, 0).take(np.arange(e * 200, (e + 1) * 200)) for e in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, ElasticOrder(rows, 1).take(np.arange(200)))
    assert not np.array_equal(first, rows)


def test_any_part_of_the_stream_can_be_read_alone():
    order = ElasticOrder(np.arange(150), 3, block_size=8, window_blocks=4)
    stream = order.take(np.arange(1000))
    position = np.array([999, 0, 421, 149, 150, 300])
    assert np.array_equal(ElasticOrder(np.arange(150), 3, 8, 4).take(position), stream[position])


def read_steps(world_size, micro, steps, start=0):
    """Collect the cells of each global batch over all ranks."""
    order = ElasticOrder(np.arange(97), 5, block_size=8, window_blocks=3)
    loaders = [ElasticLoader(order, 24, micro, rank, world_size) for rank in range(world_size)]
    batches = []
    for _ in range(start + steps):
        batches.append(np.concatenate([rows for loader in loaders for rows, _ in loader.next_batch()]))
    return batches[start:], loaders[0]


@pytest.mark.parametrize(("world_size", "micro"), [(1, 4), (2, 4), (3, 8), (4, 3), (2, 12)])
def test_global_batches_do_not_depend_on_ranks_or_accumulation(world_size, micro):
    expected, _ = read_steps(1, 24, 12)
    got, _ = read_steps(world_size, micro, 12)
    for a, b in zip(expected, got, strict=True):
        assert sorted(a) == sorted(b)


def test_resuming_with_other_ranks_goes_on_with_the_next_cells():
    whole, _ = read_steps(2, 4, 10)
    _, loader = read_steps(2, 4, 6)
    resumed = ElasticLoader(loader.order, 24, 8, 0, 1)
    resumed.load_state_dict(loader.state_dict())
    for expected in whole[6:]:
        assert sorted(expected) == sorted(np.concatenate([r for r, _ in resumed.next_batch()]))


def test_batches_carry_the_epoch_of_each_cell():
    order = ElasticOrder(np.arange(10), 0)
    loader = ElasticLoader(order, 8, 8, 0, 1)
    epochs = np.concatenate([e for _ in range(3) for _, e in loader.next_batch()])
    assert epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 4


def test_impossible_loaders_are_refused():
    order = ElasticOrder(np.arange(10), 0)
    with pytest.raises(ValueError, match="`global_batch_size` must be a multiple"):
        ElasticLoader(order, 10, 4, 0, 1)
    with pytest.raises(ValueError, match="`global_batch_size` must be a multiple"):
        ElasticLoader(order, 0, 4, 0, 1)
    with pytest.raises(ValueError, match="`rows` must name at least one cell"):
        ElasticOrder(np.array([], dtype=int), 0)


def test_hash_equals_splitmix64():
    """One key k gives the finaliser of splitmix64 applied to k + golden ratio (its published first output)."""
    assert int(hash_keys(1234567)) == 6457827717110365317
    assert int(hash_keys(0)) == 0xE220A8397B1DCDAF


def test_uniform_numbers_are_uniform_and_independent_of_their_neighbours():
    draw = uniform(1, np.arange(2000)[:, None], np.arange(10))
    assert draw.min() >= 0
    assert draw.max() < 1
    assert abs(draw.mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(draw.T) - np.eye(10)).max() < 0.1
    assert np.array_equal(uniform(1, np.arange(5)[:, None], np.arange(3)), draw[:5, :3])
