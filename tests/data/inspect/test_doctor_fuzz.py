"""Damaged and odd files: the doctor never crashes, and what it accepts holds the counts that were written."""

import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_files import ANTIBODIES, GENES, WRITERS, make_adt, make_rna, write_zarr

from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.inspect.doctor import examine_files
from scfusion_fm.data.schema import LARGEST_COUNT
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary

ODD_VALUES = [np.nan, np.inf, -np.inf, -1, 0.5, -0.0, 1e-9, LARGEST_COUNT, LARGEST_COUNT + 2, 1e30, 255, 65_536]
ODD_NAMES = [
    "",
    "nan",
    "CD4",
    "CD4-1",
    "Ωmega",
    "日本",
    "ENSG00000010610.7",
    "ENSMUSG00000000001",
    "7",
    "a/b",
    "x" * 300,
]
ODD_COLUMNS = {
    "cell_type": ["a", None, "nan", "ä", "", "a", "b"],
    "numbers": np.arange(7.0),
    "flag": [True, False] * 3 + [True],
    "donor_id": pd.Categorical(["d1"] * 6 + [None]),
    "_index_": list("abcdefg"),
}
FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALL = build_vocabulary(None, "protein_coding", "all")


def examine(path):
    return examine_files([path], SMALL).files[0]


def counts_of(path):
    """Read the counts of an accepted file as the reader gives them."""
    with warnings.catch_warnings(action="ignore"):
        cells = read_cells(path)
    return {name: m for name, m in (("rna", cells.rna), ("adt", cells.adt)) if m is not None}


def check_whole(modality):
    values = modality.counts.data
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert (values == np.floor(values)).all()


@st.composite
def odd_tables(draw):
    """Draw an AnnData of seven cells with a few odd things, and its matrix."""
    num_cells = draw(st.sampled_from([7, 7, 7, 1, 0]))
    names = list(draw(st.sampled_from([GENES, ANTIBODIES])))
    for name in draw(st.lists(st.sampled_from(ODD_NAMES), max_size=3)):
        names[draw(st.integers(0, len(names) - 1))] = name
    matrix = np.random.default_rng(draw(st.integers(0, 9))).poisson(2.0, (num_cells, len(names))).astype(float)
    for value in draw(st.lists(st.sampled_from(ODD_VALUES), max_size=1)) if num_cells else ():
        matrix[draw(st.integers(0, num_cells - 1)), draw(st.integers(0, len(names) - 1))] = value
    dtype = draw(st.sampled_from(["f8", "f4", "i8", "u2", "i2", "?"]))
    with np.errstate(all="ignore"):
        matrix = matrix.astype(dtype)
    made = draw(st.sampled_from([sp.csr_matrix, sp.csc_matrix, np.asarray]))(matrix)
    columns = draw(st.lists(st.sampled_from(list(ODD_COLUMNS)), unique=True))
    obs = pd.DataFrame({c: ODD_COLUMNS[c][:num_cells] for c in columns}, index=[f"c{i}" for i in range(num_cells)])
    if num_cells > 1 and draw(st.integers(0, 9)) == 0:
        obs.index = ["c0", *obs.index[:-1]]
    with warnings.catch_warnings(action="ignore"):  # of repeated names
        adata = ad.AnnData(made.astype("f4") * 0.3, obs=obs, var=pd.DataFrame(index=names))
        raw = ad.AnnData(made, obs=obs, var=pd.DataFrame(index=names))
    slot = draw(st.sampled_from(["X", "layer", "raw"]))
    if slot == "layer":
        adata.layers["counts"] = made
    elif slot == "raw":
        adata.raw = raw
    else:
        adata = raw
    return adata, matrix.astype(float), draw(st.sampled_from(["in.h5ad", "in.zarr"]))


