"""SHA256SUMS is read as `sha256sum -c` reads it."""

import pytest

from scfusion_fm.untrusted.checksums import SUMS, check_file, read_bounded, read_sums

ZERO = "0" * 64


def test_lines_are_read_and_damage_is_refused(tmp_path):
    assert read_sums(tmp_path) is None
    (tmp_path / SUMS).write_text(f"{ZERO}  a b.json\n{ZERO} *c\n")
    assert read_sums(tmp_path) == {"a b.json": ZERO, "c": ZERO}
    for text in ("", "x\n", f"{ZERO}  ../a\n", f"{ZERO}  a\n{ZERO}  a\n", f"{ZERO}  a\n\n"):
        (tmp_path / SUMS).write_text(text)
        with pytest.raises(ValueError, match="must have a line `checksum  name` for each file"):
            read_sums(tmp_path)


def test_missing_changed_and_large_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a' must be there, as SHA256SUMS beside it says, got none"):
        check_file(tmp_path / "a", ZERO)
    (tmp_path / "a").write_text("x")
    with pytest.raises(ValueError, match=r"a' must have the checksum that SHA256SUMS beside it says, got another"):
        check_file(tmp_path / "a", ZERO)
    assert read_bounded(tmp_path / "a", 1) == b"x"
    with pytest.raises(ValueError, match="a' must have at most 0 bytes, got more"):
        read_bounded(tmp_path / "a", 0)
    with pytest.raises(ValueError, match="`b` must be a file, got none"):
        read_bounded(tmp_path / "b", 1)
