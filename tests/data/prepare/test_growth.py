"""Growing an atlas: the one written at once, the old cells at every moment, and what must not be mixed."""

import json
import shutil

import anndata as ad
import numpy as np
import pytest
from make_atlas import Killed, content, files, kill_after, plan_atlas, same, silent, write_atlas
from make_cells import make_modalities
from make_damage import flip_bit

from scfusion_fm.config.prepare import SourceConfig
from scfusion_fm.data.atlas.atlas import Atlas, verify_atlas
from scfusion_fm.data.atlas.manifest import MANIFEST, read_manifest
from scfusion_fm.data.prepare import job as prepare
from scfusion_fm.data.prepare import merge, store

pytestmark = pytest.mark.usefixtures("small_pieces")

REFUSED = r"must (be as it was written|be of format|have its checksum|be complete JSON|be UTF-8|be a JSON|name each)"


def test_a_grown_atlas_is_the_one_written_at_once(settings, sources, tmp_path):
    write_atlas(settings, tmp_path / "whole.zarr")
    output = tmp_path / "atlas.zarr"
    settings.sources = sources[:1]
    write_atlas(settings, output)
    first = files(output)
    for number in (2, 3):
        settings.sources = sources[:number]
        write_atlas(settings, output, append=True)
        verify_atlas(output, report=silent)
    assert Atlas(output).fingerprint == Atlas(tmp_path / "whole.zarr").fingerprint
    assert same(content(output), content(tmp_path / "whole.zarr"))
    manifest, whole = read_manifest(output), read_manifest(tmp_path / "whole.zarr")
    assert [s["name"] for s in manifest["sources"]] == ["a", "b", "c"]
    assert (
        manifest["cells_per_split"]
        == whole["cells_per_split"]
        == ad.read_zarr(output).obs["split"].value_counts().to_dict()
    )
    last = files(output)
    shards = [name for name in first if name.startswith(("X/data/c", "X/indices/c", "obsm/adt/c"))]
    unchanged = [name for name in shards if first[name] == last[name]]
    assert len(unchanged) >= len(shards) - 3  # the last one of each array was not full
    with pytest.raises(ValueError, match="`sources` must name data sets that the atlas lacks"):
        write_atlas(settings, output, append=True)


@pytest.mark.parametrize("every", [20, pytest.param(7, marks=pytest.mark.slow)])
def test_a_growing_atlas_holds_the_old_cells_at_every_moment(settings, sources, tmp_path, monkeypatch, every):
    write_atlas(settings, tmp_path / "whole.zarr")
    output = tmp_path / "atlas.zarr"
    settings.sources = sources[:2]
    write_atlas(settings, output)
    expected, rows = Atlas(output).read(np.arange(250)), np.arange(250)
    settings.sources = sources
    number = 0
    while True:
        with monkeypatch.context() as patch:
            kill_after(patch, merge, "_replace", number)
            try:
                write_atlas(settings, output, append=True)
                break
            except Killed:
                number += every
        atlas = Atlas(output)
        assert len(atlas) == 250
        found = atlas.read(rows)
        assert np.array_equal(found.rna, expected.rna)
        assert np.array_equal(found.adt, expected.adt)
        assert np.array_equal(found.rna_observed, expected.rna_observed)
        assert ad.read_zarr(output).n_obs in (250, 420)
    assert number > 20
    assert same(content(output), content(tmp_path / "whole.zarr"))


def test_an_open_atlas_goes_on_reading_while_it_grows(settings, sources, tmp_path):
    settings.sources = sources[:2]
    write_atlas(settings, tmp_path / "atlas.zarr")
    atlas, rows = Atlas(tmp_path / "atlas.zarr"), np.arange(250)
    expected = atlas.read(rows)
    settings.sources = sources
    write_atlas(settings, tmp_path / "atlas.zarr", append=True)
    found = atlas.read(rows)
    assert np.array_equal(found.rna, expected.rna)
    assert np.array_equal(found.adt, expected.adt)


def give_up_growing(settings, output, monkeypatch, number: int) -> bool:
    """Kill an append after some files were published, and remove its work; tell whether there were as many."""
    with monkeypatch.context() as patch:
        kill_after(patch, merge, "_replace", number)
        try:
            write_atlas(settings, output, append=True)
            return False
        except Killed:
            shutil.rmtree(output.parent / f".{output.name}.work")
            return True


@pytest.mark.parametrize("every", [40, pytest.param(12, marks=pytest.mark.slow)])
def test_growth_that_was_given_up_leaves_nothing_in_the_next_one(settings, sources, tmp_path, monkeypatch, every):
    settings.sources = [sources[0], sources[1]]
    write_atlas(settings, tmp_path / "whole.zarr")
    settings.sources = sources[:1]
    write_atlas(settings, tmp_path / "first.zarr")
    number, reached = 3, True
    while reached:
        output = tmp_path / f"{number}.zarr"
        shutil.copytree(tmp_path / "first.zarr", output)
        settings.sources = [sources[0], sources[2]]
        reached = give_up_growing(settings, output, monkeypatch, number)
        if reached:
            settings.sources = [sources[0], sources[1]]
            write_atlas(settings, output, append=True)
            verify_atlas(output, report=silent)
            assert same(content(output), content(tmp_path / "whole.zarr")), number
            assert read_manifest(output)["fingerprint"] == read_manifest(tmp_path / "whole.zarr")["fingerprint"]
        number += every
    assert number > 40


