"""Verbs on objects: in place or on a copy, the same as on files, and in blocks of any size."""

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pytest
from make_cells import make_modalities, write_h5mu
from make_files import write_zarr

import scfusion_fm as sf
from scfusion_fm.data.files import align, copied
from scfusion_fm.data.files.arrays import close_files
from scfusion_fm.data.files.copied import can_copy
from scfusion_fm.data.files.readers import open_file
from scfusion_fm.inference import model_files

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pull_on_update|will be removed|Observation names|names are intersecting).*"
)
KEY = "X_scfusion_ttt"


@pytest.fixture(scope="module")
def loaded(model_dir):
    return sf.load(model_dir)


@pytest.fixture
def rna():
    return make_modalities(20, seed=2)[0]


def test_an_object_gets_its_results_in_place(loaded, annotator, predictor, rna):
    assert sf.embed(rna, loaded) is None
    assert rna.obsm[KEY].shape == (20, 16)
    sf.annotate(rna, annotator)
    assert set(rna.obs["cell_type_pred"]) <= {"B", "T", "Mono"}
    sf.predict_protein(rna, predictor, proteins=["CD19"])
    assert list(rna.obsm["protein_scfusion_ttt"].columns) == ["CD19"]
    sf.surprise(rna, loaded)
    assert rna.obs["scfusion_ttt_surprise"].notna().all()
    assert set(rna.uns["scfusion_ttt"]) == {"embed", "annotate", "predict-protein", "surprise"}
    first = rna.obsm[KEY].copy()
    sf.embed(rna, loaded)  # again, as in a notebook
    np.testing.assert_array_equal(rna.obsm[KEY], first)


def test_a_copy_leaves_the_object_alone(loaded, rna):
    copy = sf.embed(rna, loaded, copy=True)
    assert KEY in copy.obsm
    assert KEY not in rna.obsm
    assert "scfusion_ttt" not in rna.uns


def test_backed_objects_and_paths_give_what_memory_gives(loaded, rna, tmp_path):
    rna.write_h5ad(tmp_path / "a.h5ad")
    expected = sf.embed(rna, loaded, copy=True).obsm[KEY]
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    sf.embed(backed, loaded)
    np.testing.assert_array_equal(backed.obsm[KEY], expected)
    backed.file.close()
    np.testing.assert_array_equal(sf.embed(tmp_path / "a.h5ad", loaded).obsm[KEY], expected)
    assert sf.embed(tmp_path / "a.h5ad", loaded, output=tmp_path / "b.h5ad") is None
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "b.h5ad").obsm[KEY], expected)


def test_a_lazy_object_gets_its_results(loaded, annotator, rna, tmp_path):
    rna.write_h5ad(tmp_path / "a.h5ad")
    lazy = ad.experimental.read_lazy(tmp_path / "a.h5ad")
    sf.embed(lazy, loaded)
    sf.annotate(lazy, annotator)
    np.testing.assert_array_equal(lazy.obsm[KEY], sf.embed(rna, loaded, copy=True).obsm[KEY])
    assert list(lazy.obs["cell_type_pred"].values) == list(sf.annotate(rna, annotator, copy=True).obs["cell_type_pred"])


