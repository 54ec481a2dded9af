"""Preparing an atlas: the same for any workers, interruptions and ways; growing; what must not be mixed."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import distributed
import fsspec
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import zarr
from launch import ENVIRONMENT, ROOT, run
from make_cells import make_modalities, write_h5mu
from moto.server import ThreadedMotoServer

from scfusion_fm.cli.main import main
from scfusion_fm.data import engines
from scfusion_fm.data.atlas.atlas import MANIFEST, Atlas, read_manifest, verify_atlas
from scfusion_fm.data.engines import Engine
from scfusion_fm.data.prepare import job as prepare
from scfusion_fm.data.prepare import merge, pieces, store
from scfusion_fm.data.prepare.job import AtlasJob, prepare_atlas
from scfusion_fm.data.prepare.recipe import AtlasRecipe, Source, SplitRule


def silent(line: str) -> None:
    """Report to nobody."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Let a few hundred cells make many pieces, chunks and shards."""
    monkeypatch.setattr(pieces, "CHUNK_ROWS", 8)
    monkeypatch.setattr(pieces, "PIECE_ROWS", 32)
    monkeypatch.setattr(merge, "MIN_CHUNK_VALUES", 16)
    monkeypatch.setattr(merge, "CHUNK_ROWS", 2)
    monkeypatch.setattr(store, "CHUNKS_PER_SHARD", 8)
    monkeypatch.setattr(store, "BLOCK_ROWS", 4)
    monkeypatch.setattr(store, "COLUMN_CHUNK", 50)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    paths = [write_h5mu(tmp_path / f"{name}.h5mu", 110 + 30 * i, seed=i) for i, name in enumerate("abc")]
    return [Source(path, path.stem, licence="CC0") for path in paths]


@pytest.fixture
def recipe(sources: list[Source]) -> AtlasRecipe:
    return AtlasRecipe(sources, obs_columns=["donor", "cell_type"])


def content(path: Path) -> dict:
    """Read all that an atlas holds."""
    adata = ad.read_zarr(path)
    return {
        "X": adata.X.toarray(),
        "adt": adata.obsm["adt"],
        "obs": adata.obs.to_csv(),
        "var": adata.var.to_csv(),
        "panels": adata.varm["rna_panel"],
        "adt_panel": adata.uns["adt"]["panel"],
    }


def same(left: dict, right: dict) -> bool:
    return all(np.array_equal(left[key], right[key]) for key in left)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_cells_are_those_of_the_files(recipe: AtlasRecipe, tmp_path: Path):
    recipe.genes = "sources"
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    adata = ad.read_zarr(tmp_path / "atlas.zarr")
    for i, name in enumerate("abc"):
        rna, adt = make_modalities(110 + 30 * i, i)
        mine = adata[[f"{name}:{cell}" for cell in rna.obs_names]]
        genes = [list(adata.var["symbol"]).index(gene) for gene in rna.var_names]
        assert np.array_equal(mine.X[:, genes].toarray(), rna.X.toarray())
        assert mine.X.sum() == rna.X.sum()
        assert mine.obsm["adt"].sum() == adt.X.sum()
        assert list(mine.obs["donor"]) == list(rna.obs["donor"])
        assert np.array_equal(mine.obs["rna_total_counts"], np.asarray(rna.X.sum(1)).ravel())


def test_pieces_are_small_and_random_and_cover_the_source(recipe: AtlasRecipe, tmp_path: Path):
    job = AtlasJob(recipe, tmp_path / "atlas.zarr", report=silent)
    job.plan()
    source = pieces.load_source(job.work, 2)
    chunks = [source.chunks_of(p) for p in range(source.num_pieces)]
    assert sorted(np.concatenate(chunks)) == list(range(source.num_chunks))
    assert max(len(c) for c in chunks) * 8 <= 32
    assert any((np.diff(c) > 1).any() for c in chunks)


