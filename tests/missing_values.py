"""Columns of every type whose second of three cells has no value; the first and third have different ones."""

import numpy as np
import pandas as pd

WITHOUT_VALUE = {
    "object, None": pd.Series(["a", None, "b"], dtype=object),
    "object, NaN": pd.Series(["a", np.nan, "b"], dtype=object),
    "object, NA": pd.Series(["a", pd.NA, "b"], dtype=object),
    "category": pd.Series(["a", None, "b"], dtype="category"),
    "category of numbers": pd.Series([1, None, 2], dtype="category"),
    "string": pd.Series(["a", None, "b"], dtype="string"),
    "float": pd.Series([1.0, np.nan, 2.0]),
    "Int64": pd.Series([1, None, 2], dtype="Int64"),
    "boolean": pd.Series([True, None, False], dtype="boolean"),
    "time": pd.Series([pd.Timestamp("2020-01-01"), pd.NaT, pd.Timestamp("2021-01-01")]),
    **{f"text {text!r}": pd.Series(["a", text, "b"], dtype=object) for text in ("", " ", "nan", "None", "<NA>", "NaT")},
}
