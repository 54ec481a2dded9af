"""Hashes: the published numbers, and no pattern."""

import numpy as np

from scfusion_fm.data.hashing import hash_keys, uniform


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
