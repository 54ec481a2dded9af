"""`.npz` files of numpy whose declared types and sizes are compared with the file before anything is made of them."""

import re
import struct
import zipfile
from pathlib import Path

MOST_ARRAYS = 2001
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(r"\{'descr': '(\|u1|<U\d{1,9})', 'fortran_order': False, 'shape': \((\d{1,15},)?\), \} *\n")


def read_arrays(path: Path) -> dict[str, tuple[str, bytes]]:
    """
    Read all arrays of a file: bytes in one dimension, or a text; their type (`|u1` or `<U...`) and content by name.

    Raises
    ------
    ValueError
        If the file is damaged, an array is compressed or of another type, or sizes do not add up.
    """
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
            _check_sizes(infos, path.stat().st_size)
            return {info.filename.removesuffix(".npy"): _read_array(file, info) for info in infos}
    except (OSError, EOFError, KeyError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise ValueError(f"must be a complete .npz file, got a broken one ({error})") from error


def _check_sizes(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse what would unpack to more than the file: compression, and members that share their bytes."""
    names = [info.filename for info in infos]
    if len(infos) > MOST_ARRAYS or len(set(names)) < len(names):
        raise ValueError(f"must hold at most {MOST_ARRAYS} arrays, each once, got {len(infos)}")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise ValueError("must hold its arrays as they are, got compressed ones")
    if sum(info.file_size for info in infos) > size or any(i.file_size != i.compress_size for i in infos):
        raise ValueError(f"must hold what its {size:,} bytes can, got arrays that are larger")


def _read_array(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[str, bytes]:
    data = file.read(info)
    length = int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10 : 10 + length].decode("latin-1"))
    if not data.startswith(_MAGIC) or header is None:
        raise ValueError(f"must hold arrays of bytes and a text, got another type in {info.filename!r}")
    kind, shape = header[1], header[2]
    items = 1 if shape is None else int(shape[:-1])
    content = data[10 + length :]
    if len(content) != items * (1 if kind == "|u1" else 4 * int(kind[2:])) or (shape is None) == (kind == "|u1"):
        raise ValueError(f"must hold arrays of their declared size, got another in {info.filename!r}")
    return kind, content
