"""Names in files do not steer a terminal."""

from scfusion_fm.untrusted.text import show_text, show_value


def test_control_characters_are_shown_as_escapes():
    assert show_text("a\x1b[31mred\x07\r\nb\u202e\x9b") == r"a\x1b[31mred\x07\r\nb\u202e\x9b"
    assert show_text("a\x1b\nb", keep="\n") == "a\\x1b\nb"
    assert show_text("CD3 β-chain, naïve T") == "CD3 β-chain, naïve T"


def test_values_are_short_whatever_they_are():
    deep = []
    for _ in range(50):
        deep = [deep, "x" * 1000, {"a": deep}]
    assert len(show_value(deep)) < 1000
    assert "\n" not in show_value("a\nb")
