"""Elements of a file of the present AnnData format, in HDF5 or zarr: checked, then read.

What was not asked for and is broken does not stop a run: it is left out and named.
"""

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scfusion_fm.data.files.arrays import Array, FileArray, Group, keys_of, member, text_of
from scfusion_fm.data.files.broken import explain_element, naming, refuse_element
from scfusion_fm.data.files.sizes import Budget, arrays_of, declared_bytes
from scfusion_fm.data.files.sparse import build_sparse, check_pointers
from scfusion_fm.data.files.stored import StoredCsr, StoredDense, StoredMatrix
from scfusion_fm.notices import warn

SPARSE = ("csr_matrix", "csc_matrix")
NUM_NAMED = 5
Shape = tuple[int | None, ...]


class ElementReader:
    """
    Read elements of one file.

    Attributes
    ----------
    location
        Path or URL of the file.
    budget
        Memory that what is read may take.
    lost
        What was left out, by name, and why.
    """

    def __init__(self, location: str):
        self.location = location
        self.budget = Budget(location)
        self.lost: dict[str, str] = {}
        self._frames: dict[str, pd.DataFrame] = {}

    def name(self, slot: str) -> str:
        """Name an element as errors do."""
        return f"{self.location}, {slot}"

    def read_or_lose(self, slot: str, read: Callable[[], Any]) -> Any:
        """Read an element that nothing depends on; None if it is broken, which is noted."""
        try:
            return read()
        except Exception as error:  # the libraries raise OSError, KeyError, RuntimeError and more on broken elements
            self.lost[slot] = str(explain_element(self.name(slot), error))
            return None

    def warn_lost(self) -> None:
        """Say what was left out."""
        if not self.lost:
            return
        slots, reasons = list(self.lost), list(self.lost.values())
        more = f" and {len(slots) - NUM_NAMED} more" if len(slots) > NUM_NAMED else ""
        warn(
            f"{self.location}: left out, because it is broken: {', '.join(slots[:NUM_NAMED])}{more}. {reasons[0]}",
        )
        self.lost.clear()

    def read_frame(self, group: Any, slot: str, is_strict: bool) -> pd.DataFrame:
        """
        Read a table.

        Parameters
        ----------
        group
            The table in the file.
        slot
            Its place.
        is_strict
            Whether a broken column is refused; else it is left out.

        Raises
        ------
        ValueError
            If the table, its index or, where strict, a column is broken.
        """
        if slot not in self._frames:
            with naming(self.name(slot)):
                self._frames[slot] = self._read_frame(group, slot, is_strict)
        return self._frames[slot]

    def _read_frame(self, group: Any, slot: str, is_strict: bool) -> pd.DataFrame:
        if not isinstance(group, Group) or text_of(group.attrs.get("encoding-version", "")) != "0.2.0":
            return self._read_old_frame(group, slot)
        key = text_of(group.attrs["_index"])
        index = self._read_column(group, key, slot, None)
        if index is None or np.ndim(index) != 1:
            raise refuse_element(self.name(slot), "have names of rows", f"{type(index).__name__}")
        columns = {}
        for column in map(text_of, group.attrs["column-order"]):
            if is_strict:
                columns[column] = self._read_column(group, column, slot, len(index))
                continue
            found = self.read_or_lose(
                f'{slot}["{column}"]', lambda c=column: self._read_column(group, c, slot, len(index))
            )
            if found is not None:
                columns[column] = found
        frame = pd.DataFrame(columns, index=index, columns=list(columns) or None)
        if key != "_index":
            frame.index.name = key
        return frame

    def _read_old_frame(self, group: Any, slot: str) -> pd.DataFrame:
        self._take_all(group, slot)
        frame = ad.io.read_elem(group)
        if not isinstance(frame, pd.DataFrame):
            raise refuse_element(self.name(slot), "be a table", type(frame).__name__)
        return frame

    def _read_column(self, group: Any, column: str, slot: str, length: int | None) -> Any:
        name = self.name(f'{slot}["{column}"]')
        element = member(group, column, name)
        with naming(name):
            self._take_column(element, name, length)
            values = ad.io.read_elem(element)
            found = len(values)
        if length is not None and found != length:
            raise refuse_element(name, f"have {length:,} values", f"{found:,}")
        return values

    def _take_column(self, element: Any, name: str, length: int | None) -> None:
        if isinstance(element, Array):
            self.budget.take(element, name, (length,))
            return
        kind = text_of(element.attrs.get("encoding-type", ""))
        for key in element:
            if isinstance(element[key], Array):
                has_length = (kind == "categorical" and key == "codes") or kind.startswith("nullable")
                self.budget.take(element[key], name, (length,) if has_length else None)
            else:
                self._take_all(element[key], name)

    def _take_all(self, element: Any, slot: str) -> None:
        for array in arrays_of(element):
            self.budget.take(array, self.name(slot))

    def open_matrix(self, element: Any, slot: str, shape: Shape) -> StoredMatrix:
        """
        Open a matrix, which is not read; one that is stored by columns (CSC) is.

        Parameters
        ----------
        element
            The matrix in the file.
        slot
            Its place.
        shape
            The shape that it must have, None for any length.

        Raises
        ------
        ValueError
            If it is broken or has another shape.
        """
        name = self.name(slot)
        with naming(name):
            if isinstance(element, Array):
                found = tuple(element.shape or ())
                _check_shape(found, shape, name)
                if len(shape) == 2 < len(found):
                    raise refuse_element(name, "have rows and columns", f"the shape {found}")
                self.budget.check_likely(declared_bytes(element), name)
                return StoredDense(FileArray(self.location, element))
            kind = text_of(element.attrs.get("encoding-type", ""))
            if kind == "csr_matrix":
                return self.open_csr(element, _declared_shape(element, shape, name), name)
            if kind == "csc_matrix":
                csr = self.read_sparse(element, slot, shape).tocsr()
                return StoredCsr(csr.data, csr.indices, csr.indptr, csr.shape, name)
        raise refuse_element(name, "be a dense, CSR or CSC matrix", f"{kind!r}")

    def open_csr(self, group: Any, shape: tuple[int, int], name: str) -> StoredCsr:
        """Open a matrix of three arrays, whose rows are `shape[0]`; see `open_matrix`."""
        data, indices = (FileArray(self.location, member(group, key, name)) for key in ("data", "indices"))
        pointers = member(group, "indptr", name)
        self._check_parts(data, indices, shape, name)
        self.budget.take(pointers, f"{name}/indptr", (shape[0] + 1,))
        indptr = np.asarray(pointers[:])
        check_pointers(indptr, shape[0], data.shape[0], name)
        return StoredCsr(data, indices, indptr.astype(np.int64), shape, name)

    def read_sparse(self, group: Any, slot: str, shape: Shape) -> Any:
        """
        Read a CSR or CSC matrix; see `open_matrix`.

        Raises
        ------
        ValueError
            If it is broken or has another shape.
        """
        name = self.name(slot)
        kind = text_of(group.attrs["encoding-type"]).removesuffix("_matrix")
        found = _declared_shape(group, shape, name)
        arrays = {key: member(group, key, name) for key in ("data", "indices", "indptr")}
        self._check_parts(arrays["data"], arrays["indices"], found, name)
        number = arrays["data"].shape[0]
        lengths = {"data": number, "indices": number, "indptr": found[kind == "csc"] + 1}
        parts = []
        for key, array in arrays.items():
            self.budget.take(array, f"{name}/{key}", (None,) if key == "data" else (lengths[key],))
            parts.append(FileArray(self.location, array)[:])
        return build_sparse(tuple(parts), found, kind, name)

    def _check_parts(self, data: Any, indices: Any, shape: tuple[int, int], name: str) -> None:
        if len(data.shape) != 1 or tuple(indices.shape) != tuple(data.shape) or data.shape[0] > shape[0] * shape[1]:
            got = f"{data.shape} values and {indices.shape} indices in {shape[0]:,} x {shape[1]:,}"
            raise refuse_element(name, "have an index for each value, and no more than fit", got)
        self.budget.check_likely(declared_bytes(data), name)

    def read_element(self, element: Any, slot: str, shape: Shape = ()) -> Any:
        """
        Read any element; of a mapping, what is broken in it is left out.

        Parameters
        ----------
        element
            The element in the file.
        slot
            Its place.
        shape
            How its shape must begin.

        Raises
        ------
        ValueError
            If it is broken.
        """
        kind = text_of(element.attrs.get("encoding-type", ""))
        if kind in SPARSE:
            found = self.read_sparse(element, slot, (None, None))
        elif isinstance(element, Group) and kind == "dataframe":
            found = self.read_frame(element, slot, is_strict=False)
        elif isinstance(element, Group) and kind in ("", "dict") and "h5sparse_format" not in element.attrs:
            if shape:
                raise refuse_element(self.name(slot), "be a matrix or a table", "a group of elements")
            return self.read_mapping(element, slot)
        else:
            self._take_all(element, slot)
            found = ad.io.read_elem(element)
        if shape:
            _check_shape(tuple(np.shape(found) if not hasattr(found, "shape") else found.shape), shape, self.name(slot))
        return found

    def read_mapping(self, group: Any, slot: str, shape: Shape = ()) -> dict[str, Any]:
        """Read all elements of a group but the broken ones, which are noted."""
        found = {}
        for key in keys_of(group):
            place = f"{slot}/{key}"
            broken = len(self.lost)
            value = self.read_or_lose(place, lambda k=key, p=place: self.read_element(group[k], p, shape))
            if value is not None or len(self.lost) == broken:
                found[key] = value
        return found


