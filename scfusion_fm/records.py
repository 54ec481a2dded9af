"""JSON objects and texts in files, with a checksum of their own by which a later change is noticed."""

import json
from pathlib import Path
from typing import Any

import google_crc32c

from scfusion_fm.untrusted.json_file import read_json
from scfusion_fm.untrusted.text import show_value

SEAL = "crc32c"
"""Entry that holds the checksum of all others."""
CHANGED = "must have its checksum, got another: it was damaged or edited"


def parse_record(data: bytes) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises
    ------
    ValueError
        If it is none; the message says what it must be.
    """
    found = read_json(data, finite=False)  # scores can be missing
    if not isinstance(found, dict):
        raise ValueError(f"must be a JSON object, got {show_value(found)}")
    return found


def read_record(path: Path, advice: str) -> dict[str, Any]:
    """
    Read a file with a JSON object, which must keep its seal if it has one.

    Parameters
    ----------
    path
        The file.
    advice
        What to do if it is damaged.

    Raises
    ------
    ValueError
        If it holds something else than was written.
    """
    try:
        record = parse_record(path.read_bytes())
        if SEAL in record and not keeps_seal(record):
            raise ValueError(CHANGED)
    except ValueError as error:
        raise ValueError(f"`{path}` {error}; {advice}.") from error
    return record


def seal_record(record: dict[str, Any]) -> dict[str, Any]:
    """Add the checksum of the content, whatever its order and layout in the file."""
    return record | {SEAL: checksum_record(record)}


def keeps_seal(record: dict[str, Any]) -> bool:
    """Tell whether a record is as it was sealed; false without a seal."""
    return SEAL in record and record[SEAL] == checksum_record(record)


def checksum_record(record: dict[str, Any]) -> str:
    """Give the CRC-32C of the content but for the seal, in hexadecimal."""
    content = json.loads(json.dumps({key: value for key, value in record.items() if key != SEAL}))  # as it is read
    return checksum_bytes(json.dumps(content, sort_keys=True).encode())


def checksum_bytes(data: bytes) -> str:
    """Give the CRC-32C of bytes in hexadecimal."""
    return google_crc32c.Checksum(data).hexdigest().decode()


def seal_text(text: str) -> str:
    """Put a comment with the checksum of a text before it."""
    return f"# {SEAL}: {checksum_bytes(text.encode())}\n{text}"


def unseal_text(data: bytes) -> str:
    """
    Take the comment with its checksum off a text; one without is given back as it is.

    Raises
    ------
    ValueError
        If it is not the checksum of the text, or this is none; the message says what it must be.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"must be text, got other bytes at place {error.start}") from error
    if not text:
        raise ValueError("must be text, got none")
    mark, _, content = text.partition("\n")
    if not mark.startswith("#") and SEAL not in mark:
        return text
    if seal_text(content) != text:
        raise ValueError(CHANGED)
    return content