@pytest.mark.parametrize("shape", [(3, 4), (0,), (5, 0)])
def test_saved_arrays_are_those_of_numpy(tmp_path: Path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    pieces.save_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_a_full_disk_is_told_as_such():
    with pytest.raises(OSError, match="No space left on device"):
        pieces.save_array(Path("/dev/full"), np.zeros(10))


def test_scanpy_uses_an_atlas(recipe: AtlasRecipe, tmp_path: Path):
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    adata = ad.read_zarr(tmp_path / "atlas.zarr")
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    expected = sp.csr_matrix(adata.X, dtype=np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    totals = np.asarray(expected.sum(1))
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(expected.toarray() / totals * 1e4), rtol=1e-5)
    sc.pp.pca(adata, n_comps=3)
    assert adata.obsm["X_pca"].shape == (420, 3)


def test_arrays_are_sharded_and_compact(recipe: AtlasRecipe, tmp_path: Path):
    recipe.codec = "zstd"
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    root = zarr.open_group(tmp_path / "atlas.zarr", mode="r")
    for name in ("X/data", "X/indices", "obsm/adt"):
        array = root[name]
        assert array.dtype == np.uint16
        assert array.shards[0] == 8 * array.chunks[0] < array.shape[0]
        assert array.compressors[0].cname.value == "zstd"


@pytest.mark.slow
def test_atlas_does_not_depend_on_workers(recipe: AtlasRecipe, tmp_path: Path, monkeypatch):
    monkeypatch.undo()  # workers are processes of their own
    monkeypatch.setattr(pieces, "CHUNK_ROWS", 256)
    prepare_atlas(recipe, tmp_path / "one.zarr", report=silent)
    prepare_atlas(recipe, tmp_path / "two.zarr", Engine(workers=2), report=silent)
    assert files(tmp_path / "one.zarr") == files(tmp_path / "two.zarr")


class Killed(BaseException):
    """Ends the process at a place that a test chooses."""


def kill_after(monkeypatch, module, name: str, number: int) -> None:
    """Let a function be called so often, and then end the process before it does anything."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        if len(calls) == number:
            raise Killed
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize(
    ("module", "name", "numbers"),
    [
        (prepare, "save_source", (0, 2)),
        (prepare, "write_piece", (0, 1, 7)),
        (pieces, "_record", (0, 3)),
        (prepare, "stage_store", (0,)),
        (merge, "grow_store", (0,)),
        (store, "_append_categories", (0, 2)),
        (prepare, "write_shard", (0, 1, 5)),
        (prepare, "consolidate", (0,)),
        (prepare, "build_manifest", (0,)),
        (prepare, "publish", (0,)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_interrupted_run_goes_on(recipe, tmp_path, monkeypatch, module, name, numbers):
    prepare_atlas(recipe, tmp_path / "whole.zarr", report=silent)
    output = tmp_path / "atlas.zarr"
    for number in numbers:
        with monkeypatch.context() as patch:
            kill_after(patch, module, name, number)
            with pytest.raises(Killed):
                prepare_atlas(recipe, output, report=silent)
        assert not output.exists()
    prepare_atlas(recipe, output, report=silent)
    assert files(output) == files(tmp_path / "whole.zarr")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_was_done_is_not_done_again(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, prepare, "write_piece", 5)
        with pytest.raises(Killed):
            prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    lines, written = [], []
    monkeypatch.setattr(prepare, "write_piece", lambda task: written.append(task) or pieces.write_piece(task))
    monkeypatch.setattr(prepare, "survey_source", None)
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=lines.append)
    there, total = re.search(r"pieces: (\d+) of (\d+) are there already", "\n".join(lines)).groups()
    assert int(there) == 5
    assert len(written) == int(total) - 5


def test_a_kill_after_publication_leaves_a_finished_atlas(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, prepare.shutil, "rmtree", 1)  # the first one clears the way for the store
        with pytest.raises(Killed):
            prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    before, lines = files(tmp_path / "atlas.zarr"), []
    manifest = prepare_atlas(recipe, tmp_path / "atlas.zarr", report=lines.append)
    assert manifest["num_cells"] == 420
    assert lines == [f"{tmp_path}/atlas.zarr was finished before"]
    assert files(tmp_path / "atlas.zarr") == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_unfinished_work_is_not_mixed_with_another_recipe_or_file(recipe, sources, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, prepare, "write_piece", 2)
        with pytest.raises(Killed):
            prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    other = AtlasRecipe(sources, obs_columns=["donor"])
    with pytest.raises(ValueError, match="has unfinished work of another recipe, or of sources that have changed"):
        prepare_atlas(other, tmp_path / "atlas.zarr", report=silent)
    write_h5mu(tmp_path / "new.h5mu", 90, seed=9).replace(sources[1].path)
    with pytest.raises(ValueError, match="has unfinished work of another recipe, or of sources that have changed"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    shutil.rmtree(tmp_path / ".atlas.zarr.work")
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)


def test_tasks_and_merge_make_the_same_atlas(recipe, tmp_path):
    prepare_atlas(recipe, tmp_path / "whole.zarr", report=silent)
    output = tmp_path / "atlas.zarr"
    for share in ((1, 3), (0, 3)):
        job = AtlasJob(recipe, output, report=silent)
        job.plan()
        job.write_pieces(share)
    with pytest.raises(ValueError, match=r"`--merge` needs all pieces, got \d+ missing, such as 0000-000002"):
        job.merge()
    job = AtlasJob(recipe, output, report=silent)
    job.plan()
    job.write_pieces((2, 3))
    job.merge()
    assert files(output) == files(tmp_path / "whole.zarr")


def test_two_processes_do_not_merge_at_once(recipe, tmp_path):
    job = AtlasJob(recipe, tmp_path / "atlas.zarr", report=silent)
    job.plan()
    other = AtlasJob(recipe, tmp_path / "atlas.zarr", report=silent)
    other.plan()
    with job._lock(shared=False), pytest.raises(ValueError, match="is being written by another process"):
        other.write_pieces()
    with job._lock(shared=True):
        other.write_pieces((0, 2))


def test_a_grown_atlas_is_the_one_written_at_once(recipe, sources, tmp_path):
    prepare_atlas(recipe, tmp_path / "whole.zarr", report=silent)
    output = tmp_path / "atlas.zarr"
    recipe.sources = sources[:1]
    prepare_atlas(recipe, output, report=silent)
    first = files(output)
    for number in (2, 3):
        recipe.sources = sources[:number]
        prepare_atlas(recipe, output, append=True, report=silent)
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
        prepare_atlas(recipe, output, append=True, report=silent)


def test_a_growing_atlas_holds_the_old_cells_at_every_moment(recipe, sources, tmp_path, monkeypatch):
    prepare_atlas(recipe, tmp_path / "whole.zarr", report=silent)
    output = tmp_path / "atlas.zarr"
    recipe.sources = sources[:2]
    prepare_atlas(recipe, output, report=silent)
    expected, rows = Atlas(output).read(np.arange(250)), np.arange(250)
    recipe.sources = sources
    number = 0
    while True:
        with monkeypatch.context() as patch:
            kill_after(patch, merge, "_replace", number)
            try:
                prepare_atlas(recipe, output, append=True, report=silent)
                break
            except Killed:
                number += 7
        atlas = Atlas(output)
        assert len(atlas) == 250
        found = atlas.read(rows)
        assert np.array_equal(found.rna, expected.rna)
        assert np.array_equal(found.adt, expected.adt)
        assert np.array_equal(found.rna_observed, expected.rna_observed)
        assert ad.read_zarr(output).n_obs in (250, 420)
    assert number > 20
    assert same(content(output), content(tmp_path / "whole.zarr"))


def test_an_open_atlas_goes_on_reading_while_it_grows(recipe, sources, tmp_path):
    recipe.sources = sources[:2]
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    atlas, rows = Atlas(tmp_path / "atlas.zarr"), np.arange(250)
    expected = atlas.read(rows)
    recipe.sources = sources
    prepare_atlas(recipe, tmp_path / "atlas.zarr", append=True, report=silent)
    found = atlas.read(rows)
    assert np.array_equal(found.rna, expected.rna)
    assert np.array_equal(found.adt, expected.adt)


def give_up_growing(recipe, output, monkeypatch, number: int) -> bool:
    """Kill an append after some files were published, and remove its work; tell whether there were as many."""
    with monkeypatch.context() as patch:
        kill_after(patch, merge, "_replace", number)
        try:
            prepare_atlas(recipe, output, append=True, report=silent)
            return False
        except Killed:
            shutil.rmtree(output.parent / f".{output.name}.work")
            return True


def test_growth_that_was_given_up_leaves_nothing_in_the_next_one(recipe, sources, tmp_path, monkeypatch):
    recipe.sources = [sources[0], sources[1]]
    prepare_atlas(recipe, tmp_path / "whole.zarr", report=silent)
    recipe.sources = sources[:1]
    prepare_atlas(recipe, tmp_path / "first.zarr", report=silent)
    number, reached = 3, True
    while reached:
        output = tmp_path / f"{number}.zarr"
        shutil.copytree(tmp_path / "first.zarr", output)
        recipe.sources = [sources[0], sources[2]]
        reached = give_up_growing(recipe, output, monkeypatch, number)
        if reached:
            recipe.sources = [sources[0], sources[1]]
            prepare_atlas(recipe, output, append=True, report=silent)
            verify_atlas(output, report=silent)
            assert same(content(output), content(tmp_path / "whole.zarr")), number
            assert read_manifest(output)["fingerprint"] == read_manifest(tmp_path / "whole.zarr")["fingerprint"]
        number += 12
    assert number > 40


def test_two_growths_from_other_working_directories_are_not_mixed(recipe, sources, tmp_path):
    recipe.sources = sources[:1]
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    recipe.sources = sources[:2]
    slow = AtlasJob(recipe, tmp_path / "atlas.zarr", work=tmp_path / "slow", append=True, report=silent)
    slow.plan()
    slow.write_pieces()
    prepare_atlas(recipe, tmp_path / "atlas.zarr", work=tmp_path / "fast", append=True, report=silent)
    with pytest.raises(ValueError, match="has changed since this work was planned"):
        slow.merge()
    assert [s["name"] for s in read_manifest(tmp_path / "atlas.zarr")["sources"]] == ["a", "b"]
    with prepare._lock_atlas(str(tmp_path / "atlas.zarr"), True):
        recipe.sources = sources
        with pytest.raises(ValueError, match="is being written by another process"):
            prepare_atlas(recipe, tmp_path / "atlas.zarr", append=True, report=silent)


def test_a_working_directory_on_another_file_system(recipe, tmp_path, monkeypatch):
    prepare_atlas(recipe, tmp_path / "here.zarr", report=silent)
    rename = Path.rename

    def refuse_store(self, target):
        if self.name == "store":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_store)
    prepare_atlas(recipe, tmp_path / "new" / "there.zarr", work=tmp_path / "work", report=silent)
    assert files(tmp_path / "new" / "there.zarr") == files(tmp_path / "here.zarr")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["there.zarr"]


def test_a_working_directory_with_other_files_is_refused(recipe, tmp_path):
    with pytest.raises(
        ValueError, match=r"`work_dir` must be new, empty or that of unfinished work, got .* other files"
    ):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", work=tmp_path, report=silent)


def test_the_home_directory_is_found(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prepare_atlas(recipe, "~/atlas.zarr", report=silent)
    assert len(Atlas(tmp_path / "home" / "atlas.zarr")) == len(Atlas("~/atlas.zarr")) == 420


@pytest.mark.parametrize("columns", [["dataset"], ["split"], ["rna_present"], [""], ["donor", "donor"]])
def test_columns_that_every_atlas_has_are_refused(recipe, tmp_path, columns):
    recipe.obs_columns = columns
    with pytest.raises(ValueError, match="`obs_columns` must name each column once, and none that every atlas has"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)


def test_a_source_that_is_replaced_meanwhile_is_refused(recipe, sources, tmp_path):
    job = AtlasJob(recipe, tmp_path / "atlas.zarr", report=silent)
    job.plan()
    write_h5mu(tmp_path / "new.h5mu", 110, seed=5).replace(sources[0].path)
    with pytest.raises(ValueError, match="must stay as it is while it is read, got another file than was surveyed"):
        job.write_pieces()


def test_cells_without_a_group_are_told(recipe, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.obs.loc[rna.obs_names[:7], "donor"] = None
    rna.write_h5ad(tmp_path / "some.h5ad")
    recipe.sources = [Source(tmp_path / "some.h5ad", "some", modality="rna")]
    recipe.split = SplitRule(0.3, 0.3, 3, group_key="donor")
    with pytest.warns(UserWarning, match=r"some: 7 cells have no 'donor'"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)


def test_counts_of_the_first_gene_alone_can_be_read(tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X = sp.csr_matrix((np.full(40, 3.0, np.float32), np.zeros(40, int), np.arange(41)), shape=rna.shape)
    rna.var_names = [name if i else "CD3E" for i, name in enumerate(rna.var_names)]
    rna.write_h5ad(tmp_path / "one.h5ad")
    recipe = AtlasRecipe([Source(tmp_path / "one.h5ad", "one", modality="rna")], genes="sources")
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    assert Atlas(tmp_path / "atlas.zarr").read(np.arange(40)).rna.sum() == 120


def test_growth_by_other_rules_is_refused(recipe, sources, tmp_path):
    recipe.sources = sources[:1]
    with pytest.raises(ValueError, match="`atlas` must be a directory that `scfusion prepare` wrote"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", append=True, report=silent)
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    recipe.sources, recipe.seed = sources, 5
    with pytest.raises(ValueError, match=r"`--append` must keep the settings of the atlas, got {'seed': '0 -> 5'}"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", append=True, report=silent)


def test_growth_beyond_the_type_of_the_counts_is_refused(recipe, sources, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X.data[0] = 70_000
    rna.write_h5ad(tmp_path / "big.h5ad")
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    before = files(tmp_path / "atlas.zarr")
    recipe.sources = [*sources, Source(tmp_path / "big.h5ad", "big", modality="rna")]
    with pytest.raises(ValueError, match=r"`--append` must add rna counts up to 65,535, .* got 70,000"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", append=True, report=silent)
    assert files(tmp_path / "atlas.zarr") == before


def test_whole_data_sets_can_be_held_out(recipe, tmp_path):
    recipe.split = SplitRule(0.3, 0.3, 3, group_key="dataset")
    prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)
    obs = ad.read_zarr(tmp_path / "atlas.zarr").obs
    assert (obs.groupby("dataset", observed=True)["split"].nunique() == 1).all()


def test_damaged_and_missing_files_of_an_atlas_are_named(recipe, tmp_path):
    path = tmp_path / "atlas.zarr"
    prepare_atlas(recipe, path, report=silent)
    verify_atlas(path, report=silent)
    shard = sorted((path / "X/data/c").iterdir())[0]
    damaged = bytearray(shard.read_bytes())
    damaged[20] ^= 1
    shard.write_bytes(damaged)
    (path / "obs/rna_present/c/0").unlink()
    with pytest.raises(ValueError, match=r"2 of \d+ files .*X/data/c/0 \(changed\), obs/rna_present/c/0 \(missing\)"):
        verify_atlas(path, report=silent)


def test_sources_without_any_usable_count_are_refused(recipe, sources, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X = sp.csr_matrix(rna.shape, dtype=np.float32)
    rna.write_h5ad(tmp_path / "empty.h5ad")
    recipe.sources = [*sources, Source(tmp_path / "empty.h5ad", "empty", modality="rna")]
    with pytest.raises(ValueError, match=r"`empty.h5ad` must have counts of genes or proteins .* got none in its 40"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)


def test_empty_cells_are_told(recipe, sources, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X = sp.diags_array((np.arange(40) != 3).astype(np.float32)).tocsr() @ rna.X
    rna.write_h5ad(tmp_path / "some.h5ad")
    recipe.sources = [*sources, Source(tmp_path / "some.h5ad", "some", modality="rna")]
    with pytest.warns(UserWarning, match=r"some.h5ad: 1 of 40 cells have no count"):
        prepare_atlas(recipe, tmp_path / "atlas.zarr", report=silent)


def test_sources_and_atlas_can_be_in_an_object_store(recipe, sources, tmp_path):
    prepare_atlas(recipe, tmp_path / "here.zarr", report=silent)
    memory = fsspec.filesystem("memory")
    for source in sources:
        memory.put_file(str(source.path), f"/bucket/{Path(source.path).name}")
        source.path = f"memory://bucket/{Path(source.path).name}"
    recipe.sources = sources[:2]
    prepare_atlas(recipe, "memory://bucket/atlas.zarr", work=tmp_path / "work", report=silent)
    recipe.sources = sources
    prepare_atlas(recipe, "memory://bucket/atlas.zarr", work=tmp_path / "work", append=True, report=silent)
    verify_atlas("memory://bucket/atlas.zarr", report=silent)
    there, here = Atlas("memory://bucket/atlas.zarr"), Atlas(tmp_path / "here.zarr")
    assert there.fingerprint == here.fingerprint
    rows = np.array([400, 3, 17])
    assert np.array_equal(there.read(rows).rna, here.read(rows).rna)
    memory.rm("/bucket", recursive=True)


def test_a_killed_worker_is_told():
    with pytest.raises(ValueError, match="a worker process died"):
        Engine(workers=2).run(os._exit, [1, 2], silent, "tasks")


def test_impossible_engines_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="`workers` must be at least 1, got 0"):
        Engine(workers=0)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"`dask` needs the package distributed, got 'tcp://x:1' without it"):
        Engine(dask="tcp://x:1").run(abs, [1], silent, "tasks")


def test_progress_tells_the_time_left(monkeypatch):
    now, lines = iter(np.arange(0.0, 1000.0, 3.0)), []
    monkeypatch.setattr(engines.time, "monotonic", lambda: next(now))
    progress = engines.Progress(4, "pieces", lines.append)
    for _ in range(4):
        progress.advance()
    assert lines == ["pieces: 2 of 4, 6 s left", "pieces: 4 of 4, 0 s left"]
    assert [engines.format_duration(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]


def write_config(path: Path, sources: list[Source], extra: str = "") -> Path:
    listed = ", ".join(f"{{path: {s.path}}}" for s in sources)
    path.write_text(f"output: {path.parent}/atlas.zarr\nsources: [{listed}]\n{extra}")
    return path


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_atlas(tmp_path):
    write_h5mu(tmp_path / "a.h5mu", 9_000, seed=1)
    config = write_config(tmp_path / "data.yaml", [Source(tmp_path / "a.h5mu", "a")], "workers: 2\n")
    command = ["scfusion", "prepare", "--config", str(config)]
    run(*command, f"output={tmp_path}/whole.zarr", "workers=1")
    for lines in range(1, 5):
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for _ in range(lines):  # later each time
            process.stdout.readline()
        process.kill()
        process.communicate()
    if not (tmp_path / "atlas.zarr").exists():
        run(*command)
    assert files(tmp_path / "atlas.zarr") == files(tmp_path / "whole.zarr")


def call(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["scfusion", *map(str, arguments)])
    main()


def test_the_command_line_takes_tasks_merge_and_growth(sources, tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path / "data.yaml", sources[:2])
    for number in (1, 2):
        call(monkeypatch, "prepare", "--config", config, "--task", f"{number}/2")
        assert not (tmp_path / "atlas.zarr").exists()
    call(monkeypatch, "prepare", "--config", config, "--merge")
    write_config(config, sources)
    call(monkeypatch, "prepare", "--config", config, "--append")
    assert "420 cells" in capsys.readouterr().out
    call(monkeypatch, "verify", tmp_path / "atlas.zarr")
    assert "is as it was written" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "atlas.zarr" / MANIFEST).read_text())
    assert [s["cells"] for s in manifest["sources"]] == [110, 140, 170]
    for arguments, message in ((["--task", "3/2"], "must read I/N"), (["--task", "1/2", "--merge"], "steps of their")):
        with pytest.raises(SystemExit):
            call(monkeypatch, "prepare", "--config", config, *arguments)
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_atlas(recipe, tmp_path, monkeypatch):
    monkeypatch.undo()
    prepare_atlas(recipe, tmp_path / "here.zarr", report=silent)
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, processes=True) as cluster:
        prepare_atlas(recipe, tmp_path / "dask.zarr", Engine(dask=cluster.scheduler_address), report=silent)
    assert files(tmp_path / "dask.zarr") == files(tmp_path / "here.zarr")
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_sources_and_atlas_can_be_in_s3(recipe, sources, tmp_path, monkeypatch):
    monkeypatch.undo()  # large pieces: few requests
    recipe.genes = "sources"
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        s3 = fsspec.filesystem("s3")
        s3.mkdir("bucket")
        for source in sources:
            s3.put_file(str(source.path), f"bucket/{Path(source.path).name}")
            source.path = f"s3://bucket/{Path(source.path).name}"
        prepare_atlas(recipe, "s3://bucket/atlas.zarr", work=tmp_path / "work", report=silent)
        verify_atlas("s3://bucket/atlas.zarr", report=silent)
        there = Atlas("s3://bucket/atlas.zarr")
        assert there.read(np.arange(420)).rna.sum() == sum(
            make_modalities(110 + 30 * i, i)[0].X.sum() for i in range(3)
        )
    finally:
        server.stop()
