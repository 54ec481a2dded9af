"""The summary of an atlas counts what is in it."""

import json
import shutil
import sys

import anndata as ad
import numpy as np
import pytest
from make_atlas import remove_column, write_atlas
from make_cells import ANTIBODIES, GENES, make_modalities, write_h5mu

from scfusion_fm.cli.main import main
from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.inspect.summary import summarise_atlas
from scfusion_fm.data.inspect.summary_text import MAX_OVERLAP_COLUMNS, render_columns, render_summary


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Two data sets: a paired one, and RNA over fewer genes."""
    directory = tmp_path_factory.mktemp("summary")
    write_h5mu(directory / "paired.h5mu", 90, seed=0)
    make_modalities(60, seed=1)[0][:, GENES[:9]].copy().write_h5ad(directory / "rna.h5ad")
    sources = [
        SourceConfig(directory / "paired.h5mu", licence="MIT"),
        SourceConfig(directory / "rna.h5ad", licence="CC BY 4.0"),
    ]
    write_atlas(PrepareConfig(sources=sources, genes="sources", proteins="sources"), directory / "atlas")
    return directory / "atlas"


def test_numbers_are_those_of_the_anndata(atlas):
    adata = ad.read_zarr(atlas)
    found = summarise_atlas(atlas)
    assert (found.cells, found.genes, found.proteins) == (150, len(GENES), len(ANTIBODIES))
    assert found.splits == {k: int((adata.obs["split"] == k).sum()) for k in ("train", "val", "test")}
    assert found.nonzeros_per_cell == adata.X.nnz / 150
    assert found.size_bytes == sum(
        f.stat().st_size for f in atlas.rglob("*") if f.is_file() and f.name != "manifest.json"
    )
    assert found.leaked_test_cells == 0
    for dataset in found.datasets:
        rows = (adata.obs["dataset"] == dataset.name).to_numpy()
        assert dataset.cells == rows.sum() == sum(dataset.splits.values())
        assert dataset.median_rna_counts == np.median(adata.X[rows].sum(1).A1)
        assert dataset.median_adt_counts == np.median(adata.obsm["adt"][rows].sum(1))
    paired, rna = found.datasets
    assert (paired.licence, rna.licence) == ("MIT", "CC BY 4.0")
    assert (paired.cells_with_adt, rna.cells_with_adt, rna.cells_with_rna) == (90, 0, 60)
    assert (paired.genes, rna.genes, rna.proteins) == (len(GENES), 9, 0)
    assert found.shared_genes == [[len(GENES), 9], [9, 9]]
    assert found.shared_proteins == [[len(ANTIBODIES), 0], [0, 0]]


def test_test_cells_with_the_counts_of_training_cells_are_counted(tmp_path):
    rna, _ = make_modalities(100, seed=3)
    rna.X = (rna.X * 50).astype("float32")  # enough counts to be known again
    copy = rna.copy()
    copy.obs_names = [f"again{name}" for name in rna.obs_names]
    rna.write_h5ad(tmp_path / "a.h5ad")
    copy.write_h5ad(tmp_path / "b.h5ad")
    sources = [SourceConfig(tmp_path / "a.h5ad"), SourceConfig(tmp_path / "b.h5ad")]
    write_atlas(PrepareConfig(sources=sources, genes="sources"), tmp_path / "atlas")
    obs = ad.read_zarr(tmp_path / "atlas").obs
    is_test = obs["split"] == "test"
    assert obs["rna_fingerprint"].nunique() == 100
    expected = obs.loc[is_test, "rna_fingerprint"].isin(obs.loc[~is_test, "rna_fingerprint"]).sum()
    assert summarise_atlas(tmp_path / "atlas").leaked_test_cells == expected > 0


def test_an_atlas_without_fingerprints_says_so(atlas, tmp_path):
    shutil.copytree(atlas, tmp_path / "old")
    remove_column(tmp_path / "old", "rna_fingerprint")
    found = summarise_atlas(tmp_path / "old")
    assert found.leaked_test_cells is None
    assert "not known (no fingerprints)" in render_summary(found)


def test_page_has_tables_of_what_is_shared(atlas):
    found = summarise_atlas(atlas)
    page = render_summary(found)
    assert "150 (" in page
    table = page[page.index("shared proteins") :].splitlines()
    assert table[1].split() == ["[1]", "paired", str(len(ANTIBODIES)), "-"]
    assert table[2].split() == ["[2]", "rna", "-", "-"]
    found.datasets = found.datasets * MAX_OVERLAP_COLUMNS
    assert "too many data sets for a table" in render_summary(found)


def test_columns_are_aligned():
    lines = render_columns([["a", "bb", "c"], ["long name", "1", "23"]]).splitlines()
    assert lines == ["a          bb   c", "long name   1  23"]


def test_command_prints_json_and_draws(atlas, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["scfusion", "inspect", str(atlas), "--json", "--plot", str(picture)])
    main()
    assert json.loads(capsys.readouterr().out) == summarise_atlas(atlas).to_dict()
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert "`--plot` must not exist yet" in capsys.readouterr().err
