"""SHA256SUMS of a directory, as `sha256sum -c` reads it."""

import hashlib
import re
from pathlib import Path

from scfusion_fm.untrusted.text import show_text, show_value

SUMS = "SHA256SUMS"
LARGEST = 1 << 20
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\x00-\x1f]{1,255})")


def read_sums(directory: Path) -> dict[str, str] | None:
    """
    Read the checksums of a directory by the name of the file; None where it has none.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = directory / SUMS
    if not path.is_file():
        return None
    lines = read_bounded(path, LARGEST).decode(errors="replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    names = [line[2] for line in found if line]
    if None in found or len(set(names)) < len(names) or not names:
        wrong = next((line for line, ok in zip(lines, found, strict=True) if ok is None), "a file twice, or none")
        raise ValueError(
            f"{str(path)!r} must have a line `checksum  name` for each file, got {show_value(wrong)}. "
            "Copy or export the directory again."
        )
    return {line[2]: line[1] for line in found if line}


def check_file(path: Path, expected: str) -> None:
    """
    Compare a file with its checksum.

    Raises
    ------
    ValueError
        If it is missing or differs.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} must be there, as {SUMS} beside it says, got none. Copy or export it again.")
    with path.open("rb") as stream:
        check_digest(path, hashlib.file_digest(stream, "sha256").hexdigest(), expected)


def check_digest(path: Path, found: str, expected: str) -> None:
    """
    Compare the checksum of what was read of a file.

    Raises
    ------
    ValueError
        If it differs.
    """
    if found != expected:
        raise ValueError(
            f"{str(path)!r} must have the checksum that {SUMS} beside it says, got another: it was damaged, or changed "
            "by hand. Copy or export it again."
        )


def read_bounded(path: Path, largest: int) -> bytes:
    """
    Read a file of a bounded size.

    Raises
    ------
    ValueError
        If it is larger, or no plain file.
    """
    if not path.is_file():
        raise ValueError(f"`{show_text(path.name)}` must be a file, got none in {str(path.parent)!r}.")
    with path.open("rb") as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        raise ValueError(
            f"{str(path)!r} must have at most {largest:,} bytes, got more. It is not ours: export it again."
        )
    return data
