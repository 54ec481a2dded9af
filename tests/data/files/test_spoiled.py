"""Spoiled files are refused, or give counts, and all readers agree; scripts/fuzz_files.py tries many more."""

import shutil
import warnings

import numpy as np
import pytest
from make_files import WRITERS, make_adt, make_rna
from spoil_files import spoil_hdf5, spoil_zarr

from scfusion_fm.data.files.arrays import close_files
from scfusion_fm.data.files.readers import load_cells, open_cells, read_cells
from scfusion_fm.data.schema import check_counts


@pytest.fixture(scope="module", params=["mudata.h5mu", "feature_types.h5ad", "cellranger.h5", "anndata.zarr"])
def whole(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / request.param
    WRITERS[request.param](path, make_rna(), make_adt())
    return path


def try_to_read(read, path):
    with warnings.catch_warnings(action="ignore"):
        try:
            return read(path)
        except ValueError:
            return None
        finally:
            close_files()


def test_spoiled_files_are_refused_or_read_alike(whole, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(8):
        path = tmp_path / whole.name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (shutil.copytree if whole.is_dir() else shutil.copyfile)(whole, path)
        # Bits of HDF5's own structure can make its library loop: those are tried in processes of their own.
        done = spoil_zarr(path, rng) if whole.is_dir() else spoil_hdf5(path, rng, keeps_structure=True)
        cells = try_to_read(read_cells, path)
        opened = try_to_read(lambda p: load_cells(open_cells(p)), path)
        assert (cells is None) == (opened is None), done
        for name in ("rna", "adt") if cells is not None else ():
            first, second = getattr(cells, name), getattr(opened, name)
            assert (first is None) == (second is None), done
            if first is not None:
                check_counts(first.counts, done)
                assert (first.counts != second.counts).nnz == 0, done