def test_two_growths_from_other_working_directories_are_not_mixed(settings, sources, tmp_path):
    settings.sources = sources[:1]
    write_atlas(settings, tmp_path / "atlas.zarr")
    settings.sources = sources[:2]
    slow = plan_atlas(settings, tmp_path / "atlas.zarr", work_dir=tmp_path / "slow", append=True)
    slow.write_pieces()
    write_atlas(settings, tmp_path / "atlas.zarr", work_dir=tmp_path / "fast", append=True)
    with pytest.raises(ValueError, match="has changed since this work was planned"):
        slow.merge()
    assert [s["name"] for s in read_manifest(tmp_path / "atlas.zarr")["sources"]] == ["a", "b"]
    with prepare._lock_atlas(str(tmp_path / "atlas.zarr"), True):
        settings.sources = sources
        with pytest.raises(ValueError, match="is being written by another process"):
            write_atlas(settings, tmp_path / "atlas.zarr", append=True)


def test_growth_by_other_rules_is_refused(settings, sources, tmp_path):
    settings.sources = sources[:1]
    with pytest.raises(ValueError, match="`atlas` must be a directory that `scfusion prepare` wrote"):
        write_atlas(settings, tmp_path / "atlas.zarr", append=True)
    write_atlas(settings, tmp_path / "atlas.zarr")
    settings.sources, settings.seed = sources, 5
    with pytest.raises(ValueError, match=r"`--append` must keep the settings of the atlas, got {'seed': '0 -> 5'}"):
        write_atlas(settings, tmp_path / "atlas.zarr", append=True)


def test_growth_beyond_the_type_of_the_counts_is_refused(settings, sources, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X.data[0] = 70_000
    rna.write_h5ad(tmp_path / "big.h5ad")
    write_atlas(settings, tmp_path / "atlas.zarr")
    before = files(tmp_path / "atlas.zarr")
    settings.sources = [*sources, SourceConfig(tmp_path / "big.h5ad", "big", modality="rna")]
    with pytest.raises(ValueError, match=r"`--append` must add rna counts up to 65,535, .* got 70,000"):
        write_atlas(settings, tmp_path / "atlas.zarr", append=True)
    assert files(tmp_path / "atlas.zarr") == before


def test_an_atlas_from_before_checksums_is_read_and_gets_a_seal_when_it_grows(settings, sources, tmp_path, monkeypatch):
    settings.genes, settings.sources, output = "sources", sources[:1], tmp_path / "atlas.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(merge, "FORMAT_VERSION", 2)
        patch.setattr(merge, "format_manifest", json.dumps)
        patch.setattr(store, "seal_metadata", lambda file: None)
        patch.setattr(store, "CHECKSUM", ())
        patch.setattr(store, "EVERY_CHUNK", {})
        write_atlas(settings, output)
    assert "crc32c" not in (output / "obs/split/codes/zarr.json").read_text() + (output / MANIFEST).read_text()
    before = Atlas(output).read(np.arange(110))
    settings.sources = sources[:2]
    write_atlas(settings, output, append=True)
    verify_atlas(output, report=silent)
    manifest = read_manifest(output)
    assert (manifest["format_version"], manifest["num_cells"]) == (2, 250)
    assert "crc32c" in manifest
    after = Atlas(output).read(np.arange(110))
    assert np.array_equal(before.rna, after.rna)
    assert np.array_equal(before.adt, after.adt)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_growth_of_a_damaged_atlas_is_refused_before_anything_is_written(settings, sources, tmp_path, every):
    """What would be written anew, and so get a checksum that fits the damage."""
    settings.genes, settings.sources, output = "sources", sources[:1], tmp_path / "atlas.zarr"
    write_atlas(settings, output)
    before = files(output)
    settings.sources = sources[:2]
    rng = np.random.default_rng(0)
    ends = ("X/data/c", "X/indices/c", "obsm/adt/c", "X/indptr/c", "obs/_index/c", "obs/split/codes/c")
    last = [max((name for name in before if name.startswith(end)), key=lambda n: (len(n), n)) for end in ends]
    names = [name for name in before if name.endswith(".json") or "categories/c" in name or name in last]
    for name in sorted(names)[::every]:
        (output / name).write_bytes(flip_bit(before[name], rng))
        damaged = files(output)
        with pytest.raises(
            ValueError,
            match=REFUSED,
        ):
            write_atlas(settings, output, append=True)
        assert files(output) == damaged
        assert not (tmp_path / ".atlas.zarr.work").exists()
        (output / name).write_bytes(before[name])