class MatrixOpener(ElementReader):
    """Reads elements but matrices, which are opened alone, to find what is broken in a file of any size."""

    def read_element(self, element: Any, slot: str, shape: Shape = ()) -> Any:
        """Read any element but a matrix; see `ElementReader.read_element`."""
        kind, name = text_of(element.attrs.get("encoding-type", "")), self.name(slot)
        wanted = (*shape, None, None)[: max(len(shape), 2)]
        if kind == "csr_matrix" or (isinstance(element, Array) and len(element.shape or ()) == 2):
            return self.open_matrix(element, slot, wanted)
        if kind == "csc_matrix":  # opened by its columns
            found = _declared_shape(element, shape, name)
            self.open_csr(element, found[::-1], name)
            return np.broadcast_to(np.float32(0), found)
        return super().read_element(element, slot, shape)


def _declared_shape(group: Any, shape: Shape, name: str) -> tuple[int, int]:
    found = tuple(int(n) for n in group.attrs["shape"])
    _check_shape(found, shape, name)
    if len(found) != 2 or min(found) < 0:
        raise refuse_element(name, "have rows and columns", f"the shape {found}")
    return found[0], found[1]


def _check_shape(found: tuple[int, ...], shape: Shape, name: str) -> None:
    """Check how a shape begins."""
    if len(found) < len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=False)):
        wanted = " x ".join("any" if n is None else f"{n:,}" for n in shape)
        raise refuse_element(name, f"have the shape {wanted}", " x ".join(f"{n:,}" for n in found) or "one value")
