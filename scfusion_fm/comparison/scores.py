"""Scores of a fold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.protocol.spread import HELD_OUT


@dataclass
class Scores:
    """What a fold gave.

    Attributes
    ----------
    rows
        Scores by method, inputs and protocol, for the report.
    predictions
        Arrays to keep, by name.
    """

    rows: list[dict[str, Any]]
    predictions: dict[str, NDArray]

    def add(self, kind: str, method: str, inputs: str, scores: dict[str, Any], protocol: str = HELD_OUT) -> None:
        """Add the scores of a method, a "model" or a "baseline"."""
        names = {"kind": kind, "method": method, "inputs": inputs, "protocol": protocol}
        self.rows.append(names | {key: to_plain(value) for key, value in scores.items()})


def to_plain(value: Any) -> Any:
    """Give what a JSON file can hold; None for what is no number."""
    if isinstance(value, dict):
        return {str(key): to_plain(part) for key, part in value.items()}
    number = float(np.nan if value is None else value)
    return number if np.isfinite(number) else None
