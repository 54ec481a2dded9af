"""A damaged or edited atlas is refused, or read as if it were sound."""

import json
import os
import shutil

import google_crc32c
import numpy as np
import pytest
from make_atlas import files, read_everything, same, silent, write_atlas
from make_cells import write_h5mu
from make_damage import DAMAGES, all_files, find_silent, flip_bit, is_refused, outcome

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.atlas.atlas import Atlas, verify_atlas
from scfusion_fm.data.atlas.manifest import MANIFEST, format_manifest, read_manifest
from scfusion_fm.data.inspect.summary import summarise_atlas


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    directory = tmp_path_factory.mktemp("damage")
    sources = [SourceConfig(write_h5mu(directory / f"{name}.h5mu", 60, seed=i), name) for i, name in enumerate("abc")]
    return PrepareConfig(directory / "atlas.zarr", sources, "sources", "sources", obs_columns=["donor"])


@pytest.fixture(scope="module")
def sound(settings):
    write_atlas(settings, settings.output)
    return settings.output


@pytest.fixture
def atlas_path(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "atlas.zarr")


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_bit_or_a_cut_file_changes_nothing_silently(atlas_path, every):
    kinds = [atlas_path / MANIFEST, *(p for p in all_files(atlas_path) if p.name != MANIFEST)]
    damages = DAMAGES if every > 1 else DAMAGES * 5
    assert find_silent(kinds[::every], damages, lambda: read_everything(atlas_path), same) == []


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_verification_finds_every_flipped_bit(atlas_path, every):
    rng = np.random.default_rng(1)
    for file in all_files(atlas_path)[::every]:
        whole = file.read_bytes()
        file.write_bytes(flip_bit(whole, rng))
        assert is_refused(outcome(lambda: verify_atlas(atlas_path, report=silent))), file
        file.write_bytes(whole)
    verify_atlas(atlas_path, report=silent)


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_missing_file_changes_nothing_silently(atlas_path, every):
    expected = read_everything(atlas_path)
    for file in all_files(atlas_path)[::every]:
        whole = file.read_bytes()
        file.unlink()
        found = outcome(lambda: read_everything(atlas_path))
        assert is_refused(found) or same(found, expected), file
        file.write_bytes(whole)


REST = ("gene_symbols", "gene_chromosomes", "protein_names", "protein_gene_ids")


def edit_manifest(path, seal=True, **changes):
    """Change entries of a manifest, with the checksum of them or without any."""
    manifest = {k: v for k, v in read_manifest(path).items() if k != "crc32c"} | changes
    (path / MANIFEST).write_text(format_manifest(manifest) if seal else json.dumps(manifest))


