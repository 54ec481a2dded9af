"""Preparing an atlas: the same for any workers, interruptions and ways."""

import errno
import json
import multiprocessing
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import anndata as ad
import distributed
import fsspec
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import zarr
from launch import run, start
from make_atlas import Killed, files, kill_after, plan_atlas, silent, write_atlas
from make_cells import make_modalities, write_h5mu
from moto.server import ThreadedMotoServer

from scfusion_fm.cli.main import main
from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.atlas.atlas import Atlas, verify_atlas
from scfusion_fm.data.atlas.manifest import MANIFEST
from scfusion_fm.data.prepare import job as prepare
from scfusion_fm.data.prepare import merge, pieces, store

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_cells_are_those_of_the_files(settings: PrepareConfig, tmp_path: Path):
    settings.genes = "sources"
    write_atlas(settings, tmp_path / "atlas.zarr")
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


def test_scanpy_uses_an_atlas(settings: PrepareConfig, tmp_path: Path):
    write_atlas(settings, tmp_path / "atlas.zarr")
    adata = ad.read_zarr(tmp_path / "atlas.zarr")
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    expected = sp.csr_matrix(adata.X, dtype=np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    totals = np.asarray(expected.sum(1))
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(expected.toarray() / totals * 1e4), rtol=1e-5)
    sc.pp.pca(adata, n_comps=3)
    assert adata.obsm["X_pca"].shape == (420, 3)


def test_arrays_are_sharded_and_compact(settings: PrepareConfig, tmp_path: Path):
    settings.codec = "zstd"
    write_atlas(settings, tmp_path / "atlas.zarr")
    root = zarr.open_group(tmp_path / "atlas.zarr", mode="r")
    for name in ("X/data", "X/indices", "obsm/adt"):
        array = root[name]
        assert array.dtype == np.uint16
        assert array.shards[0] == 8 * array.chunks[0] < array.shape[0]
        assert array.compressors[0].to_dict()["configuration"]["cname"] == "zstd"


def test_text_is_stored_alike_by_all_versions_of_pandas(settings: PrepareConfig, tmp_path: Path):
    write_atlas(settings, tmp_path / "atlas.zarr")
    root = zarr.open_group(tmp_path / "atlas.zarr", mode="r")
    for name in ("var/gene_id", "var/symbol", "obs/_index", "obs/split/categories", "uns/adt/names"):
        assert root[name].attrs["encoding-type"] == "string-array"


def test_atlas_does_not_depend_on_workers(settings: PrepareConfig, tmp_path: Path, monkeypatch):
    monkeypatch.undo()  # workers are processes of their own
    monkeypatch.setattr(pieces, "SOURCE_CHUNK_ROWS", 256)
    write_atlas(settings, tmp_path / "one.zarr")
    write_atlas(settings, tmp_path / "two.zarr", workers=2)
    assert files(tmp_path / "one.zarr") == files(tmp_path / "two.zarr")


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
def test_an_interrupted_run_goes_on(settings, tmp_path, monkeypatch, module, name, numbers):
    write_atlas(settings, tmp_path / "whole.zarr")
    output = tmp_path / "atlas.zarr"
    for number in numbers:
        with monkeypatch.context() as patch:
            kill_after(patch, module, name, number)
            with pytest.raises(Killed):
                write_atlas(settings, output)
        assert not output.exists()
    write_atlas(settings, output)
    assert files(output) == files(tmp_path / "whole.zarr")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_was_done_is_not_done_again(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, prepare, "write_piece", 5)
        with pytest.raises(Killed):
            write_atlas(settings, tmp_path / "atlas.zarr")
    lines, written = [], []
    monkeypatch.setattr(prepare, "write_piece", lambda task: written.append(task) or pieces.write_piece(task))
    monkeypatch.setattr(prepare, "survey_source", None)
    write_atlas(settings, tmp_path / "atlas.zarr", report=lines.append)
    there, total = re.search(r"pieces: (\d+) of (\d+) are there already", "\n".join(lines)).groups()
    assert int(there) == 5
    assert len(written) == int(total) - 5


