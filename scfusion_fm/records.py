"""JSON objects in files: their form, and a checksum of their own by which a later change is noticed."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import google_crc32c

SEAL = "crc32c"
"""Entry that holds the checksum of all others."""


def parse_record(data: bytes) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises
    ------
    ValueError
        If it is none; the message says in a few words what it is.
    """
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"no JSON object but one of type {type(found).__name__}")
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
            raise ValueError("one without its checksum: it was damaged or edited")
    except ValueError as error:
        raise ValueError(f"`{path}` must be a JSON object as it was written, got {error}; {advice}.") from error
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
        If it is not the checksum of the text, or this is none; the message says so in a few words.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"no text ({error})") from error
    if not text:
        raise ValueError("nothing")
    mark, _, content = text.partition("\n")
    if not mark.startswith("#") and SEAL not in mark:
        return text
    if seal_text(content) != text:
        raise ValueError("text without its checksum: it was damaged or edited")
    return content


def check_form(value: Any, form: Any, name: str = "") -> None:
    """
    Compare what JSON gave with the fields and types of a dataclass, and all that is inside.

    Whole numbers must not be negative. Fields with a default may be absent, others must not be there.

    Parameters
    ----------
    value
        What was read.
    form
        A dataclass, or a type such as `list[int]`.
    name
        Where in the file it stands.

    Raises
    ------
    ValueError
        If something does not fit; the message names the field and what it is.
    """
    origin, inner = get_origin(form), get_args(form)
    if form is Any:
        return
    if dataclasses.is_dataclass(form):
        _check_fields(value, form, name)
    elif origin in (Union, types.UnionType):
        if type(value) not in inner:
            raise ValueError(f"{_at(name)} must be {form}, got {_show(value)}")
    elif origin in (list, dict):
        _expect(isinstance(value, origin), name, f"a {'list' if origin is list else 'JSON object'}", value)
        for key, part in value.items() if origin is dict else enumerate(value):
            check_form(part, inner[-1], f"{name}.{key}")
    elif form is int:
        _expect(type(value) is int and value >= 0, name, "a whole number that is not negative", value)
    elif form is float:
        _expect(type(value) in (int, float), name, "a number", value)
    else:
        _expect(type(value) is form, name, {str: "text", bool: "true or false"}.get(form, "a JSON object"), value)


def _check_fields(value: Any, form: Any, name: str) -> None:
    _expect(isinstance(value, dict), name, "a JSON object", value)
    hints, fields = get_type_hints(form), {field.name: field for field in dataclasses.fields(form)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{_at(name)} must have no {unknown[0][:60]!r}")
    for key, field in fields.items():
        if key in value:
            check_form(value[key], hints[key], f"{name}.{key}" if name else key)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_at(name)} must have {key!r}, got none")


def _expect(fits: bool, name: str, what: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{_at(name)} must be {what}, got {_show(value)}")


def _at(name: str) -> str:
    return f"`{name}`" if name else "it"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
