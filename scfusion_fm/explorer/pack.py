"""Numbers of cells as bytes for a page: at most 254 steps between the ends of each, packed, as text."""

import base64
import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 254
MISSING = 255
FINE_STEPS = 65_534
FINE_MISSING = 65_535
TAILS = (0.1, 99.9)  # percentiles, beyond which proteins show as at them


def encode(content: bytes) -> str:
    """Pack bytes, and write them as text."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def pack_numbers(values: NDArray[np.float32], is_fine: bool) -> dict[str, Any]:
    """
    Quantise numbers, NaN for missing ones.

    Parameters
    ----------
    values
        (n,).
    is_fine
        Whether in 65,534 steps between the smallest and the largest, or in 254 between tails, each beyond 0.1 % of the
        cells.

    Returns
    -------
    `data`, and the values of the first and last step.
    """
    steps, missing, kind = (FINE_STEPS, FINE_MISSING, "<u2") if is_fine else (STEPS, MISSING, "u1")
    known = np.isfinite(values)
    low, high = (0.0, 0.0)
    if known.any():
        low, high = map(float, np.percentile(values[known], (0, 100) if is_fine else TAILS))
    scaled = (np.where(known, values, low) - low) / ((high - low) or 1.0)
    found = np.where(known, np.rint(np.clip(scaled, 0, 1) * steps), missing).astype(kind)
    return {"data": encode(found.tobytes()), "low": low, "high": high, "fine": is_fine}


def pack_labels(values: NDArray) -> dict[str, Any]:
    """Give categories numbers, the one with most cells first, 255 for none."""
    found, counts = np.unique([value for value in values if value is not None], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    codes = {str(found[place]): code for code, place in enumerate(order)}
    numbers = np.array([MISSING if value is None else codes[str(value)] for value in values], dtype="u1")
    return {"data": encode(numbers.tobytes()), "categories": [*codes]}
