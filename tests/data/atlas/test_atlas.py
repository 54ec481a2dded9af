"""Files to atlas and back: the same counts, what was measured, and nothing half-written."""

import json
import shutil
import warnings
from importlib.metadata import version

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from make_atlas import write_atlas

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.atlas import tables
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.atlas.manifest import MANIFEST, format_manifest
from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.prepare.job import prepare_atlas
from scfusion_fm.data.schema import CellCounts
from scfusion_fm.data.split import assign_split

GENES = ["CD3E", "CD4", "CD8A", "MS4A1", "NKG7", "LYZ", "CD14", "GNLY"]


def write_cite_seq(path, name, num_cells, genes, antibodies, seed):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"donor": [f"d{i % 3}" for i in range(num_cells)]}, index=[f"{name}{i}" for i in range(num_cells)]
    )
    rna = ad.AnnData(sp.csr_matrix(rng.poisson(2.0, (num_cells, len(genes))).astype(np.float32)), obs=obs)
    rna.var_names = genes
    adt = ad.AnnData(sp.csr_matrix(rng.poisson(20.0, (num_cells, len(antibodies))).astype(np.float32)), obs=obs)
    adt.var_names = antibodies
    with warnings.catch_warnings(action="ignore"):
        md.MuData({"rna": rna, "adt": adt}).write(path)


@pytest.fixture
def settings(tmp_path):
    write_cite_seq(tmp_path / "a.h5mu", "a", 90, GENES[:6], ["CD3", "CD4", "CD19"], 0)
    write_cite_seq(tmp_path / "b.h5mu", "b", 70, GENES[2:], ["CD4", "CD14", "IgG1.K.Isotype.Control"], 1)
    return PrepareConfig(
        sources=[
            SourceConfig(tmp_path / "a.h5mu", "first"),
            SourceConfig(tmp_path / "b.h5mu", "second", licence="CC0"),
        ],
        genes="sources",
        proteins="sources",
        obs_columns=["donor"],
        split=SplitConfig(0.2, 0.2, 0),
    )


@pytest.fixture
def atlas_path(settings, tmp_path):
    write_atlas(settings, tmp_path / "atlas.zarr")
    return tmp_path / "atlas.zarr"


def test_atlas_holds_the_counts_of_the_files(atlas_path, tmp_path):
    adata = ad.read_zarr(atlas_path)
    assert adata.shape == (160, 8)
    symbols = list(adata.var["symbol"])
    proteins = list(adata.uns["adt"]["names"])
    for name, prefix, antibodies in (("a", "first", ["CD3", "CD4", "CD19"]), ("b", "second", ["CD4", "CD14"])):
        with warnings.catch_warnings(action="ignore"):
            source = md.read_h5mu(tmp_path / f"{name}.h5mu")
        cells = [f"{prefix}:{c}" for c in source.obs_names]
        for gene in source["rna"].var_names:
            expected = source["rna"][:, gene].X.toarray().ravel()
            assert np.array_equal(adata[cells, symbols.index(gene)].X.toarray().ravel(), expected)
        for antibody in antibodies:
            expected = source["adt"][:, antibody].X.toarray().ravel()
            got = adata[cells].obsm["adt"][:, proteins.index(antibody)]
            assert np.array_equal(got, expected), (antibody, proteins)


def test_reader_gives_counts_and_what_was_measured(atlas_path):
    adata, atlas = ad.read_zarr(atlas_path), Atlas(atlas_path)
    rows = np.array([159, 3, 3, 64, 90, 0])
    got = atlas.read(rows)
    assert np.array_equal(got.rna, adata[rows].X.toarray())
    assert np.array_equal(got.adt, adata.obsm["adt"][rows])
    totals = adata.obs["rna_total_counts"].to_numpy()
    assert np.array_equal(got.rna_total_counts, totals[rows])
    assert np.array_equal(totals, adata.X.sum(1).A1 if hasattr(adata.X.sum(1), "A1") else adata.X.sum(1))
    dataset = adata.obs["dataset"].cat.codes.to_numpy()[rows]
    assert np.array_equal(got.rna_observed, adata.varm["rna_panel"].T[dataset])
    assert np.array_equal(got.adt_observed, adata.uns["adt"]["panel"].T[dataset])
    assert (got.rna[~got.rna_observed] == 0).all()


def test_an_atlas_gives_a_feature_extractor_what_its_files_give(atlas_path, tmp_path):
    atlas, start = Atlas(atlas_path), 0
    names = ad.read_zarr(atlas_path).obs_names
    for name, number in (("a", 90), ("b", 70)):
        cells = align_cells(read_cells(tmp_path / f"{name}.h5mu"), atlas.vocabulary)
        rows = cells.obs.index.get_indexer([cell.split(":")[1] for cell in names[start : start + number]])
        expected, found = cells.as_counts(rows), atlas.read(np.arange(start, start + number)).as_counts()
        assert expected.keys() == found.keys() == CellCounts.__annotations__.keys()
        assert all(np.array_equal(expected[key], found[key]) for key in found)
        assert all(expected[key].dtype == found[key].dtype for key in found)
        start += number


