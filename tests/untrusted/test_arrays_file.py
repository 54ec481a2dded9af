"""Arrays of a .npz file are read only where their types and sizes are as declared."""

import io
import zipfile

import numpy as np
import pytest

from scfusion_fm.untrusted.arrays_file import read_arrays


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_bytes_and_a_text_are_read(tmp_path):
    path = write(
        tmp_path / "a.npz", about=np.array("hé"), bits=np.arange(9, dtype=np.uint8), none=np.zeros(0, np.uint8)
    )
    found = read_arrays(path)
    assert found["about"] == ("<U2", "hé".encode("utf-32-le"))
    assert found["bits"] == ("|u1", bytes(range(9)))
    assert found["none"] == ("|u1", b"")


def header_says(path, old, new):
    data = io.BytesIO()
    np.save(data, np.zeros(9, np.uint8))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("bits.npy", data.getvalue().replace(old, new))


def test_other_types_sizes_and_bombs_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    for values in (np.zeros(3), np.zeros((3, 3), np.uint8), np.array(["a", "b"]), np.array(b"x")):
        with pytest.raises(ValueError, match=r"must hold arrays of bytes and a text|of their declared size"):
            read_arrays(write(path, values=values))
    header_says(path, b"(9,)", b"(8,)")
    with pytest.raises(ValueError, match=r"must hold arrays of their declared size, got another in 'bits.npy'"):
        read_arrays(path)
    header_says(path, b"'|u1'", b"'|O8'")
    with pytest.raises(ValueError, match=r"must hold arrays of bytes and a text, got another type in 'bits.npy'"):
        read_arrays(path)
    np.savez_compressed(path, bits=np.zeros(10_000_000, np.uint8))
    with pytest.raises(ValueError, match="got compressed ones"):
        read_arrays(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a.npy", b"")
    with pytest.raises(ValueError, match="must hold at most 2001 arrays, each once, got 2"):
        read_arrays(path)


def test_a_member_that_claims_more_than_the_file_has_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", bits=np.zeros(1000, np.uint8))
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02")  # the directory of the zip file: sizes at 20 and 24
    huge = (1 << 31).to_bytes(4, "little") * 2
    path.write_bytes(data[: at + 20] + huge + data[at + 28 :])
    with pytest.raises(ValueError, match="got arrays that are larger"):
        read_arrays(path)


def test_broken_files_are_refused(tmp_path):
    path = write(tmp_path / "a.npz", bits=np.zeros(100, np.uint8))
    whole = path.read_bytes()
    flipped = whole.replace(bytes(50), bytes(49) + b"\1", 1)
    for content in (b"", b"no", whole[:100], whole[:-30], flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"must be a complete \.npz file"):
            read_arrays(path)
