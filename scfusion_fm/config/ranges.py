"""Ranges of settings, written as they are told: `[0, 1)`."""

from operator import attrgetter
from typing import Any

COUNT, COUNT_OR_NONE = "[1, 1e12]", "[0, 1e12]"
SEED = "[0, 4294967295]"  # what numpy takes
HASH_SEED = "[0, 9223372036854775807]"  # of a hash
SHARE, PROPER_SHARE, BELOW_ONE = "[0, 1]", "(0, 1)", "[0, 1)"
POSITIVE, NOT_NEGATIVE = "(0, 1e12]", "[0, 1e12]"


def check_ranges(settings: Any, ranges: dict[str, str], prefix: str = "") -> None:
    """
    Check numbers of settings.

    Parameters
    ----------
    settings
        An object with the settings; None is in every range.
    ranges
        Range of each setting, such as `[0, 1)`; a name may have dots.
    prefix
        What stands before the names in errors.

    Raises
    ------
    ValueError
        If one is out of its range, or not a number.
    """
    for name, text in ranges.items():
        value = attrgetter(name)(settings)
        if value is None:
            continue
        least, most = (float(end) for end in text[1:-1].split(","))
        # Written so that what is no number fails.
        above = value > least or (text[0] == "[" and value == least)
        below = value < most or (text[-1] == "]" and value == most)
        if not (above and below):
            raise ValueError(f"`{prefix}{name}` must lie in {text}, got {value}.")