def test_panels_follow_the_order_of_the_data_sets(settings, tmp_path):
    settings.sources = [SourceConfig(s.path, name) for s, name in zip(settings.sources, ("z", "a"), strict=True)]
    write_atlas(settings, tmp_path / "atlas.zarr")
    adata, atlas = ad.read_zarr(tmp_path / "atlas.zarr"), Atlas(tmp_path / "atlas.zarr")
    assert list(adata.uns["datasets"]) == list(adata.obs["dataset"].cat.categories) == ["z", "a"]
    got = atlas.read(np.arange(160))
    for name, genes in (("z", GENES[:6]), ("a", GENES[2:])):
        observed = got.rna_observed[(adata.obs["dataset"] == name).to_numpy()]
        assert set(adata.var["symbol"][observed.all(0)]) == set(genes)
        assert (observed.any(0) == observed.all(0)).all()


def test_an_atlas_says_what_it_holds(atlas_path):
    assert repr(Atlas(atlas_path)) == f"Atlas of 160 cells, 8 genes and 4 proteins at {atlas_path}"


def test_split_is_the_one_of_the_rule_and_reaches_the_reader(atlas_path):
    adata, atlas = ad.read_zarr(atlas_path), Atlas(atlas_path)
    barcodes = [n.split(":")[1] for n in adata.obs_names]
    assert np.array_equal(adata.obs["split"].astype(str), assign_split(barcodes, SplitConfig(0.2, 0.2)))
    rows = np.concatenate([atlas.rows_of(s) for s in ("train", "val", "test")])
    assert sorted(rows) == list(range(160))


def test_counts_that_fit_take_16_bits(atlas_path):
    adata = ad.read_zarr(atlas_path)
    assert (adata.X.dtype, adata.obsm["adt"].dtype) == (np.uint16, np.uint16)


def test_cells_of_a_split_stand_together_in_their_data_set(atlas_path):
    obs = ad.read_zarr(atlas_path).obs
    for _, cells in obs.groupby("dataset", observed=True):
        assert (cells["split"] != cells["split"].shift()).sum() == 3


def test_rows_of_a_data_set_are_shuffled_and_reproducible(atlas_path, settings, tmp_path):
    names = list(ad.read_zarr(atlas_path).obs_names)
    assert names[:90] != sorted(names[:90], key=lambda n: int(n.split(":a")[1]))
    write_atlas(settings, tmp_path / "again.zarr")
    assert list(ad.read_zarr(tmp_path / "again.zarr").obs_names) == names
    assert Atlas(tmp_path / "again.zarr").fingerprint == Atlas(atlas_path).fingerprint


def test_fingerprint_notices_another_split(settings, atlas_path, tmp_path):
    settings.split.seed = 1
    write_atlas(settings, tmp_path / "other.zarr")
    assert Atlas(tmp_path / "other.zarr").fingerprint != Atlas(atlas_path).fingerprint


def test_manifest_names_sources_licences_and_checksums(atlas_path):
    manifest = json.loads((atlas_path / MANIFEST).read_text())
    assert [s["name"] for s in manifest["sources"]] == ["first", "second"]
    assert manifest["sources"][1]["licence"] == "CC0"
    assert [s["cells_with_adt"] for s in manifest["sources"]] == [90, 70]
    assert [s["proteins"] for s in manifest["sources"]] == [3, 2]
    assert all(len(s["sha256"]) == 64 for s in manifest["sources"])
    assert manifest["vocabulary_sha256"] == Atlas(atlas_path).vocabulary.fingerprint()
    assert manifest["versions"]["anndata"] == version("anndata")
    assert {"X/data/c/0", "obsm/adt/c/0/0", "zarr.json"} <= manifest["files"].keys()


def test_donors_stay_together(settings, tmp_path):
    settings.split = SplitConfig(0.3, 0.3, 1, group_key="donor")
    write_atlas(settings, tmp_path / "atlas.zarr")
    obs = ad.read_zarr(tmp_path / "atlas.zarr").obs
    assert (obs.groupby("donor", observed=True)["split"].nunique() == 1).all()
    settings.split.group_key = "sex"
    with pytest.raises(ValueError, match=r"`split.group_key` must be a column of obs in every source, got 'sex'"):
        write_atlas(settings, tmp_path / "other.zarr")


