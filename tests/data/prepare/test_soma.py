"""Cells of SOMA experiments become an atlas: those of a Census as it is laid out, made here."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from make_atlas import Killed, content, files, kill_after, same, write_atlas
from make_cells import GENES, make_modalities

from scfusion_fm.config.prepare import PrepareConfig, SomaConfig, SourceConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.prepare import job, sources

CELLS = {"one": 40, "two": 30, "mice": 0}
ABSENT = ["CD4", "LYZ"]  # what `two` did not measure


def test_without_the_package_one_is_told_to_install_it(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(ValueError, match=re.escape("`soma` must be read by the package tiledbsoma")):
        write_atlas(PrepareConfig(soma=[SomaConfig(str(tmp_path / "census"))]), tmp_path / "atlas.zarr")


@pytest.fixture(scope="module")
def census(tmp_path_factory) -> Path:
    """Write two human data sets, one cell of which is a copy, and one of mice that has no human cell."""
    tiledbsoma = pytest.importorskip("tiledbsoma")
    path = tmp_path_factory.mktemp("census") / "soma"
    cells = {name: make_modalities(number, i)[0] for i, (name, number) in enumerate(CELLS.items()) if number}
    counts = sp.vstack([cells["one"].X, _without(cells["two"], ABSENT)]).tocoo()
    obs = pd.concat([c.obs.assign(dataset_id=name) for name, c in cells.items()]).astype(str)
    obs["observation_joinid"] = obs.index
    obs["is_primary_data"] = np.arange(len(obs)) != 3
    obs["nnz"] = np.bincount(counts.row, minlength=len(obs))
    var = pd.DataFrame({"feature_id": GENES, "feature_name": GENES})
    presence = np.ones((len(CELLS), len(GENES)), dtype=bool)
    presence[1, [GENES.index(gene) for gene in ABSENT]] = False
    info = pd.DataFrame({"dataset_id": list(CELLS), "citation": [f"Publication of {name}" for name in CELLS]})
    with tiledbsoma.Collection.create(str(path)) as root:
        _write_frame(root.add_new_collection("census_info"), "datasets", info)
        human = root.add_new_collection("census_data").add_new_collection("homo_sapiens", tiledbsoma.Experiment)
        _write_frame(human, "obs", obs)
        rna = human.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        _write_frame(rna, "var", var)
        _write_matrix(rna.add_new_collection("X"), "raw", counts.astype(np.float32))
        _write_matrix(rna, "feature_dataset_presence_matrix", sp.coo_matrix(presence))
    return path


def _without(adata, genes: list[str]) -> sp.csr_matrix:
    kept = sp.diags((~adata.var_names.isin(genes)).astype(np.float32))
    return sp.csr_matrix(adata.X @ kept)


def _write_frame(parent, name: str, frame: pd.DataFrame) -> None:
    import pyarrow as pa

    frame = frame.reset_index(drop=True).rename_axis("soma_joinid").reset_index()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with parent.add_new_dataframe(name, schema=table.schema, domain=[(0, len(frame) - 1)]) as array:
        array.write(table)


def _write_matrix(parent, name: str, matrix: sp.coo_matrix) -> None:
    import pyarrow as pa

    matrix.eliminate_zeros()
    kind = pa.from_numpy_dtype(matrix.dtype)
    with parent.add_new_sparse_ndarray(name, type=kind, shape=matrix.shape) as array:
        array.write(pa.SparseCOOTensor.from_scipy(matrix))


@pytest.fixture
def settings(census: Path) -> PrepareConfig:
    return PrepareConfig(
        soma=[SomaConfig(str(census), licence="CC BY 4.0")],
        genes="sources",
        obs_columns=["cell_type"],
        split=SplitConfig(0.0, 0.25, group_key="donor"),
    )


def test_a_census_gives_the_atlas_of_files_with_its_cells(settings: PrepareConfig, tmp_path: Path):
    manifest = write_atlas(settings, tmp_path / "atlas.zarr")
    found = [
        (source["name"], source["cells"], source["licence"], source["reference"]) for source in manifest["sources"]
    ]
    assert found == [
        ("one", 39, "CC BY 4.0", "Publication of one"),
        ("two", 30, "CC BY 4.0", "Publication of two"),
    ]
    one, two = (make_modalities(CELLS[name], i)[0] for i, name in enumerate(("one", "two")))
    one[one.obs_names != "s0c3"].copy().write_h5ad(tmp_path / "one.h5ad")
    two[:, ~two.var_names.isin(ABSENT)].copy().write_h5ad(tmp_path / "two.h5ad")
    given = [SourceConfig(str(tmp_path / f"{name}.h5ad"), modality="rna") for name in ("one", "two")]
    write_atlas(settings, tmp_path / "files.zarr", soma=[], sources=given)
    assert same(content(tmp_path / "atlas.zarr"), content(tmp_path / "files.zarr"))


@pytest.mark.usefixtures("small_pieces")
def test_reading_a_census_goes_on_where_it_stopped(settings: PrepareConfig, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 8)
    write_atlas(settings, tmp_path / "whole.zarr")
    with monkeypatch.context() as patch:
        kill_after(patch, job, "write_piece", 1)
        with pytest.raises(Killed):
            write_atlas(settings, tmp_path / "atlas.zarr")
    lines: list[str] = []
    monkeypatch.setattr(job, "survey_source", None)
    write_atlas(settings, tmp_path / "atlas.zarr", report=lines.append)
    assert any(line.startswith("pieces: 1 of ") for line in lines)
    assert files(tmp_path / "atlas.zarr") == files(tmp_path / "whole.zarr")


def test_chosen_cells_of_one_experiment(settings: PrepareConfig, census: Path, tmp_path: Path):
    chosen = SomaConfig(f"{census}/census_data/homo_sapiens", obs_filter="cell_type == 'B' and dataset_id == 'two'")
    manifest = write_atlas(replace(settings, soma=[chosen]), tmp_path / "atlas.zarr")
    expected = (make_modalities(CELLS["two"], 1)[0].obs["cell_type"] == "B").sum()
    assert [(source["name"], source["cells"]) for source in manifest["sources"]] == [("homo_sapiens", expected)]


def test_what_cannot_be_read_of_a_census_is_said_in_a_line(settings: PrepareConfig, census: Path, tmp_path: Path):
    uri = str(census)
    for given, message in (
        (
            SomaConfig(f"{tmp_path}/none"),
            "must be a SOMA experiment or a CELLxGENE Census that can be opened",
        ),
        (SomaConfig(f"{uri}/census_info"), "a CELLxGENE Census with homo_sapiens, got"),
        (SomaConfig(uri, ["three"]), "got 'three', which"),
        (SomaConfig(f"{uri}/census_data/homo_sapiens", ["o'ne"]), 'got "o\'ne", which is none'),
        (SomaConfig(uri, obs_filter="colour == 'red'"), "`soma.obs_filter` must be a condition on columns of obs"),
        (SomaConfig(uri, ["mice"]), "must have cells that are read, got none where"),
        (SomaConfig(uri, obs_filter="cell_type == 'none'"), "`soma` must have cells that are read, got none in any"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            write_atlas(replace(settings, soma=[given]), tmp_path / "atlas.zarr")


def test_counts_that_are_none_are_found_before_anything_is_written(settings, census: Path, tmp_path: Path):
    import pyarrow as pa
    import tiledbsoma

    shutil.copytree(census, tmp_path / "census")
    with tiledbsoma.open(f"{tmp_path}/census/census_data/homo_sapiens/ms/RNA/X/raw", "w") as matrix:
        at = {"soma_dim_0": pa.array([50]), "soma_dim_1": pa.array([2])}
        matrix.write(pa.table(at | {"soma_data": pa.array([1.5], pa.float32())}))
    with pytest.raises(ValueError, match=re.escape('two, X["raw"]` must hold raw counts')):
        write_atlas(replace(settings, soma=[SomaConfig(f"{tmp_path}/census")]), tmp_path / "atlas.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["census"]