def test_a_kill_after_publication_leaves_a_finished_atlas(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, prepare.shutil, "rmtree", 1)  # the first one clears the way for the store
        with pytest.raises(Killed):
            write_atlas(settings, tmp_path / "atlas.zarr")
    before, lines = files(tmp_path / "atlas.zarr"), []
    manifest = write_atlas(settings, tmp_path / "atlas.zarr", report=lines.append)
    assert manifest["num_cells"] == 420
    assert lines == [f"{tmp_path}/atlas.zarr was finished before"]
    assert files(tmp_path / "atlas.zarr") == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_unfinished_work_is_not_mixed_with_another_recipe_or_file(settings, sources, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, prepare, "write_piece", 2)
        with pytest.raises(Killed):
            write_atlas(settings, tmp_path / "atlas.zarr")
    other = PrepareConfig(sources=sources, obs_columns=["donor"])
    with pytest.raises(ValueError, match="has unfinished work of another recipe, or of sources that have changed"):
        write_atlas(other, tmp_path / "atlas.zarr")
    write_h5mu(tmp_path / "new.h5mu", 90, seed=9).replace(sources[1].path)
    with pytest.raises(ValueError, match="has unfinished work of another recipe, or of sources that have changed"):
        write_atlas(settings, tmp_path / "atlas.zarr")
    shutil.rmtree(tmp_path / ".atlas.zarr.work")
    write_atlas(settings, tmp_path / "atlas.zarr")


def test_unfinished_work_of_another_version_is_refused(settings, tmp_path):
    job = plan_atlas(settings, tmp_path / "atlas.zarr")
    old = json.loads((job.work / prepare.PLAN).read_text()) | {"format": "scfusion-atlas-work 1"}
    (job.work / prepare.PLAN).write_text(json.dumps(old))
    with pytest.raises(ValueError, match="`work_dir` must hold unfinished work of this version, got that of another"):
        write_atlas(settings, tmp_path / "atlas.zarr")


def test_tasks_and_merge_make_the_same_atlas(settings, tmp_path):
    write_atlas(settings, tmp_path / "whole.zarr")
    output = tmp_path / "atlas.zarr"
    for share in ((1, 3), (0, 3)):
        job = plan_atlas(settings, output)
        job.write_pieces(share)
    with pytest.raises(ValueError, match=r"`--merge` needs all pieces, got \d+ missing, such as 0000-000002"):
        job.merge()
    job = plan_atlas(settings, output)
    job.write_pieces((2, 3))
    job.merge()
    assert files(output) == files(tmp_path / "whole.zarr")


def test_two_processes_do_not_merge_at_once(settings, tmp_path):
    job = plan_atlas(settings, tmp_path / "atlas.zarr")
    other = plan_atlas(settings, tmp_path / "atlas.zarr")
    other.plan()
    with job._lock(shared=False), pytest.raises(ValueError, match="is being written by another process"):
        other.write_pieces()
    with job._lock(shared=True):
        other.write_pieces((0, 2))


def test_a_working_directory_on_another_file_system(settings, tmp_path, monkeypatch):
    write_atlas(settings, tmp_path / "here.zarr")
    rename = Path.rename

    def refuse_store(self, target):
        if self.name == "store":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_store)
    write_atlas(settings, tmp_path / "new" / "there.zarr", work_dir=tmp_path / "work")
    assert files(tmp_path / "new" / "there.zarr") == files(tmp_path / "here.zarr")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["there.zarr"]


def test_what_was_left_by_a_process_that_was_killed_while_it_planned_is_removed(settings, tmp_path):
    left, others = (tmp_path / "atlases[1]" / name for name in (".work.scfusion-plan-x1", "work-of-others"))
    for directory in (left, others):
        directory.mkdir(parents=True)
        (directory / "source-0000.pickle").write_text("half")
    write_atlas(settings, tmp_path / "a.zarr", work_dir=left.parent / "work")
    assert list(left.parent.iterdir()) == [others]


def test_a_working_directory_with_other_files_is_refused(settings, tmp_path):
    with pytest.raises(
        ValueError, match=r"`work_dir` must be new, empty or that of unfinished work, got .* other files"
    ):
        write_atlas(settings, tmp_path / "atlas.zarr", work_dir=tmp_path)


