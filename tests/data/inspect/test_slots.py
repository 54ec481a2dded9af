"""What the matrices of a file hold is told from their values."""

import numpy as np
import pytest
import scipy.sparse as sp

from scfusion_fm.data.files.stored import store_matrix
from scfusion_fm.data.inspect.slots import describe_values

COUNTS = np.random.default_rng(0).poisson(3.0, (20, 30)).astype(float)
NORMALISED = COUNTS / COUNTS.sum(1, keepdims=True) * 1e4


@pytest.mark.parametrize(
    ("values", "content"),
    [
        (COUNTS, "counts"),
        (COUNTS.astype(np.uint8), "counts"),
        (NORMALISED, "normalised values: all cells have the same total"),
        (np.log1p(NORMALISED), "log-transformed values: all cells have the same total before the logarithm"),
        (np.log1p(NORMALISED)[:, :20], "probably log-transformed"),
        (COUNTS * 12.3, "fractions up to"),
        (COUNTS - COUNTS.mean(0), "negative numbers in"),
        (np.where(COUNTS == 3, np.nan, COUNTS), "NaN or infinite in"),
        (COUNTS * 1e9, "whole numbers too large for counts"),
        (COUNTS.astype(str), "no numbers"),
        (COUNTS[:0], "nothing"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_slots_are_told_by_what_they_hold(values, content, make):
    if make is not np.asarray and values.dtype.kind == "U":
        pytest.skip("sparse matrices hold numbers")
    found = describe_values(store_matrix(make(values)))
    assert found.startswith(content) or content in found
