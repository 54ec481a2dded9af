"""Whatever stands in the files of an atlas: one line, no hang, no memory beyond what an atlas takes."""

import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from make_atlas import read_everything, same, silent, write_atlas
from make_cells import write_h5mu
from make_damage import all_files, is_refused, outcome

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.atlas.atlas import verify_atlas
from scfusion_fm.data.atlas.manifest import MANIFEST
from scfusion_fm.data.atlas.metadata import METADATA, seal_metadata
from scfusion_fm.records import seal_record

VALUES = [None, True, -1, 0, 1, 7, 2**31, 10**12, 2**63, 10**400, 0.5, 1e308, float("nan"), "", "x", "../../x", "/etc"]
VALUES += ["\u00e9\0", [], {}, [[]], [0], [-1], [10**12], {"name": "x"}, "uint8", "string", "gzip", [{"name": "gzip"}]]
TIME_S, MEMORY_KIB = 20, 2**19


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz")
    sources = [SourceConfig(write_h5mu(directory / f"{name}.h5mu", 40, seed=i), name) for i, name in enumerate("abc")]
    return PrepareConfig(directory / "atlas.zarr", sources, "sources", "sources", obs_columns=["donor"])


@contextmanager
def limits():
    """End what takes too long, and look at the memory that was taken."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(TIME_S)
    before = peak_kib()
    try:
        yield
        assert peak_kib() - before < MEMORY_KIB
    finally:
        signal.alarm(0)


def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def list_places(value, path=()):
    """Give where something stands in JSON."""
    yield path
    if isinstance(value, dict | list):
        parts = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, part in parts[:50]:
            yield from list_places(part, (*path, key))


def edit_json(file, rng):
    """Change one value, or remove or add an entry; seal it again, so that what is inside is what is looked at."""
    record = json.loads(file.read_bytes())
    places = [path for path in list_places(record) if path]
    path = places[rng.integers(len(places))]
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    kind, value = rng.integers(8), VALUES[rng.integers(len(VALUES))]
    if kind == 0:
        del inner[path[-1]]
    elif kind == 1 and isinstance(inner, dict):
        inner["more"] = value
    else:
        inner[path[-1]] = value
    if file.name == MANIFEST:
        record = seal_record(record)
    file.write_text(json.dumps(record))
    if file.name == METADATA and isinstance(record.get("attributes"), dict):
        seal_metadata(file)
    return path, value


def exchange(files, rng):
    """Put one file in the place of another, or something that is none there."""
    file, other = (files[i] for i in rng.choice(len(files), 2, replace=False))
    content, kind = other.read_bytes(), rng.integers(6)
    file.unlink()
    if kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to("/dev/zero")
    elif kind == 3:
        file.symlink_to(other)
    elif kind == 4:
        file.mkdir()
    elif kind == 5:
        file.write_bytes(content)
    return kind, other


@pytest.mark.parametrize("number", [8, pytest.param(600, marks=pytest.mark.slow)])
def test_no_content_of_files_ends_a_reader_but_by_one_line(settings, tmp_path, number):
    write_atlas(settings, tmp_path / "sound.zarr")
    expected, path = read_everything(tmp_path / "sound.zarr"), tmp_path / "atlas.zarr"
    rng, refused = np.random.default_rng(0), 0
    for _ in range(number):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "sound.zarr", path)
        files = all_files(path)
        records = [file for file in files if file.suffix == ".json"]
        edited = rng.random() < 0.7
        if edited:
            file = path / MANIFEST if rng.random() < 0.3 else records[rng.integers(len(records))]
            what = file, edit_json(file, rng)
        else:
            what = exchange(files, rng)
        with limits():
            found = outcome(lambda: read_everything(path))
            checked = outcome(lambda: verify_atlas(path, report=silent))
            grown = outcome(lambda: write_atlas(settings, path, append=True))
        refused += is_refused(found)
        # What the manifest says of licences and sizes is believed when it has the checksum of that.
        assert is_refused(checked) or same(found, expected) or what[0] == path / MANIFEST, what
        assert is_refused(grown), what
    assert refused > number // 4
