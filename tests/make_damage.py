"""Damage as disks and hands do it: flipped bits, cut files; and how readers must take it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def flip_bit(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip a random bit."""
    place = int(rng.integers(len(data)))
    return data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]


def cut_end(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off some bytes at the end, or all."""
    return data[: int(rng.integers(len(data)))]


def all_files(path: Path) -> list[Path]:
    """List the files of a directory and below."""
    return sorted(p for p in path.rglob("*") if p.is_file())


DAMAGES = (flip_bit, cut_end)


def outcome(read: Callable[[], Any]) -> Any:
    """Give what was read, or the one line that says why not."""
    try:
        return read()
    except ValueError as error:
        return refusal(str(error))


def refusal(message: str) -> str:
    assert "\n" not in message, message
    return f"refused: {message}"


def is_refused(found: Any) -> bool:
    return isinstance(found, str) and found.startswith("refused: ")


def find_silent(
    files: list[Path], damages: tuple[Callable, ...], read: Callable[[], Any], same: Callable[[Any, Any], bool]
) -> list[str]:
    """
    Damage one file after the other; list those that were read with another result and no error.

    Parameters
    ----------
    files
        Which files; each is as before at the end.
    damages
        What is done to each, one after the other.
    read
        Reads all that depends on them.
    same
        Compares what was read.
    """
    rng, silent, expected = np.random.default_rng(0), [], read()
    for file in files:
        sound = file.read_bytes()
        for damage in damages if sound else ():
            file.write_bytes(damage(sound, rng))
            found = outcome(read)
            if not is_refused(found) and not same(found, expected):
                silent.append(f"{file} {damage.__name__}")
        file.write_bytes(sound)
    assert same(read(), expected)
    return silent
