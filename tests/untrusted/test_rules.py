"""Schemas name the field and what it must be, and what they write they read."""

import json
from dataclasses import dataclass

import pytest

from scfusion_fm.untrusted.rules import (
    Flag,
    ListOf,
    MapOf,
    Maybe,
    Number,
    Numbers,
    Record,
    Text,
    Whole,
    parse_bytes,
    render,
    ruled,
)


@dataclass(frozen=True)
class Inner:
    flag: bool = ruled(Flag())


@dataclass(frozen=True)
class Outer:
    number: int = ruled(Whole(0, 9))
    share: float = ruled(Number(0, 1), 0.5)
    name: str = ruled(Text(longest=3), "a")
    kind: str = ruled(Text(("a", "b")), "a")
    names: list[str] = ruled(ListOf(Text(), most=3, unique=True), ())
    parts: dict[str, Inner] = ruled(MapOf(Record(Inner), most=2), ())
    row: list[float] | None = ruled(Maybe(Numbers(gaps=True)), None)
    full: list[float] = ruled(Numbers(), ())


GOOD = {"number": 3, "parts": {"x": {"flag": True}}, "names": ["a", "b"], "row": [1, None, 2.5], "full": [0]}


def read(content, ignored=()):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse_bytes(Outer, data, "here.json", ignored)


def test_what_is_written_is_read():
    found = read(GOOD)
    assert found == Outer(3, parts={"x": Inner(True)}, names=["a", "b"], row=[1.0, None, 2.5], full=[0.0])
    assert read(render(found).encode()) == found
    assert read(GOOD | {"other": 1}, ("other",)) == found
    with pytest.raises(ValueError, match="`number` must be a whole number from 0 to 9, got 10"):
        render(Outer(10, names=[], parts={}, full=[]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": True}, "`number` must be a whole number from 0 to 9, got True"),
        ({"number": 1.0}, "`number` must be a whole number"),
        ({"number": 10**400}, "`number` must be a whole number"),
        ({"share": 1.5}, "`share` must be a number from 0 to 1, got 1.5"),
        ({"share": "1"}, "`share` must be a number"),
        ({"name": "abcd"}, "`name` must be text of at most 3 characters"),
        ({"name": "\ud800"}, "`name` must be text that can be written, got '.ud800'"),
        ({"kind": "c"}, r"`kind` must be one of \['a', 'b'\], got 'c'"),
        ({"names": ["a", "b", "a"]}, "`names` must hold each value once, got 'a' twice"),
        ({"names": {}}, "`names` must be a list of at most 3, got {}"),
        ({"names": ["a", 1]}, "`names` must be text"),
        ({"parts": []}, "`parts` must be an object with at most 2 names"),
        ({"parts": {"x": {"flag": 1}}}, r"`parts\['x'\].flag` must be true or false, got 1"),
        ({"parts": {"x": 1}}, r"`parts\['x'\]` must be an object, got 1"),
        ({"row": [True]}, "`row` must be a list of numbers"),
        ({"row": [10**400]}, "`row` must hold numbers of a usual size"),
        ({"full": [None]}, "`full` must be a list of numbers"),
        ({"other": 1}, r"`content` must have no unknown field, got \['other'\]"),
    ],
)
def test_field_and_rule_are_named(change, message):
    with pytest.raises(ValueError, match=rf"^'here.json': {message}.*copy or export it again\.$"):
        read(GOOD | change)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "`content` must be an object, got"),
        (b"{}", "`content` must have a field 'number', got none"),
        (b"{", "must be complete JSON, got a broken one"),
        (b"\xff", "must be UTF-8 text, got other bytes at place 0"),
        (b'{"number": 1, "number": 2}', "must name each field once, got 'number' twice"),
        (b'{"number": NaN}', "must hold finite numbers, got NaN"),
        (b'{"number": 1, "full": [1e999]}', "`full` must hold finite numbers"),
        (b'{"number": 1, "share": -1e999}', "`share` must be a number"),
        (b"[" * 100_000, "must be JSON of a few levels"),
        (b'{"number": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_broken_json_is_refused_in_one_line(data, message):
    with pytest.raises(ValueError, match=f"^'here.json': .*{message}") as caught:
        read(data)
    assert "\n" not in str(caught.value)
