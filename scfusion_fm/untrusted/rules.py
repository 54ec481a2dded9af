"""
Schemas: what the fields of a file must be.

A schema is a frozen dataclass whose fields are made with `ruled`. `parse` reads what JSON gave, and `render` writes it,
so that what is written can be read. Rules raise ValueError with the name of the field and what it must be.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, Protocol, TypeVar

from scfusion_fm.untrusted.json_file import read_json
from scfusion_fm.untrusted.text import show_value

T = TypeVar("T", bound=Any)
LONGEST_NAME = 4096
MOST_NAMES = 1_000_000


class Rule(Protocol):
    """What a value must be."""

    def read(self, value: Any, name: str) -> Any:
        """Give the value; raise ValueError with the name of the field where it breaks the rule."""


def ruled(rule: Rule, default: Any = MISSING) -> Any:
    """Make a field of a schema; without a default it must be there."""
    return field(metadata={"rule": rule}, default=default)


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def read(self, value: Any, name: str) -> int:
        """Give it."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(f"`{name}` must be a whole number from {self.low} to {self.high}, got {show_value(value)}")
        return value


@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`."""

    low: float = -1e300
    high: float = 1e300

    def read(self, value: Any, name: str) -> float:
        """Give it as a floating-point number."""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:
            raise ValueError(f"`{name}` must be a number from {self.low:g} to {self.high:g}, got {show_value(value)}")
        return float(value)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def read(self, value: Any, name: str) -> bool:
        """Give it."""
        if type(value) is not bool:
            raise ValueError(f"`{name}` must be true or false, got {show_value(value)}")
        return value


@dataclass(frozen=True)
class Text:
    """Text that can be written again; one of `allowed` where there are some."""

    allowed: tuple[str, ...] | None = None
    longest: int = LONGEST_NAME

    def read(self, value: Any, name: str) -> str:
        """Give it."""
        if not isinstance(value, str) or len(value) > self.longest:
            raise ValueError(f"`{name}` must be text of at most {self.longest} characters, got {show_value(value)}")
        if self.allowed is not None and value not in self.allowed:
            raise ValueError(f"`{name}` must be one of {list(self.allowed)}, got {show_value(value)}")
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in value):
            raise ValueError(f"`{name}` must be text that can be written, got {show_value(value)}")
        return str(value)


@dataclass(frozen=True)
class Anything:
    """Whatever JSON holds."""

    def read(self, value: Any, name: str) -> Any:
        """Give it."""
        return value


@dataclass(frozen=True)
class Maybe:
    """Null, or what another rule allows."""

    rule: Rule

    def read(self, value: Any, name: str) -> Any:
        """Give it."""
        return None if value is None else self.rule.read(value, name)


@dataclass(frozen=True)
class ListOf:
    """A list of at most `most`; all different where `unique`."""

    rule: Rule
    most: int = MOST_NAMES
    unique: bool = False

    def read(self, value: Any, name: str) -> list:
        """Give it."""
        if type(value) not in (list, tuple) or len(value) > self.most:
            raise ValueError(f"`{name}` must be a list of at most {self.most}, got {show_value(value)}")
        found = [self.rule.read(x, name) for x in value]
        if self.unique and len(set(found)) < len(found):
            raise ValueError(f"`{name}` must hold each value once, got {show_value(_repeated(found))} twice")
        return found


@dataclass(frozen=True)
class MapOf:
    """An object with names of its own, at most `most`."""

    rule: Rule
    most: int = MOST_NAMES

    def read(self, value: Any, name: str) -> dict[str, Any]:
        """Give it."""
        if not isinstance(value, Mapping) or len(value) > self.most:
            raise ValueError(f"`{name}` must be an object with at most {self.most} names, got {show_value(value)}")
        text = Text()
        return {text.read(key, name): self.rule.read(x, f"{name}[{show_value(key)}]") for key, x in value.items()}


@dataclass(frozen=True)
class Numbers:
    """A list of finite numbers; null for a missing one where `gaps`."""

    gaps: bool = False
    most: int = MOST_NAMES

    def read(self, value: Any, name: str) -> list[float | None]:
        """Give them as floating-point numbers."""
        kinds = (int, float, type(None)) if self.gaps else (int, float)
        if type(value) is not list or len(value) > self.most or not all(type(x) in kinds for x in value):
            raise ValueError(f"`{name}` must be a list of numbers, got {show_value(value)}")
        try:
            found = [None if x is None else float(x) for x in value]
        except OverflowError as error:
            raise ValueError(f"`{name}` must hold numbers of a usual size, got larger ones") from error
        if not all(x is None or math.isfinite(x) for x in found):
            raise ValueError(f"`{name}` must hold finite numbers, got {show_value(value)}")
        return found


@dataclass(frozen=True)
class Record:
    """An object with a schema of its own."""

    schema: type

    def read(self, value: Any, name: str) -> Any:
        """Give it."""
        return parse(self.schema, value, f"{name}.")


def parse(schema: type[T], content: Any, within: str = "", ignored: tuple[str, ...] = ()) -> T:
    """
    Check what JSON gave.

    Parameters
    ----------
    schema
        Dataclass whose fields have rules.
    content
        What was read.
    within
        What stands before the names of its fields in errors.
    ignored
        Names that may be there and are not read.

    Raises
    ------
    ValueError
        If a field is missing, unknown or breaks its rule.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"`{within.rstrip('.') or 'content'}` must be an object, got {show_value(content)}")
    known: dict[str, Field] = {f.name: f for f in fields(schema)}
    values = {n: f.metadata["rule"].read(content[n], f"{within}{n}") for n, f in known.items() if n in content}
    unknown = sorted(set(content) - set(known) - set(ignored))
    missing = sorted(n for n, f in known.items() if n not in content and f.default is MISSING)
    if unknown or missing:
        what = f"no unknown field, got {show_value(unknown)}" if unknown else f"a field {missing[0]!r}, got none"
        raise ValueError(f"`{within.rstrip('.') or 'content'}` must have {what}")
    return schema(**values)


def parse_bytes(schema: type[T], data: bytes, place: str, ignored: tuple[str, ...] = ()) -> T:
    """
    Read a JSON file of a schema.

    Raises
    ------
    ValueError
        If it is damaged or does not fit; the message names the file and the field.
    """
    try:
        return parse(schema, read_json(data), ignored=ignored)
    except ValueError as error:
        told = str(error).rstrip(".")
        raise ValueError(f"{place!r}: {told}. The file is damaged or not ours: copy or export it again.") from error


def render(record: Any) -> str:
    """Write a record as JSON that `parse_bytes` reads."""
    content = asdict(record)
    parse(type(record), content)
    return json.dumps(content, allow_nan=False) + "\n"


def _repeated(values: list) -> Any:
    seen: set = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    raise AssertionError
