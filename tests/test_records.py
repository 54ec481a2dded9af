"""Records keep their seal whatever their layout, and lose it with any change."""

import json

import pytest

from scfusion_fm.records import keeps_seal, parse_record, seal_record, seal_text, unseal_text

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
        (b"{", "must be complete JSON"),
        (b"\xff", "must be UTF-8 text"),
        (b"[1]", r"must be a JSON object, got \[1\]"),
        (b"[" * 10**5, "nested too deeply"),
    ],
)
def test_what_is_no_record_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        parse_record(data)


def test_a_text_gives_its_content_back_and_loses_its_seal_with_any_change():
    sealed = seal_text("a: 1\n").encode()
    assert unseal_text(sealed) == unseal_text(b"a: 1\n") == "a: 1\n"
    for damaged, message in ((sealed[:-1], "got another"), (b"", "got none"), (b"\xff", "got other bytes at place 0")):
        with pytest.raises(ValueError, match=message):
            unseal_text(damaged)