def test_a_file_with_a_null_for_raw_is_whole(loaded, rna, tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        ad.io.write_elem(file, "/", rna)
        assert "raw" in file
    sf.embed(tmp_path / "a.h5ad", loaded, output=tmp_path / "b.h5ad")  # a warning is an error here
    assert can_copy(open_file(tmp_path / "a.h5ad"), tmp_path / "c.h5ad")
    close_files()


def test_a_mudata_gets_its_results(loaded, tmp_path):
    mdata = md.read_h5mu(write_h5mu(tmp_path / "a.h5mu", 12, seed=3))
    sf.embed(mdata, loaded)
    sf.embed(tmp_path / "a.h5mu", loaded, output=tmp_path / "b.h5mu")
    np.testing.assert_array_equal(mdata.obsm[KEY], md.read_h5mu(tmp_path / "b.h5mu").obsm[KEY])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_blocks_of_any_size_give_the_same(suffix, loaded, predictor, rna, tmp_path, monkeypatch):
    source = tmp_path / f"a{suffix}"
    write_zarr(source, rna, version=3) if suffix == ".zarr" else rna.write_h5ad(source)
    results = []
    for rows, block in ((4096, 2**16), (7, 5)):
        monkeypatch.setattr(align, "READ_ROWS", rows)
        monkeypatch.setattr(align.AlignedFile.blocks, "__defaults__", (rows,))
        monkeypatch.setattr(copied, "BLOCK_ROWS", block)
        embedded, predicted = tmp_path / f"e{rows}{suffix}", tmp_path / f"p{rows}{suffix}"
        sf.embed(source, loaded, output=embedded)
        sf.predict_protein(embedded, predictor, output=predicted)
        read = ad.read_zarr if suffix == ".zarr" else ad.read_h5ad
        results.append(read(predicted))
    for key in (KEY, "protein_scfusion_ttt"):
        first, second = (np.asarray(found.obsm[key]) for found in results)
        np.testing.assert_allclose(first, second, atol=1e-5)
        assert np.isfinite(first).all()
    for found in results:
        np.testing.assert_array_equal(found.X.toarray(), rna.X.toarray())
        assert found.obs.equals(rna.obs)
        assert found.obsm["protein_scfusion_ttt"].index.equals(rna.obs_names)


def test_proteins_have_the_names_of_the_file(predictor, tmp_path):
    rna, adt = make_modalities(15, seed=4)
    adt.var_names = [{"CD19": "anti-CD19", "CD3": "CD3_TotalSeqB"}.get(name, name) for name in adt.var_names]
    mdata = md.MuData({"rna": rna, "adt": adt})
    sf.predict_protein(mdata, predictor)
    assert set(mdata.obsm["protein_scfusion_ttt"].columns) == {"anti-CD19", "CD3_TotalSeqB"}
    told = mdata.uns["scfusion_ttt"]["predict-protein"]
    assert dict(zip(told["proteins"], told["model_proteins"], strict=True))["anti-CD19"] == "CD19"
    sf.predict_protein(mdata, predictor, proteins=["CD19"], key_added="one")  # by the name in the model, too
    assert list(mdata.obsm["one"].columns) == ["anti-CD19"]
    for wanted in (["CD999"], []):
        with pytest.raises(ValueError, match="`proteins` must name proteins that the model predicts"):
            sf.predict_protein(mdata, predictor, proteins=wanted)


def test_a_model_is_found_or_refused(loaded, model_dir, monkeypatch):
    assert sf.load(loaded) is loaded
    assert "genes" in repr(loaded)
    with pytest.raises(ValueError, match="`revision` must be left out where `model` is a directory"):
        sf.load(model_dir, revision="main")
    asked = []

    def download(repo, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        if repo == "nobody/nothing":
            raise OSError("offline")
        return str(model_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert sf.load("group/model", revision="v1").path == model_dir
    assert asked == [("group/model", "v1", model_files.HUB_FILES)]
    with pytest.raises(ValueError, match=r"cannot be downloaded \(offline\)"):
        sf.embed(make_modalities(5, seed=1)[0], "nobody/nothing")


def test_an_interrupted_verb_leaves_nothing(loaded, rna, tmp_path, monkeypatch):
    rna.write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr("scfusion_fm.inference.job.predict_fields", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sf.embed(tmp_path / "a.h5ad", loaded, output=tmp_path / "b.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]
    monkeypatch.setattr(copied, "_copy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sf.embed(tmp_path / "a.h5ad", loaded, output=tmp_path / "b.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


def test_a_refused_file_can_be_written_anew(loaded, rna, tmp_path):
    rna.X = rna.X * 0.5
    rna.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="must hold raw counts"):
        sf.embed(tmp_path / "a.h5ad", loaded)
    with h5py.File(tmp_path / "a.h5ad", "r+"):  # which HDF5 refuses where it is open for reading
        assert KEY not in rna.obsm