@FUZZ
@given(odd_tables())
def test_odd_tables_are_refused_or_read_as_written(tmp_path, drawn):
    adata, written, name = drawn
    path = tmp_path / name
    shutil.rmtree(path, ignore_errors=True)
    with warnings.catch_warnings(action="ignore"):
        write_zarr(path, adata, version=3) if path.suffix == ".zarr" else adata.write_h5ad(path)
    report = examine(path)
    valid = np.isfinite(written).all() and (written >= 0).all() and (written == np.floor(written)).all()
    if not (valid and written.size and (written <= LARGEST_COUNT).all() and adata.obs_names.is_unique):
        assert report.verdict == "refused"
    if report.verdict != "refused":
        (modality,) = counts_of(path).values()
        check_whole(modality)
        np.testing.assert_array_equal(modality.counts.toarray(), written)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_damaged_files_are_refused_or_hold_counts(tmp_path, name):
    """Cut files and files with flipped bits; of HDF5, in the values only: its library may hang on other damage."""
    WRITERS[name](tmp_path / name, make_rna(), make_adt())
    whole = tmp_path / f"whole_{name}"
    (tmp_path / name).rename(whole)
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / name
        shutil.rmtree(path, ignore_errors=True)
        (shutil.copytree if whole.is_dir() else shutil.copyfile)(whole, path)
        damage = cut if i % 3 == 0 else flip_bits
        damage(path, rng)
        report = examine(path)
        if report.verdict != "refused":
            for modality in counts_of(path).values():
                check_whole(modality)
        elif damage is cut and path.suffix != ".zarr":
            assert "cut off" in report.refusal or "cannot be read" in report.refusal


def files_of(path):
    return [f for f in sorted(path.rglob("*")) if f.is_file() and f.stat().st_size] if path.is_dir() else [path]


def cut(path, rng):
    file = rng.choice(files_of(path))
    file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])


def flip_bits(path, rng):
    file = rng.choice(files_of(path))
    content = bytearray(file.read_bytes())
    places = np.arange(len(content)) if path.is_dir() else places_of_values(file)
    for place in rng.choice(places, 3):
        content[place] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def places_of_values(path):
    """List the bytes of an HDF5 file that hold numbers or codes of data sets, not its structure."""
    found = []

    def visit(_, node):
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf" and node.id.get_offset():
            found.append(np.arange(node.id.get_offset(), node.id.get_offset() + node.id.get_storage_size()))

    with h5py.File(path) as file:
        file.visititems(visit)
    return np.concatenate(found)


@pytest.mark.parametrize(
    "gone", ["X", "var", "obs", "obs/_index", "X/indptr", "X/indices", "X/data", "var/_index", "obs/batch/codes"]
)
@pytest.mark.parametrize("what", ["missing", "another type", "shorter"])
def test_missing_and_wrong_groups_are_refused_or_do_not_matter(tmp_path, gone, what):
    path = tmp_path / "in.h5ad"
    make_rna().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        if gone not in file:
            pytest.skip("not in this version of the format")
        old = file[gone]
        kept = old[:-1] if what == "shorter" and isinstance(old, h5py.Dataset) else np.array(b"text")
        attributes = dict(old.attrs)
        del file[gone]
        if what != "missing":
            file[gone] = kept
            file[gone].attrs.update(attributes)
    report = examine(path)
    if report.verdict != "refused":
        expected = make_rna().X.toarray()
        np.testing.assert_array_equal(counts_of(path)["rna"].counts.toarray(), expected)


def test_negative_indices_are_refused(tmp_path):
    path = tmp_path / "in.h5ad"
    make_rna().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][3] = -5
    report = examine(path)
    assert report.verdict == "refused"
    assert "indices do not fit" in report.refusal
    assert [slot.content for slot in report.slots] == ["a damaged sparse matrix"]


@pytest.mark.parametrize("pointers", [[0, 10, 5, 20, 42], [0, 10, -(2**31) + 6, 5, 42], [0, 6, 12, 18, 10**6]])
def test_index_pointers_that_make_no_rows_are_refused(tmp_path, pointers):
    """The second kind passes scipy's own check: its differences overflow 32 bits."""
    path = tmp_path / "in.h5ad"
    make_rna().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        dtype = file["X/indptr"].dtype
        del file["X/indptr"]
        file["X/indptr"] = np.array([*pointers[:4], *[pointers[3]] * 3, pointers[4]], dtype=np.int32).astype(dtype)
    report = examine(path)
    assert report.verdict == "refused"
    assert "indices do not fit" in report.refusal or "cannot be read" in report.refusal


def test_broken_zarr_metadata_is_refused(tmp_path):
    path = tmp_path / "in.zarr"
    write_zarr(path, make_rna(), version=2)
    file = path / "X" / "data" / ".zarray"
    file.write_text(file.read_text().replace('"fill_value"', '"fall_value"'))
    (path / ".zmetadata").unlink(missing_ok=True)
    assert "in.zarr, X` must be readable, got TypeError" in examine(path).refusal
