"""JSON that others wrote: of a bounded size, with each name once, without NaN."""

import json
from typing import Any

from scfusion_fm.untrusted.text import show_value


def read_json(data: bytes, finite: bool = True) -> Any:
    """
    Read JSON strictly.

    Parameters
    ----------
    data
        Content of the file.
    finite
        Whether NaN and infinite numbers are refused.

    Raises
    ------
    ValueError
        If it is damaged or nested too deeply, holds numbers that are not finite, or an object has a name twice.
    """
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_refuse_repeats, parse_constant=_refuse_constant if finite else None
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8 text, got other bytes at place {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"must be complete JSON, got a broken one ({error})") from error
    except RecursionError as error:
        raise ValueError("must be JSON of a few levels, got one that is nested too deeply") from error


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"must name each field once, got {show_value(twice)} twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"must hold finite numbers, got {name}")
