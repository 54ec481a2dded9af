"""What users are told: warnings of one category at the line of theirs that led to them, lines, and progress bars."""

import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any

_PACKAGE = os.path.dirname(__file__) + os.sep


class ScFusionWarning(UserWarning):
    """What a user should know of a file, a model or a setting; commands print it in a line."""


@dataclass
class Settings:
    """
    How much is told.

    Attributes
    ----------
    verbosity
        0 for nothing but warnings and errors; 1 for lines about what is read and progress bars too.
    """

    verbosity: int = 1

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is known."""
        if name != "verbosity" or isinstance(value, bool) or value not in (0, 1):
            raise ValueError(f"`settings.verbosity` must be 0 or 1, got {name} = {value!r}.")
        super().__setattr__(name, value)


settings = Settings()


def warn(message: str) -> None:
    """Warn at the line outside of this package that called it, so that Python shows the user's code and not ours."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, ScFusionWarning, stacklevel=depth)


def tell(message: str) -> None:
    """Print a line for the user to stderr, unless nothing is to be told."""
    if settings.verbosity:
        print(message, file=sys.stderr, flush=True)


def progress(total: int, unit: str = "cells", description: str | None = None) -> Any:
    """
    Give a bar of tqdm that shows the time left; one that shows nothing where nothing is to be told.

    In a terminal it is drawn in a line, and in a notebook as a widget where ipywidgets is installed.
    """
    from tqdm.auto import tqdm  # slow to import
    from tqdm.notebook import tqdm_notebook

    where_it_can_be_seen = False if issubclass(tqdm, tqdm_notebook) else None  # None: in a terminal alone
    return tqdm(total=total, unit=unit, desc=description, disable=where_it_can_be_seen if settings.verbosity else True)