def test_the_home_directory_is_found(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_atlas(settings, "~/atlas.zarr")
    assert len(Atlas(tmp_path / "home" / "atlas.zarr")) == len(Atlas("~/atlas.zarr")) == 420


def test_counts_of_the_first_gene_alone_can_be_read(tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X = sp.csr_matrix((np.full(40, 3.0, np.float32), np.zeros(40, int), np.arange(41)), shape=rna.shape)
    rna.var_names = [name if i else "CD3E" for i, name in enumerate(rna.var_names)]
    rna.write_h5ad(tmp_path / "one.h5ad")
    settings = PrepareConfig(sources=[SourceConfig(tmp_path / "one.h5ad", "one", modality="rna")], genes="sources")
    write_atlas(settings, tmp_path / "atlas.zarr")
    assert Atlas(tmp_path / "atlas.zarr").read(np.arange(40)).rna.sum() == 120


def test_damaged_and_missing_files_of_an_atlas_are_named(settings, tmp_path):
    path = tmp_path / "atlas.zarr"
    write_atlas(settings, path)
    verify_atlas(path, report=silent)
    shard = sorted((path / "X/data/c").iterdir())[0]
    damaged = bytearray(shard.read_bytes())
    damaged[20] ^= 1
    shard.write_bytes(damaged)
    (path / "obs/rna_present/c/0").unlink()
    with pytest.raises(ValueError, match=r"2 of \d+ files .*X/data/c/0 \(changed\), obs/rna_present/c/0 \(missing\)"):
        verify_atlas(path, report=silent)


def test_sources_and_atlas_can_be_in_an_object_store(settings, sources, tmp_path):
    write_atlas(settings, tmp_path / "here.zarr")
    memory = fsspec.filesystem("memory")
    for source in sources:
        memory.put_file(str(source.path), f"/bucket/{Path(source.path).name}")
        source.path = f"memory://bucket/{Path(source.path).name}"
    settings.sources = sources[:2]
    write_atlas(settings, "memory://bucket/atlas.zarr", work_dir=tmp_path / "work")
    settings.sources = sources
    write_atlas(settings, "memory://bucket/atlas.zarr", work_dir=tmp_path / "work", append=True)
    verify_atlas("memory://bucket/atlas.zarr", report=silent)
    there, here = Atlas("memory://bucket/atlas.zarr"), Atlas(tmp_path / "here.zarr")
    assert there.fingerprint == here.fingerprint
    rows = np.array([400, 3, 17])
    assert np.array_equal(there.read(rows).rna, here.read(rows).rna)
    memory.rm("/bucket", recursive=True)


def write_config(path: Path, sources: list[SourceConfig], extra: str = "") -> Path:
    listed = ", ".join(f"{{path: {s.path}}}" for s in sources)
    path.write_text(f"output: {path.parent}/atlas.zarr\nsources: [{listed}]\n{extra}")
    return path


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_atlas(tmp_path):
    write_h5mu(tmp_path / "a.h5mu", 9_000, seed=1)
    config = write_config(tmp_path / "data.yaml", [SourceConfig(tmp_path / "a.h5mu", "a")], "workers: 2\n")
    command = ["scfusion", "prepare", "--config", str(config)]
    run(*command, f"output={tmp_path}/whole.zarr", "workers=1")
    for lines in range(1, 5):
        log = tmp_path / f"log{lines}"
        with log.open("w") as output:
            process = start(*command, stdout=output, stderr=output)
        while process.poll() is None and log.read_text().count("\n") < lines:  # later each time
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
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


def test_a_dask_cluster_makes_the_same_atlas(settings, tmp_path, monkeypatch):
    monkeypatch.undo()
    write_atlas(settings, tmp_path / "here.zarr")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, processes=True) as cluster:
        write_atlas(settings, tmp_path / "dask.zarr", dask=cluster.scheduler_address)
    assert files(tmp_path / "dask.zarr") == files(tmp_path / "here.zarr")
    assert multiprocessing.active_children() == []


def test_sources_and_atlas_can_be_in_s3(settings, sources, tmp_path, monkeypatch):
    monkeypatch.undo()  # large pieces: few requests
    settings.genes = "sources"
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
        write_atlas(settings, "s3://bucket/atlas.zarr", work_dir=tmp_path / "work")
        verify_atlas("s3://bucket/atlas.zarr", report=silent)
        there = Atlas("s3://bucket/atlas.zarr")
        assert there.read(np.arange(420)).rna.sum() == sum(
            make_modalities(110 + 30 * i, i)[0].X.sum() for i in range(3)
        )
    finally:
        server.stop()
