"""What goes into an atlas: columns, groups and cells that are missing are told or refused."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from make_atlas import write_atlas
from make_cells import make_modalities
from missing_values import WITHOUT_VALUE

from scfusion_fm.config.prepare import SourceConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.prepare.sources import atlas_obs

pytestmark = pytest.mark.usefixtures("small_pieces")


@pytest.mark.parametrize("columns", [["dataset"], ["split"], ["rna_present"], [""], ["donor", "donor"]])
def test_columns_that_every_atlas_has_are_refused(settings, tmp_path, columns):
    settings.obs_columns = columns
    with pytest.raises(ValueError, match="`obs_columns` must name each column once, and none that every atlas has"):
        write_atlas(settings, tmp_path / "atlas.zarr")


def test_cells_without_a_group_are_told(settings, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.obs.loc[rna.obs_names[:7], "donor"] = None
    rna.write_h5ad(tmp_path / "some.h5ad")
    settings.sources = [SourceConfig(tmp_path / "some.h5ad", "some", modality="rna")]
    settings.split = SplitConfig(0.3, 0.3, 3, group_key="donor")
    with pytest.warns(UserWarning, match=r"some: 7 of 40 cells have no 'donor' and are trained on"):
        write_atlas(settings, tmp_path / "atlas.zarr")


@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_a_missing_donor_is_no_donor_that_is_held_out(settings, missing):
    obs = pd.DataFrame({"donor": WITHOUT_VALUE[missing].to_numpy()}, index=["a", "b", "c"])
    settings.split, settings.obs_columns = SplitConfig(0.0, 0.999, 3, group_key="donor"), ["donor"]
    with pytest.warns(UserWarning, match="1 of 3 cells have no 'donor'"):
        written = atlas_obs(settings, "some", obs)
    assert written["split"].tolist() == ["test", "train", "test"]
    assert written["donor"].map(type).eq(str).all()


def test_sources_without_any_usable_count_are_refused(settings, sources, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X = sp.csr_matrix(rna.shape, dtype=np.float32)
    rna.write_h5ad(tmp_path / "empty.h5ad")
    settings.sources = [*sources, SourceConfig(tmp_path / "empty.h5ad", "empty", modality="rna")]
    with pytest.raises(ValueError, match=r"`empty.h5ad` must have counts of genes or proteins .* got none in its 40"):
        write_atlas(settings, tmp_path / "atlas.zarr")


def test_empty_cells_are_told(settings, sources, tmp_path):
    rna = make_modalities(40, seed=7)[0]
    rna.X = sp.diags_array((np.arange(40) != 3).astype(np.float32)).tocsr() @ rna.X
    rna.write_h5ad(tmp_path / "some.h5ad")
    settings.sources = [*sources, SourceConfig(tmp_path / "some.h5ad", "some", modality="rna")]
    with pytest.warns(UserWarning, match=r"some.h5ad: 1 of 40 cells have no count"):
        write_atlas(settings, tmp_path / "atlas.zarr")