def test_whole_data_sets_can_be_held_out(settings, tmp_path):
    settings.split = SplitConfig(0.0, 0.5, 1, group_key="dataset")
    write_atlas(settings, tmp_path / "atlas.zarr")
    atlas = Atlas(tmp_path / "atlas.zarr")
    expected = assign_split(["", ""], settings.split, ["first", "second"])
    assert sorted(expected) == ["test", "train"]
    for name, split in zip(["first", "second"], expected, strict=True):
        assert len(atlas.rows_by_dataset(split)[name]) == (atlas.dataset == name).sum()


def test_missing_obs_column_is_told(settings, tmp_path):
    settings.obs_columns = ["tissue"]
    with pytest.warns(UserWarning, match=r"no column \['tissue'\]"):
        write_atlas(settings, tmp_path / "atlas.zarr")


def test_refused_settings_leave_nothing_behind(settings, tmp_path, monkeypatch):
    before = sorted(p.name for p in tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    with pytest.raises(ValueError, match="`output` must not exist yet"):
        write_atlas(settings, tmp_path / "full")
    (tmp_path / "full").rmdir()
    with pytest.raises(ValueError, match="`output` must name the directory or URL of the new atlas, got nothing"):
        prepare_atlas(settings)
    with pytest.raises(ValueError, match="`sources` must name at least one file"):
        write_atlas(PrepareConfig(), tmp_path / "atlas.zarr")
    twice = [settings.sources[0], settings.sources[0]]
    with pytest.raises(ValueError, match="`sources` must have different names"):
        write_atlas(PrepareConfig(sources=twice), tmp_path / "atlas.zarr")
    with pytest.raises(ValueError, match="`codec` must be lz4 or zstd, got 'gzip'"):
        write_atlas(settings, tmp_path / "atlas.zarr", codec="gzip")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_what_is_no_atlas_is_refused(atlas_path, tmp_path):
    with pytest.raises(ValueError, match="`atlas` must be a directory that `scfusion prepare` wrote"):
        Atlas(tmp_path)
    other = tmp_path / "other.zarr"
    shutil.copytree(atlas_path, other)
    manifest = json.loads((other / MANIFEST).read_text()) | {"format_version": 99}
    (other / MANIFEST).write_text(format_manifest(manifest))
    with pytest.raises(ValueError, match="must be of format scfusion-atlas 3, got scfusion-atlas 99"):
        Atlas(other)
    with pytest.raises(ValueError, match=r"`rows` must lie in \[0, 160\)"):
        Atlas(atlas_path).read(np.array([160]))


@pytest.mark.parametrize(
    ("array", "at", "value", "message"),
    [
        ("X/indices", 5, 900, r"`X/indices` must be below the number of genes, 8, got 900"),
        ("X/indptr", 0, 1, r"`X/indptr` must rise from 0"),
        ("X/indptr", 9, 0, r"`X/indptr` must rise from 0"),
        ("X/indptr", 160, 10**6, r"`X/indptr` must rise from 0 to \d+ in 160 steps"),
    ],
)
def test_damaged_rows_are_refused(atlas_path, array, at, value, message):
    zarr.open_group(atlas_path, mode="a", use_consolidated=False)[array][at] = value
    with pytest.raises(ValueError, match=message):
        Atlas(atlas_path).read(np.arange(10))


def test_large_counts_survive(tmp_path):
    counts = np.array([[70_000.0, 1, 0, 2], [3, 0, 5, 0]], dtype=np.float32)
    adata = ad.AnnData(sp.csr_matrix(np.repeat(counts, 20, axis=0)))
    adata.obs_names = [f"c{i}" for i in range(40)]
    adata.var_names = GENES[:4]
    adata.write_h5ad(tmp_path / "big.h5ad")
    settings = PrepareConfig(sources=[SourceConfig(tmp_path / "big.h5ad", modality="rna")], genes="sources")
    write_atlas(settings, tmp_path / "atlas.zarr")
    atlas = Atlas(tmp_path / "atlas.zarr")
    assert ad.read_zarr(tmp_path / "atlas.zarr").X.dtype == np.uint32
    assert atlas.read(np.arange(40)).rna.max() == 70_000
    assert not atlas.read(np.arange(40)).adt_observed.any()


def test_categories_that_no_cell_has_are_left_out(monkeypatch):
    monkeypatch.setattr(tables, "COUNTED_CODES", 2)
    atlas = object.__new__(tables.AtlasTables)
    for codes, expected in (([2, 0, 2, -1, 0], ["a", "c"]), ([1, 2, 0], ["a", "b", "c"]), ([], []), ([-1], [])):
        monkeypatch.setattr(atlas, "column", lambda name, codes=codes: np.array(codes, np.int8), raising=False)
        monkeypatch.setattr(atlas, "_read_small", lambda name, shape: np.array(["a", "b", "c"]), raising=False)
        found = atlas.categories("kind")
        assert list(found.categories) == expected
        assert [None if pd.isna(value) else value for value in found] == [[*"abc", None][code] for code in codes]
