"""Text of files, shown on a terminal."""

import re
import reprlib
from typing import Any

# Control characters, among them the escape of terminals, line ends of Unicode, and what turns the direction of text.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlist = _REPR.maxdict = _REPR.maxlevel = 3


def show_text(text: Any, keep: str = "") -> str:
    r"""
    Give text with its control characters as escapes such as `\x1b`, so that names in files cannot steer a terminal.

    Parameters
    ----------
    text
        What will be printed.
    keep
        Characters that stay, such as the line ends of a table.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), str(text))


def show_value(value: Any) -> str:
    """Give a short description of a value for an error, however large it is."""
    return show_text(_REPR.repr(value))


def _escape(character: str) -> str:
    return ascii(character)[1:-1]
