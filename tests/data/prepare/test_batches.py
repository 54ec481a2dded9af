"""Sources joined of batches with different panels: split into the data sets that they are."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from make_files import make_mudata, write

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.prepare.job import prepare_atlas

GENES = ["MT-CO1", "CD4", "CD3E", "GAPDH", "LYZ", "NKG7", "CD19", "CD86", "ACTB", "CD14"]
PROTEINS = ["CD4", "CD3", "CD45RA", "HLA-DR"]
SIZE = 25


@pytest.fixture
def files(tmp_path):
    """Write a file of two batches, joined with zeros, and a file of each batch."""
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(2 * SIZE)]
    batch = np.array(["one", "two"] * SIZE)  # their cells stand in turns
    tables = []
    for features, kept, level in ((GENES, 5, 3), (PROTEINS, 3, 9)):
        table = pd.DataFrame(rng.poisson(level, (2 * SIZE, len(features))) + 1, names, features).astype("f4")
        tables.append((table, kept))

    def make(rows, cut):
        parts = [ad.AnnData(table.iloc[rows, : kept if cut else None]) for table, kept in tables]
        for part in parts:
            part.obs["batch"] = batch[rows]
        return make_mudata(rna=parts[0], adt=parts[1])

    write(make(np.flatnonzero(batch == "one"), cut=False), tmp_path / "one.h5mu")
    write(make(np.flatnonzero(batch == "two"), cut=True), tmp_path / "two.h5mu")
    for table, kept in tables:
        table.iloc[batch == "two", kept:] = 0
    write(make(np.arange(2 * SIZE), cut=False), tmp_path / "joined.h5mu")
    return tmp_path


def prepare(folder, name, *sources, append=False):
    config = PrepareConfig(str(folder / name), list(sources), "sources", "sources")
    return prepare_atlas(config, append=append, report=lambda line: None)


def test_a_joined_source_gives_the_atlas_of_its_batches(files):
    joined = SourceConfig(str(files / "joined.h5mu"), batch_key="batch")
    apart = [SourceConfig(str(files / "one.h5mu"), "joined"), SourceConfig(str(files / "two.h5mu"), "joined/two")]
    found, expected = prepare(files, "a.zarr", joined), prepare(files, "b.zarr", *apart)
    assert [source["name"] for source in found["sources"]] == ["joined", "joined/two"]
    assert [(source["genes"], source["proteins"]) for source in found["sources"]] == [(10, 4), (5, 3)]
    assert found["fingerprint"] == expected["fingerprint"]
    with pytest.raises(ValueError, match="`sources` must name data sets that the atlas lacks"):
        prepare(files, "a.zarr", joined, append=True)


def test_a_joined_source_warns_and_a_whole_one_does_not(files):
    with pytest.warns(
        UserWarning, match=r"groups of 'batch' have no count .*'two' lacks 1 proteins \(HLA-DR\) and 5 genes"
    ):
        found = prepare(files, "a.zarr", SourceConfig(str(files / "joined.h5mu")))
    assert [source["name"] for source in found["sources"]] == ["joined"]
    with warnings.catch_warnings(action="error"):
        found = prepare(files, "b.zarr", SourceConfig(str(files / "one.h5mu"), batch_key="batch"))
    assert [source["name"] for source in found["sources"]] == ["one"]


def test_batches_need_a_column_and_names_of_their_own(files):
    joined = SourceConfig(str(files / "joined.h5mu"), batch_key="lane")
    with pytest.raises(ValueError, match="`batch_key` must be a column of obs, got 'lane'"):
        prepare(files, "a.zarr", joined)
    joined.batch_key = "batch"
    with pytest.raises(ValueError, match=r"`sources` and their batches must have different names, got .*'joined/two'"):
        prepare(files, "b.zarr", joined, SourceConfig(str(files / "two.h5mu"), "joined/two"))
