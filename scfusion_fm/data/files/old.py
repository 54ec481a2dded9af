"""Files that are older than AnnData 0.7 or Cell Ranger 3: read whole by the libraries, after a check."""

from typing import Any

import numpy as np

from scfusion_fm.data.files.arrays import Array, FileArray, Group
from scfusion_fm.data.files.elements import ElementReader
from scfusion_fm.data.files.sparse import build_sparse

PARTS = ("data", "indices", "indptr")


def check_old(reader: ElementReader, group: Group, slot: str = "") -> None:
    """
    Check the sizes of all arrays of a file, and that the indices of all sparse matrices fit.

    Raises
    ------
    ValueError
        If they do not.
    """
    if all(key in group and isinstance(group[key], Array) for key in PARTS):
        _check_sparse(reader, group, slot or "/")
    for key in group:
        element, place = group[key], f"{slot}/{key}".lstrip("/")
        if isinstance(element, Group):
            check_old(reader, element, place)
        else:
            reader.budget.take(element, reader.name(place))


def _check_sparse(reader: ElementReader, group: Group, slot: str) -> None:
    """Build the matrix of AnnData, or the one of 10x whose columns are cells, from checked parts."""
    attributes = group.attrs
    if "h5sparse_shape" in attributes or "shape" in attributes:
        shape = attributes.get("h5sparse_shape", attributes.get("shape"))
        text = str(attributes.get("h5sparse_format", attributes.get("encoding-type", "csr")))
        kind = "csc" if "csc" in text else "csr"
    elif "shape" in group:
        shape, kind = group["shape"][:], "csc"
    else:
        return
    rows, columns = (int(n) for n in np.asarray(shape).ravel())
    parts: list[Any] = []
    for key in PARTS:
        reader.budget.take(group[key], reader.name(f"{slot}/{key}"))
        parts.append(FileArray(reader.location, group[key])[:])
    build_sparse((parts[0], parts[1], parts[2]), (rows, columns), kind, reader.name(slot))
