"""Files of a checkpoint: any cut can be read from any other, and what is damaged or half written is not used."""

import json
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_damage import DAMAGES, all_files, find_silent
from safetensors.torch import load_file

from scfusion_fm.records import seal_record
from scfusion_fm.training.checkpoint import (
    KEYS,
    MANIFEST,
    Checkpoint,
    Fragment,
    complete_checkpoints,
    newest_checkpoint,
    prune,
    publish,
    remove_leftovers,
    start_checkpoint,
    write_rank,
)

SHAPES = {"a.weight": torch.Size((3, 5)), "a:odd": torch.Size((7,)), "b": torch.Size((1,))}


def values(name):
    """Three different tensors for a parameter."""
    rng = np.random.default_rng(sorted(SHAPES).index(name))
    return {key: torch.from_numpy(rng.normal(size=SHAPES[name].numel()).astype(np.float32)) for key in KEYS}


def write(checkpoints, step=3, cuts=(0.4, 0.7)):
    """Cut every parameter at the same shares of its length, one piece per rank."""
    scratch = start_checkpoint(checkpoints, step)
    files = []
    for rank, (low, high) in enumerate(zip((0.0, *cuts), (*cuts, 1.0), strict=True)):
        fragments = []
        for name, shape in SHAPES.items():
            start, stop = round(low * shape.numel()), round(high * shape.numel())
            fragments.append(Fragment(name, start, {k: v[start:stop] for k, v in values(name).items()}))
        files.append(write_rank(scratch, rank, fragments))
    return Checkpoint(publish(scratch, {"step": step, "state": {"cells": 48}, "files": files}))


@pytest.fixture
def checkpoints(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run") / "checkpoints")


@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_any_run_of_elements_can_be_read(written, name, data):
    size = SHAPES[name].numel()
    start = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - start))
    for key in KEYS:
        assert torch.equal(written.read(key, name, start, length), values(name)[key][start : start + length])


def test_weights_have_their_shapes(written):
    weights = written.weights(SHAPES)
    for name, shape in SHAPES.items():
        assert torch.equal(weights[name], values(name)["fp32"].view(shape))


def test_fragments_of_another_cut_are_restored(written):
    live = Fragment("a.weight", 4, {key: torch.zeros(9) for key in KEYS})
    written.restore([live])
    for key in KEYS:
        assert torch.equal(live.values[key], values("a.weight")[key][4:13])


def test_files_are_safetensors_for_everybody(written):
    tensors = load_file(written.directory / "rank_00001.safetensors")
    assert torch.equal(tensors["exp_avg:6:a.weight"], values("a.weight")["exp_avg"][6:10])


def test_checkpoint_of_another_model_is_refused(written):
    with pytest.raises(ValueError, match=r"must be of this model, got one that differs in \['b', 'c'\]"):
        written.weights({**{k: v for k, v in SHAPES.items() if k != "b"}, "c": torch.Size((2,))})
    with pytest.raises(ValueError, match="must hold elements 0 to 8 of fp32 of 'a:odd', got 7 of them"):
        written.weights(SHAPES | {"a:odd": torch.Size((8,))})


def test_checkpoint_appears_only_when_it_is_complete(checkpoints):
    scratch = start_checkpoint(checkpoints, 3)
    record = write_rank(scratch, 0, [])
    assert complete_checkpoints(checkpoints) == []
    final = publish(scratch, {"step": 3, "files": [record]})
    assert complete_checkpoints(checkpoints) == [final]
    assert Checkpoint(final).damage() is None


def test_unfinished_and_half_removed_checkpoints_are_cleaned_up(checkpoints):
    kept = write(checkpoints, 1).directory
    start_checkpoint(checkpoints, 2)
    write(checkpoints, 4).directory.rename(checkpoints / "step_00000004.removed")
    assert complete_checkpoints(checkpoints) == [kept]
    remove_leftovers(checkpoints)
    assert list(checkpoints.iterdir()) == [kept]


def test_old_checkpoints_are_pruned_by_rule(checkpoints):
    for step in range(1, 8):
        write(checkpoints, step)
    prune(checkpoints, 7, keep=2, keep_every=3)
    assert [d.name for d in complete_checkpoints(checkpoints)] == [f"step_0000000{s}" for s in (3, 6, 7)]
    prune(checkpoints, 7, keep=1, keep_every=0)
    assert [d.name for d in checkpoints.iterdir()] == ["step_00000007"]


