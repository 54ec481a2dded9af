"""Sparse matrices are checked before compiled code sees them: it reads and writes wherever indices point."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.broken import refuse_element

ADVICE = "The file may be damaged: write it again"


def check_pointers(indptr: NDArray, num_rows: int, num_values: int, name: str) -> None:
    """
    Check that index pointers cut the stored values into rows (or columns).

    Raises
    ------
    ValueError
        If they do not.
    """
    if indptr.ndim != 1 or indptr.dtype.kind not in "iu":
        raise refuse_element(name, "have whole numbers as `indptr`", f"{indptr.dtype} {indptr.shape}", ADVICE)
    steps = np.diff(indptr.astype(np.int64))  # of 32 bits might overflow
    whole = len(indptr) == num_rows + 1 and indptr[0] == 0 and (steps >= 0).all()
    if not whole or indptr[-1] != num_values:
        raise refuse_element(
            name,
            f"have an `indptr` that leads from 0 to the {num_values:,} stored values in {num_rows:,} steps",
            f"{len(indptr):,} entries up to {indptr[-1] if len(indptr) else None}, whose indices do not fit",
            ADVICE,
        )


def check_indices(indices: NDArray, num_columns: int, name: str) -> None:
    """
    Check that all indices lie inside the matrix.

    Raises
    ------
    ValueError
        If some do not.
    """
    if indices.dtype.kind not in "iu":
        raise refuse_element(name, "have whole numbers as `indices`", str(indices.dtype), ADVICE)
    if len(indices) and not (indices.min() >= 0 and indices.max() < num_columns):
        raise refuse_element(
            name,
            "be a valid sparse matrix",
            f"one whose indices do not fit: from {indices.min()} to {indices.max()} for {num_columns:,}",
            ADVICE,
        )


def check_sparse(matrix: Any, name: str) -> None:
    """
    Check a matrix of scipy, CSR or CSC.

    Raises
    ------
    ValueError
        If its pointers or indices do not fit.
    """
    rows, columns = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    if matrix.indices.shape != matrix.data.shape or matrix.data.ndim != 1:
        raise refuse_element(name, "have an index for each value", f"{len(matrix.indices):,} indices", ADVICE)
    check_pointers(matrix.indptr, rows, len(matrix.data), name)
    check_indices(matrix.indices, columns, name)


def build_sparse(parts: tuple[NDArray, NDArray, NDArray], shape: tuple[int, int], kind: str, name: str) -> Any:
    """
    Build a matrix of values, indices and index pointers.

    Parameters
    ----------
    parts
        `data`, `indices` and `indptr`.
    shape
        Rows and columns.
    kind
        csr or csc.
    name
        What to call it in errors.

    Raises
    ------
    ValueError
        If they do not fit.
    """
    data, indices, indptr = parts
    rows, columns = shape if kind == "csr" else shape[::-1]
    check_pointers(indptr, rows, len(data), name)
    check_indices(indices, columns, name)
    if indices.dtype.kind == "u" or indices.dtype.itemsize < 4:
        indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
    return (sp.csr_matrix if kind == "csr" else sp.csc_matrix)((data, indices, indptr), shape=shape)
