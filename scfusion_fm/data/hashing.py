"""Random numbers that are a function of their keys: no state, the same on every machine and version."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash_keys(*keys: ArrayLike) -> NDArray[np.uint64]:
    """
    Hash integer keys that broadcast against each other.

    Notes
    -----
    One round of splitmix64 (Steele, Lea and Flood 2014) per key. NumPy's own generators may change their streams
    between versions, which a run that is resumed months later must not notice.
    """
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _MIX_1
            state = (state ^ (state >> np.uint64(27))) * _MIX_2
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def uniform(*keys: ArrayLike) -> NDArray[np.float64]:
    """Turn integer keys into numbers that are uniform in [0, 1)."""
    return (hash_keys(*keys) >> np.uint64(11)).astype(np.float64) / 2.0**53
