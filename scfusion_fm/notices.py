"""Warnings for users: of one category, at the line of theirs that led to it."""

import os
import sys
import warnings

_PACKAGE = os.path.dirname(__file__) + os.sep


class ScFusionWarning(UserWarning):
    """What a user should know of a file, a model or a setting; commands print it in a line."""


def warn(message: str) -> None:
    """Warn at the line outside of this package that called it, so that Python shows the user's code and not ours."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, ScFusionWarning, stacklevel=depth)
