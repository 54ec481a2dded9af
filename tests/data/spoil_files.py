"""Spoil files as damage and bad will do: lengths, pointers, types, links, attributes, bits, chunks and metadata.

`spoil_hdf5` and `spoil_zarr` change a file in place and say what they did; the same seed does the same.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

NUMBERS = [-1, 0, 1, 2, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62]
LENGTHS = [0, 1, 2**20, 2**31, 2**40, 2**50]
TYPES = ["f2", ">f4", "f8", "i1", ">i8", "u1", "u8", "c8", "?", "S3", "i4"]
WORDS = ["csr_matrix", "csc_matrix", "dataframe", "categorical", "array", "dict", "anndata", "MuData", "null", "raw"]
WORDS += [
    "string-array",
    "nullable-integer",
    "nullable-boolean",
    "awkward-array",
    "rec-array",
    "",
    "other",
    "../x",
    "/",
]
ATTRIBUTES = ["encoding-type", "encoding-version", "shape", "_index", "column-order", "ordered", "mod-order", "axis"]


def spoil_hdf5(path: Path, rng: np.random.Generator, keeps_structure: bool = False) -> str:
    """Spoil an HDF5 file; where its structure is kept, only by what HDF5 itself can write."""
    ways = [_replace, _resize, _set_values, _change_type, _set_attribute, _link, _delete, _move, _add_axis]
    if rng.random() < 0.25 and not keeps_structure:
        return _spoil_bytes(path, rng)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = str(rng.choice(sorted(names)))
        way = ways[rng.integers(len(ways))]
        return f"{way.__name__[1:]} {name}: {way(file, name, rng)}"


def _spoil_bytes(path: Path, rng: np.random.Generator) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return "empty"
    way = rng.choice(["cut", "flip", "flip", "zero", "repeat"])
    place = int(rng.integers(len(content)))
    if way == "cut":
        del content[place:]
    elif way == "flip":
        for at in rng.integers(len(content), size=int(rng.integers(1, 9))):
            content[at] ^= 1 << int(rng.integers(8))
    elif way == "zero":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    else:
        content[place:place] = content[place : place + 64]
    path.write_bytes(content)
    return f"{way} at {place}"


def _put(file: h5py.File, name: str, values: Any = None, **facts: Any) -> None:
    """Put an array in the place of an element, with its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=values, **facts).attrs.update(attributes)


def _replace(file, name, rng):
    if rng.random() < 0.3:
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_group(name).attrs.update(attributes)
        return "an empty group"
    values = [np.arange(3), np.float32(1), "text", np.array([b"a", b"b"]), np.zeros((2, 2, 2)), np.zeros((0, 3))]
    place = int(rng.integers(len(values)))
    _put(file, name, values[place])
    return repr(values[place])[:40]


def _resize(file, name, rng):
    if isinstance(file[name], h5py.Group):
        return _delete(file, name, rng)
    if rng.random() < 0.5 and file[name].ndim:
        old = file[name][()]
        values = old[:-1] if rng.random() < 0.5 else np.concatenate([old, old[-1:]])
        _put(file, name, values, dtype=file[name].dtype)
        return f"{len(values)} entries"
    length = int(rng.choice(LENGTHS))
    shape = (length,) if file[name].ndim < 2 else (file[name].shape[0], length)
    facts: dict[str, Any] = {"compression": "gzip"} if length and rng.random() < 0.5 else {}
    if length:
        facts["chunks"] = tuple(max(min(n, 4096), 1) for n in shape)
    _put(file, name, None, shape=shape, dtype=file[name].dtype, **facts)
    return f"declared {shape}"


def _set_values(file, name, rng):
    if isinstance(file[name], h5py.Group) or file[name].dtype.kind not in "iuf" or not file[name].size:
        return _set_attribute(file, name, rng)
    values = file[name][()]
    flat = np.atleast_1d(values).reshape(-1)
    choices: list[float] = [*NUMBERS]
    if flat.dtype.kind == "f":
        choices += [np.nan, np.inf, 0.5]
    else:
        limits = np.iinfo(flat.dtype)
        choices = [max(min(value, int(limits.max)), int(limits.min)) for value in NUMBERS]
    value = choices[rng.integers(len(choices))]
    with np.errstate(all="ignore"):
        flat[rng.integers(flat.size, size=2)] = value
    _put(file, name, flat.reshape(np.shape(values)))
    return f"{value}"


