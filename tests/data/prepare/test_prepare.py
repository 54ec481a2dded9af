"""`sf.prepare` makes the atlas of the command, of files, a YAML file or a config."""

from pathlib import Path

import h5py
import pytest
import yaml
from make_files import make_rna

import scfusion_fm as sf


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for path in paths:
        make_rna().write_h5ad(path)
    return paths


def test_files_are_enough(files, tmp_path):
    atlas = sf.prepare(files, tmp_path / "atlas.zarr", genes="sources", obs_columns=["batch"], split={"seed": 3})
    assert isinstance(atlas, sf.Atlas)
    assert [source["name"] for source in atlas.manifest["sources"]] == ["a", "b"]
    assert len(atlas) == 14
    assert atlas.manifest["recipe"]["split"]["seed"] == 3


def test_a_yaml_file_a_config_and_keywords_give_the_same_atlas(files, tmp_path):
    settings = {"output": str(tmp_path / "a.zarr"), "genes": "sources", "sources": [{"path": str(f)} for f in files]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(settings))
    config = sf.PrepareConfig(tmp_path / "b.zarr", [sf.SourceConfig(f) for f in files], genes="sources")
    atlases = [
        sf.prepare(tmp_path / "data.yaml"),
        sf.prepare(config),
        sf.prepare(config, tmp_path / "c.zarr", codec="zstd"),
        sf.prepare([str(files[0]), sf.SourceConfig(str(files[1]))], str(tmp_path / "d.zarr"), genes="sources"),
    ]
    assert len({atlas.fingerprint for atlas in atlases}) == 1
    assert [Path(atlas.path).name for atlas in atlases] == ["a.zarr", "b.zarr", "c.zarr", "d.zarr"]
    assert config == sf.PrepareConfig(tmp_path / "b.zarr", [sf.SourceConfig(f) for f in files], genes="sources")


def test_an_atlas_grows_and_batches_have_their_own_panels(files, tmp_path):
    path = tmp_path / "atlas.zarr"
    sf.prepare(files[0], path, genes="sources")
    assert len(sf.prepare(files, path, genes="sources", append=True)) == 14
    config = sf.PrepareConfig(path, [sf.SourceConfig(str(files[0]))])
    with pytest.raises(ValueError, match="donor"):
        sf.prepare(config, tmp_path / "c.zarr", batch_key="donor")


def test_arguments_are_checked_as_settings_are(files, tmp_path):
    for wrong, told in (
        ({"genez": "sources"}, "Unknown setting `genez` in the arguments. Did you mean genes"),
        ({"workers": "many"}, "In the arguments: Value 'many'"),
        ({"output": None}, "`output` must name the directory"),
    ):
        with pytest.raises(ValueError, match=told):
            sf.prepare(files, **{"output": tmp_path / "atlas.zarr"} | wrong)
    with pytest.raises(ValueError, match="`sources` must hold paths or SourceConfig, got AnnData"):
        sf.prepare([make_rna()], tmp_path / "atlas.zarr")
    with pytest.raises(ValueError, match="`sources` must be paths of files"):
        sf.prepare(make_rna(), tmp_path / "atlas.zarr")
    assert not (tmp_path / "atlas.zarr").exists()


def test_a_refused_file_leaves_nothing_and_does_not_stand_in_the_way_of_its_better_copy(files, tmp_path):
    good = files[0].read_bytes()
    with h5py.File(files[0], "r+") as file:
        file["X/indices"][-1] = 99
    with pytest.raises(ValueError, match="must be a valid sparse matrix"):
        sf.prepare(files[0], tmp_path / "atlas.zarr", genes="sources")
    assert {path.name for path in tmp_path.iterdir()} == {"a.h5ad", "b.h5ad"}
    files[0].write_bytes(good)
    assert len(sf.prepare(files[0], tmp_path / "atlas.zarr", genes="sources")) == 7