def test_what_was_just_written_stays_when_a_later_one_is_damaged(checkpoints):
    for step in (12, 13, 14):
        write(checkpoints, step)
    prune(checkpoints, 13, keep=1, keep_every=0)
    assert [d.name for d in complete_checkpoints(checkpoints)] == ["step_00000013", "step_00000014"]


def test_checkpoint_of_the_same_step_takes_the_place_of_a_damaged_one(checkpoints):
    old = write(checkpoints)
    (old.directory / "rank_00000.safetensors").write_bytes(b"")
    assert write(checkpoints).damage() is None
    assert [d.name for d in checkpoints.iterdir()] == ["step_00000003"]


def spoil_missing(path):
    path.unlink()
    return "rank_00001.safetensors is missing"


def spoil_short(path):
    path.write_bytes(path.read_bytes()[:-1])
    return r"rank_00001.safetensors has \d+ instead of \d+ bytes"


def spoil_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "rank_00001.safetensors does not have the checksum"


def spoil_manifest(path):
    (path.parent / MANIFEST).write_text("{")
    return "manifest.json cannot be read"


def spoil_digit(path):
    manifest = path.parent / MANIFEST
    manifest.write_text(manifest.read_text().replace('"cells": 48', '"cells": 58'))
    return "manifest.json does not have its checksum"


def spoil_kind(path):
    (path.parent / MANIFEST).write_text("[]")
    return "manifest.json cannot be read: must be a JSON object"


def edit(path, **changes):
    """Change a manifest, with the checksum of what it says then; None removes an entry."""
    manifest = json.loads((path.parent / MANIFEST).read_text()) | changes
    left = {key: value for key, value in manifest.items() if value is not None}
    (path.parent / MANIFEST).write_text(json.dumps(seal_record(left)))


def spoil_version(path):
    edit(path, format_version=2)
    return "manifest.json is of format 2, where 1 is read"


def spoil_step(path):
    edit(path, step=4)
    return "manifest.json is that of step 4"


def spoil_absence(path):
    edit(path, files=None)
    return "manifest.json cannot be read: `content` must have a field 'files', got none"


def spoil_type(path):
    edit(path, files=[{"file": 1}])
    return "manifest.json cannot be read: `files.file` must be text of at most 4096 characters, got 1"


def spoil_place(path):
    edit(path, files=[{"file": "../rank_00000.safetensors", "bytes": 1, "crc32c": ""}])
    return "manifest.json names the file '../rank_00000.safetensors'"


SPOIL = [spoil_missing, spoil_short, spoil_bit, spoil_manifest, spoil_digit, spoil_kind]
SPOIL += [spoil_version, spoil_step, spoil_absence, spoil_type, spoil_place]


@pytest.mark.parametrize("spoil", SPOIL, ids=lambda s: s.__name__)
def test_damage_is_found(checkpoints, spoil):
    message = spoil(write(checkpoints).directory / "rank_00001.safetensors")
    with pytest.raises(ValueError, match=message):
        newest_checkpoint(checkpoints)


def test_checkpoint_of_a_step_can_be_asked_for(checkpoints):
    with pytest.raises(ValueError, match="`run` must hold a checkpoint, got"):
        newest_checkpoint(checkpoints)
    write(checkpoints, 1), write(checkpoints, 12)
    assert newest_checkpoint(checkpoints).directory.name == "step_00000012"
    assert newest_checkpoint(checkpoints, 1).manifest == json.loads(
        (checkpoints / "step_00000001" / MANIFEST).read_text()
    )
    with pytest.raises(ValueError, match="must hold a checkpoint of step 2"):
        newest_checkpoint(checkpoints, 2)


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_damage_to_any_file_is_found(checkpoints, times):
    directory = write(checkpoints).directory

    def read():
        found = newest_checkpoint(checkpoints)
        return found.manifest | {"weights": {name: w.tolist() for name, w in found.weights(SHAPES).items()}}

    assert find_silent(all_files(directory), DAMAGES * times, read, operator.eq) == []