def test_an_edited_manifest_is_refused_by_all_readers(atlas_path, settings):
    text = (atlas_path / MANIFEST).read_text()
    (atlas_path / MANIFEST).write_text(text.replace('"num_cells": 180', '"num_cells": 5'))
    before = files(atlas_path)
    for read in (Atlas, verify_atlas, summarise_atlas, lambda path: write_atlas(settings, path, append=True)):
        with pytest.raises(ValueError, match=r"`manifest.json` of the atlas .* must have its checksum, got another"):
            read(atlas_path)
    assert files(atlas_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_cells": "180"}, "`num_cells` must be a whole number from 0 to .*, got '180'"),
        ({"num_cells": -1}, "`num_cells` must be a whole number from 0 to .*, got -1"),
        ({"num_cells": 10**12}, "`num_cells` must be 180, as the rest of the manifest has it, got 1000000000000"),
        ({"files": []}, r"`files` must be an object with at most .*, got \[\]"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, r"paths inside of the atlas .*, got '../x'"),
        ({"files": {"x": {"bytes": 1, "sha256": "0"}}}, r"`files` must have paths inside of the atlas"),
        ({"sources": [{"name": "a"}]}, "`sources` must have a field 'cells', got none"),
        ({"extra": 1}, r"`content` must have no unknown field, got \['extra'\]"),
        ({"vocabulary": {"gene_ids": []}}, r"`vocabulary` must have \['gene_ids'"),
        ({"vocabulary": {"gene_ids": 5} | {name: [] for name in REST}}, "`vocabulary` must hold lists of text"),
        ({"types": {"rna": "uint16"}}, "`types` must name one of"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(atlas_path, changes, message):
    edit_manifest(atlas_path, **changes)
    with pytest.raises(ValueError, match=message):
        Atlas(atlas_path)


def test_names_of_data_sets_must_differ(atlas_path):
    sources = read_manifest(atlas_path)["sources"]
    edit_manifest(atlas_path, sources=[*sources[:2], sources[2] | {"name": "a"}])
    with pytest.raises(ValueError, match="`sources` must have different names"):
        Atlas(atlas_path)


def test_a_manifest_of_another_atlas_is_refused(atlas_path):
    sources, number = read_manifest(atlas_path)["sources"], 10**12
    grown = [source | {"cells": number} for source in sources]
    edit_manifest(atlas_path, num_cells=3 * number, sources=grown, cells_per_split={"train": 3 * number})
    with pytest.raises(ValueError, match=r"`obsm/adt` must have the shape \(3000000000000, 5\) that the manifest"):
        Atlas(atlas_path)
    moved = [source | {"cells": cells} for source, cells in zip(sources, (59, 60, 61), strict=True)]
    edit_manifest(atlas_path, num_cells=180, sources=moved, cells_per_split={"train": 180})
    with pytest.raises(ValueError, match="`obs/dataset` must have the data sets and cells of the manifest"):
        Atlas(atlas_path)


def test_what_cannot_be_read_as_json_is_named(atlas_path):
    for content, message in (
        (b"[" * 10**5, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b"\xff", "must be UTF-8"),
    ):
        for name in (MANIFEST, "zarr.json", "X/data/zarr.json"):
            whole = (atlas_path / name).read_bytes()
            (atlas_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"`{name}` .*{message}"):
                Atlas(atlas_path)
            (atlas_path / name).write_bytes(whole)


def test_pipes_and_links_are_refused(atlas_path, tmp_path):
    shard, text = atlas_path / "X/indptr/c/0", atlas_path / "obs/split/codes/c"
    (tmp_path / "elsewhere").write_bytes(shard.read_bytes())
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(ValueError, match="`X/indptr/c/0` must be a plain file of the store"):
        Atlas(atlas_path)
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="`X/indptr/c/0` must be a file of the store that can be read"):
        Atlas(atlas_path)
    shard.unlink()
    shutil.copy(tmp_path / "elsewhere", shard)
    text.rename(tmp_path / "c")
    text.symlink_to(tmp_path / "c")
    with pytest.raises(ValueError, match="`obs/split/codes/c` must lie in the store, got a link"):
        Atlas(atlas_path)


def test_huge_files_are_not_read(atlas_path):
    """Files with holes take no space."""
    for name, message in (
        (MANIFEST, "must be a directory that `scfusion prepare` wrote"),
        ("zarr.json", r"`zarr.json` must be in the zarr v3 store, got one of more than"),
        ("X/indptr/zarr.json", r"`X/indptr/zarr.json` must be in the zarr v3 store, got one of more than"),
        ("X/indptr/c/0", "cannot be decoded|damaged index"),
        ("obs/split/codes/c/0", "cannot be decoded"),
        ("obs/split/categories/c/0", "`obs/split/categories` must be as it was written, got: .* of a size that no"),
    ):
        whole = (atlas_path / name).read_bytes()
        os.truncate(atlas_path / name, 2**40)
        with pytest.raises(ValueError, match=message):
            Atlas(atlas_path)
        (atlas_path / name).write_bytes(whole)


def test_an_index_of_impossible_sizes_is_refused(atlas_path):
    shard = atlas_path / "X/indptr/c/0"
    whole = shard.read_bytes()
    start = len(whole) - 4 - 16 * 64
    index = np.frombuffer(whole[start:-4], "<u8").copy()
    index[1] = 2**40
    data = index.tobytes()
    shard.write_bytes(whole[:start] + data + google_crc32c.value(data).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="Chunk 0 of `X/indptr` lies in a shard with wrong sizes"):
        Atlas(atlas_path)
