"""Atlases of made-up cells: those of the generator, and the same each time."""

import sys

import anndata as ad
import numpy as np
import pytest

from scfusion_fm.cli.main import main
from scfusion_fm.data.atlas.atlas import Atlas, verify_atlas
from scfusion_fm.data.prepare.synthesize import synthesize_atlas
from scfusion_fm.data.prepare.synthetic import SyntheticSettings, SyntheticSource


def test_the_command_writes_the_cells_of_the_generator(tmp_path, monkeypatch):
    sizes = ("--cells", "300", "--genes", "400", "--proteins", "9", "--datasets", "3", "--cell-types", "4")
    monkeypatch.setattr(sys, "argv", ["scfusion", "synthesize", str(tmp_path / "atlas.zarr"), *sizes])
    main()
    adata, source = ad.read_zarr(tmp_path / "atlas.zarr"), SyntheticSource(SyntheticSettings(300, 400, 0.07, 9, 3, 4))
    row = np.array([int(name.split(":cell")[1]) for name in adata.obs_names])
    rna, adt = source.read(row)
    obs = source.obs(0, 300).iloc[row]
    assert sorted(row) == list(range(300))
    assert np.array_equal(adata.X.toarray(), rna.toarray())
    assert np.array_equal(adata.obsm["adt"], adt)
    for column in ("dataset", "cell_type", "plate"):
        assert list(adata.obs[column].astype(str)) == list(obs[column].astype(str))
    assert np.array_equal(adata.varm["rna_panel"], source.rna_panel)
    verify_atlas(tmp_path / "atlas.zarr", report=lambda line: None)


def test_the_same_settings_give_the_same_atlas_and_others_another(tmp_path):
    settings = SyntheticSettings(60, 50, 0.2, 3, 2, 2)
    for name in ("a", "b"):
        synthesize_atlas(settings, tmp_path / name, report=lambda line: None)
    synthesize_atlas(SyntheticSettings(60, 50, 0.2, 3, 2, 2, seed=1), tmp_path / "c", report=lambda line: None)
    prints = [Atlas(tmp_path / name).fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(ValueError, match="`output` must not exist yet"):
        synthesize_atlas(settings, tmp_path / "a")
