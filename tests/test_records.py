"""Records keep their seal whatever their layout, lose it with any change, and have the form of their dataclass."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from scfusion_fm.records import check_form, keeps_seal, parse_record, seal_record


@dataclass(frozen=True)
class Part:
    size: int
    share: float = 0.0


@dataclass(frozen=True)
class Whole:
    name: str
    parts: list[Part]
    flags: dict[str, bool]
    anything: Any = None
    either: int | None = None


SOUND = {"name": "a", "parts": [{"size": 1}, {"size": 0, "share": 0.5}], "flags": {"x": True}, "either": None}


def test_a_seal_survives_order_and_layout_alone():
    sealed = seal_record(SOUND)
    again = parse_record(json.dumps(dict(reversed(sealed.items())), indent=3).encode())
    assert keeps_seal(again)
    assert seal_record(again) == sealed
    assert not keeps_seal(again | {"name": "b"})
    assert not keeps_seal({k: v for k, v in sealed.items() if k != "flags"})
    assert not keeps_seal(SOUND)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[1]", "no JSON object but one of type list"),
        (b"[" * 10**5, "nested too deep"),
    ],
)
def test_what_is_no_record_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        parse_record(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "`name` must be text, got 1"),
        ({"parts": {}}, r"`parts` must be a list, got {}"),
        ({"parts": [{"size": 1.0}]}, "`parts.0.size` must be a whole number that is not negative, got 1.0"),
        ({"parts": [{"size": True}]}, "`parts.0.size` must be a whole number that is not negative, got True"),
        ({"parts": [{"size": -1}]}, "`parts.0.size` must be a whole number that is not negative, got -1"),
        ({"parts": [{"size": 1, "share": "x"}]}, "`parts.0.share` must be a number, got 'x'"),
        ({"parts": [{}]}, "`parts.0` must have 'size', got none"),
        ({"parts": [[]]}, r"`parts.0` must be a JSON object, got \[\]"),
        ({"flags": {"x": 1}}, "`flags.x` must be true or false, got 1"),
        ({"either": "x"}, "`either` must be .*, got 'x'"),
        ({"more": 1}, "it must have no 'more'"),
    ],
)
def test_other_forms_are_refused(change, message):
    check_form(SOUND, Whole)
    with pytest.raises(ValueError, match=message):
        check_form(SOUND | change, Whole)
