"""10x files of Cell Ranger 3 and later: read as scanpy reads them, without what is broken beside the counts."""

import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from make_files import make_adt, make_rna, write_10x_h5

from scfusion_fm import ScFusionWarning, read_cells


@pytest.fixture
def path(tmp_path):
    write_10x_h5(tmp_path / "a.h5", make_rna(), make_adt())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        matrix = file["matrix"]
        matrix["filtered_barcodes"] = np.arange(7) % 2 == 0
        matrix["features/pattern"] = np.array(["^5P(BC)"] * 11, dtype="S")
        matrix["features/is_control"] = np.arange(11) == 9
        matrix["features/_all_tag_keys"] = np.array(["pattern"], dtype="S")
    return tmp_path / "a.h5"


def assert_as_scanpy(path):
    found, expected = read_cells(path).container, scanpy.read_10x_h5(path, gex_only=False)
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var[expected.var.columns], expected.var)
    assert (found.X != expected.X).nnz == 0
    assert found.X.dtype == expected.X.dtype
    return found


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_all_tables_are_those_of_scanpy(path):
    assert [*assert_as_scanpy(path).var] == ["gene_ids", "feature_types", "genome", "is_control", "pattern"]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_a_file_of_probes_names_their_genes(path):
    with h5py.File(path, "r+") as file:
        features = file["matrix/features"]
        features["gene_id"] = features["id"][:]
        del features["id"]
        features["id"] = np.array([f"probe{i}" for i in range(11)], dtype="S")
    assert list(assert_as_scanpy(path).var["probe_ids"][:2]) == ["probe0", "probe1"]


def test_what_is_broken_beside_the_counts_is_left_out(path):
    with h5py.File(path, "r+") as file:
        del file["matrix/features/genome"], file["matrix/filtered_barcodes"]
        file["matrix/features/genome"] = np.zeros(3)
        file["matrix/filtered_barcodes"] = np.zeros((2, 2))
    with pytest.warns(ScFusionWarning, match="left out, because it is broken: matrix/features/genome, matrix/filtered"):
        found = read_cells(path).container
    assert "genome" not in found.var
    assert list(found.obs) == []
