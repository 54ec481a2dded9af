"""Raw counts are finite, non-negative, whole numbers, what is none is named; and what is missing becomes text."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from missing_values import WITHOUT_VALUE

from scfusion_fm.data.schema import as_text, check_counts, read_categories


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"\(finite numbers\), got nan \(1 such entries\)"),
        (np.inf, r"\(finite numbers\), got inf"),
        (-3, r"\(non-negative counts\), got -3"),
        (0.25, r"\(whole numbers\), got 0.25"),
        (2.0**25, r"\(counts up to 16,777,216\), got 33554432"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_what_is_no_count_is_named(value, message, make):
    matrix = np.ones((3, 2), dtype=np.float64)
    check_counts(make(matrix), "counts")
    matrix[1, 1] = value
    with pytest.raises(ValueError, match=f"`counts` must hold raw counts {message}"):
        check_counts(make(matrix), "counts")


def test_text_is_no_count():
    with pytest.raises(ValueError, match="`X` must hold numbers, got dtype object"):
        check_counts(np.array([["a"]], dtype=object), "X")


def test_whole_numbers_of_any_type_are_counts():
    for dtype in (bool, np.uint8, np.int32, np.float64):
        check_counts(np.ones((2, 2), dtype=dtype), "X")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("kind", [object, "category", "string"])
def test_missing_values_become_text(kind, missing):
    text = as_text(pd.Series(["a", missing, "None"], dtype=kind))
    assert text.tolist() == ["a", "nan", "None"]


def test_numbers_and_truths_become_text():
    assert as_text(pd.Series([1, 20])).tolist() == ["1", "20"]
    assert as_text(pd.Series([1.5, np.nan])).tolist() == ["1.5", "nan"]
    assert as_text(pd.Series([True, False])).tolist() == ["True", "False"]
    assert as_text(pd.Series([b"a", [1], np.inf], dtype=object)).tolist() == ["a", "[1]", "inf"]


def test_a_batch_is_called_the_same_whether_another_cell_lacks_one_or_not():
    for values, kind in (([1, 2, 2], "int64"), ([1, 2, None], "float64"), ([1, 2, None], "Int64")):
        column = pd.Series(values, dtype=kind)
        assert read_categories(column)[:2].tolist() == read_categories(column.astype("category"))[:2].tolist()
        assert read_categories(column)[:2].tolist() == ["1", "2"]


@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_what_is_missing_is_no_category(missing):
    column = WITHOUT_VALUE[missing]
    known, none = read_categories(column)[[0, 2]], read_categories(column)[1]
    assert none is None
    assert all(isinstance(value, str) for value in known)