def _change_type(file, name, rng):
    if isinstance(file[name], h5py.Group) or file[name].dtype.kind not in "biuf":
        return _replace(file, name, rng)
    if rng.random() < 0.15:
        _put(file, name, [file.ref] * max(file[name].size, 1), dtype=h5py.ref_dtype)
        return "references"
    dtype = str(rng.choice(TYPES))
    with np.errstate(all="ignore"):
        _put(file, name, file[name][()].astype(dtype))
    return dtype


def _set_attribute(file, name, rng):
    element = file[name]
    key = str(rng.choice([*element.attrs, *ATTRIBUTES]))
    values = [None, str(rng.choice(WORDS)), np.array([7, -1]), np.array([2**40, 2**40]), 3.5, np.zeros(0)]
    values += [np.array(["_index", "absent"], dtype=h5py.string_dtype()), [int(rng.choice(NUMBERS)), 6], b"\xff"]
    value = values[rng.integers(len(values))]
    if key in element.attrs:
        del element.attrs[key]
    if value is not None:
        element.attrs[key] = value
    return f"{key} = {value!r}"[:60]


def _link(file, name, rng):
    way = rng.choice(["soft", "loop", "up", "hard", "out", "raw", "virtual"])
    others: list[str] = []
    file.visit(others.append)
    other = str(rng.choice(others))
    if way == "hard" and not other.startswith(name):
        kept = file[other]
        del file[name]
        file[name] = kept
        return f"hard {other}"
    del file[name]
    parent = f"/{name}".rpartition("/")[0] or "/"
    if way == "raw":
        file.create_dataset(name, shape=(7,), dtype="i8", external=[("/etc/hostname", 0, 56)])
    elif way == "virtual":
        layout = h5py.VirtualLayout(shape=(7,), dtype="i8")
        layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", shape=(7,))
        file.create_virtual_dataset(name, layout)
    else:
        targets = {"soft": f"/{other}", "loop": f"/{name}", "up": parent, "hard": "/absent"}
        file[name] = h5py.ExternalLink("/tmp/other.h5", "x") if way == "out" else h5py.SoftLink(targets[way])
    return f"{way} {other}"


def _delete(file, name, rng):
    del file[name]
    return "gone"


def _move(file, name, rng):
    file.move(name, f"{name}_moved")
    return "renamed"


def _add_axis(file, name, rng):
    if isinstance(file[name], h5py.Group) or file[name].dtype.kind not in "biuf":
        return _set_attribute(file, name, rng)
    _put(file, name, file[name][()][None] if rng.random() < 0.5 else np.stack([file[name][()]] * 2, axis=-1))
    return "another axis"


def spoil_zarr(path: Path, rng: np.random.Generator) -> str:
    """Spoil a zarr directory."""
    files = sorted(f for f in path.rglob("*") if f.is_file())
    tables = [f for f in files if f.suffix == ".json" or f.name in (".zarray", ".zattrs", ".zgroup")]
    file = tables[rng.integers(len(tables))] if rng.random() < 0.6 else files[rng.integers(len(files))]
    name = str(file.relative_to(path))
    way = rng.random()
    if file in tables and way < 0.75:
        return f"metadata {name}: {_spoil_json(file, rng)}"
    if way < 0.8:
        return f"{name}: {_spoil_bytes(file, rng)}"
    if way < 0.86:
        file.unlink()
        return f"{name}: gone"
    if way < 0.92:
        shutil.rmtree(file.parent)
        return f"{name}: its directory gone"
    target = str(rng.choice(["/etc/hostname", "..", ".", "../../..", str(path)]))
    file.unlink()
    os.symlink(target, file)
    return f"{name}: link to {target}"


def _spoil_json(file: Path, rng: np.random.Generator) -> str:
    content = json.loads(file.read_text())
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(content)
    if not places:
        file.write_text("[]")
        return "[]"
    node, key = places[rng.integers(len(places))]
    values = [None, True, *NUMBERS, 10**30, 0.5, *WORDS, [], {}, [2**40], [0], [-1, 6], "<f2", ">f4", "|O", "pickle"]
    values += [[7], [6], {"id": "pickle"}, {"id": "zstd"}, [{"name": "gzip"}], "NaN", "../../etc"]
    value = values[rng.integers(len(values))]
    if value is None and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    file.write_text(json.dumps(content))
    return f"{key} = {value!r}"
