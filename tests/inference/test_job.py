"""scfusion embed, annotate and predict-protein: what they add, what they keep, what they refuse."""

import warnings

import anndata as ad
import mudata as md
import numpy as np
import pytest
import torch
from make_cells import make_modalities, write_h5mu
from scipy.special import softmax

from scfusion_fm import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
)
from scfusion_fm.evaluation.calibration.intervals import PROTEIN_INTERVALS, ProteinIntervals
from scfusion_fm.inference.annotate import annotate
from scfusion_fm.inference.embed import embed
from scfusion_fm.inference.export import export_model
from scfusion_fm.inference.job import FileRequest
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.predict_protein import IntervalRequest, predict_protein

pytestmark = pytest.mark.filterwarnings("ignore:.*(pull_on_update|will be removed|Observation names).*")


def head(model_dir, path, model_class, files=None, **settings):
    torch.manual_seed(1)
    model = model_class.from_pretrained(model_dir, **settings)
    export_model(model, ScFusionTTTFeatureExtractor.from_pretrained(model_dir), path, {}, files=files)
    return path


@pytest.fixture(scope="module")
def annotator(model_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("annotator") / "model"
    names = {0: "B", 1: "T", 2: "Mono"}
    return head(model_dir, path, ScFusionTTTForCellTypeAnnotation, num_labels=3, id2label=names)


@pytest.fixture(scope="module")
def predictor(model_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("predictor") / "model"
    features = ["CD3", "CD19"]
    return head(model_dir, path, ScFusionTTTForCrossModalPrediction, predicted_features=features)


def make_intervals(names=("CD3", "CD19")):
    """Intervals from 40 cells: RNA determines the first protein only, and T cells have their own."""
    rng = np.random.default_rng(0)
    predicted, noise = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    measured = np.stack([predicted[:, 0] + 0.1 * noise[:, 0], noise[:, 1]], 1)
    measured[:35, 0] = predicted[:35, 0]
    seen = np.ones((40, 2), dtype=bool)
    return ProteinIntervals.calibrate(measured, predicted, seen, list(names), ["T"] * 35 + ["B"] * 5)


@pytest.fixture(scope="module")
def calibrated_predictor(model_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "model"
    files = {PROTEIN_INTERVALS: make_intervals().to_json().encode()}
    features = ["CD3", "CD19"]
    return head(model_dir, path, ScFusionTTTForCrossModalPrediction, files, predicted_features=features)


@pytest.fixture
def rna_file(tmp_path):
    adata = make_modalities(20, seed=3)[0]
    adata.obsm["X_pca"] = np.ones((20, 2))
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    adata.uns["note"] = "kept"
    adata.write_h5ad(tmp_path / "rna.h5ad")
    return tmp_path / "rna.h5ad"


def test_embedding_is_added_and_the_rest_stays(model_dir, rna_file, tmp_path):
    embed(FileRequest(model_dir, rna_file, tmp_path / "out.h5ad"))
    before, after = ad.read_h5ad(rna_file), ad.read_h5ad(tmp_path / "out.h5ad")
    assert after.obsm["X_scfusion_ttt"].shape == (20, 16)
    assert np.isfinite(after.obsm["X_scfusion_ttt"]).all()
    assert np.array_equal(after.X.toarray(), before.X.toarray())
    assert np.array_equal(after.layers["counts"].toarray(), before.layers["counts"].toarray())
    assert after.obs.equals(before.obs)
    assert after.var.equals(before.var)
    assert np.array_equal(after.obsm["X_pca"], before.obsm["X_pca"])
    assert after.uns["note"] == "kept"
    record = after.uns["scfusion_ttt"]["embed"]
    assert len(record["model_sha256"]) == 64
    assert record["obsm"] == "X_scfusion_ttt"


def test_embedding_depends_neither_on_batches_nor_on_order_of_cells_and_genes(model_dir, rna_file, tmp_path):
    embed(FileRequest(model_dir, rna_file, tmp_path / "whole.h5ad"))
    shuffled = ad.read_h5ad(rna_file)[::-1, ::-1].copy()
    shuffled.write_h5ad(tmp_path / "shuffled.h5ad")
    embed(FileRequest(model_dir, tmp_path / "shuffled.h5ad", tmp_path / "parts.h5ad", batch_size=3))
    whole, parts = (ad.read_h5ad(tmp_path / f"{n}.h5ad") for n in ("whole", "parts"))
    expected = whole[parts.obs_names].obsm["X_scfusion_ttt"]
    np.testing.assert_allclose(parts.obsm["X_scfusion_ttt"], expected, rtol=1e-4, atol=1e-5)


def test_commands_follow_one_another_on_a_paired_file(model_dir, annotator, predictor, tmp_path):
    source = write_h5mu(tmp_path / "in.h5mu", 15, seed=4)
    embed(FileRequest(model_dir, source, tmp_path / "1.h5mu"))
    annotate(FileRequest(annotator, tmp_path / "1.h5mu", tmp_path / "2.h5mu"))
    predict_protein(FileRequest(predictor, tmp_path / "2.h5mu", tmp_path / "3.h5mu"))
    with warnings.catch_warnings(action="ignore"):
        after, before = md.read_h5mu(tmp_path / "3.h5mu"), md.read_h5mu(source)
    assert set(after.obs["cell_type_pred"]) <= {"B", "T", "Mono"}
    assert after.obs["cell_type_pred_probability"].between(1 / 3, 1).all()
    assert list(after.obsm["protein_scfusion_ttt"].columns) == ["CD3", "CD19"]
    assert set(after.uns["scfusion_ttt"]) == {"embed", "annotate", "predict-protein"}
    for modality in ("rna", "adt"):
        assert np.array_equal(after[modality].X.toarray(), before[modality].X.toarray())
    assert set(before.obs.columns) <= set(after.obs.columns)


def test_annotation_is_the_softmax_of_the_model(annotator, rna_file, tmp_path):
    annotate(FileRequest(annotator, rna_file, tmp_path / "out.h5ad", key_added="type"))
    obs = ad.read_h5ad(tmp_path / "out.h5ad").obs
    model, extractor = load_pretrained(annotator, ScFusionTTTForCellTypeAnnotation)
    adata = ad.read_h5ad(rna_file)
    columns = extractor.index_genes(list(adata.var_names))
    counts = np.zeros((20, len(extractor.gene_ids)))
    counts[:, columns[columns >= 0]] = adata.layers["counts"].toarray()[:, columns >= 0]
    totals = adata.layers["counts"].sum(1).A1
    with torch.inference_mode():
        logits = model(**extractor(rna_counts=counts, rna_total_counts=totals)).logits.numpy()
    names = np.array(["B", "T", "Mono"])
    assert list(obs["type"]) == list(names[logits.argmax(1)])
    np.testing.assert_allclose(obs["type_probability"], softmax(logits, axis=1).max(1), rtol=1e-4)


def test_protein_prediction_does_not_see_the_measured_protein(predictor, tmp_path):
    paired = write_h5mu(tmp_path / "paired.h5mu", 12, seed=5)
    make_modalities(12, seed=5)[0].write_h5ad(tmp_path / "rna.h5ad")
    predict_protein(FileRequest(predictor, paired, tmp_path / "a.h5mu"))
    predict_protein(FileRequest(predictor, tmp_path / "rna.h5ad", tmp_path / "b.h5ad"))
    with warnings.catch_warnings(action="ignore"):
        a = md.read_h5mu(tmp_path / "a.h5mu").obsm["protein_scfusion_ttt"]
    b = ad.read_h5ad(tmp_path / "b.h5ad").obsm["protein_scfusion_ttt"]
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=1e-5)


def test_intervals_stand_beside_the_same_predictions(predictor, calibrated_predictor, rna_file, tmp_path):
    predict_protein(FileRequest(predictor, rna_file, tmp_path / "plain.h5ad"))
    predict_protein(FileRequest(calibrated_predictor, rna_file, tmp_path / "out.h5ad"))
    plain, after = (ad.read_h5ad(tmp_path / f"{n}.h5ad") for n in ("plain", "out"))
    value, lower, upper = (after.obsm[f"protein_scfusion_ttt{end}"] for end in ("", "_lower", "_upper"))
    assert value.equals(plain.obsm["protein_scfusion_ttt"])
    assert not {"protein_scfusion_ttt_lower", "protein_scfusion_ttt_upper"} & set(plain.obsm)
    half = make_intervals().widths(0.9, 20)
    np.testing.assert_allclose((upper - lower) / 2, half, rtol=1e-4)
    np.testing.assert_allclose((upper + lower) / 2, value, rtol=1e-4, atol=1e-5)
    record = after.uns["scfusion_ttt"]["predict-protein"]
    assert record["level"] == 0.9
    assert list(record["undetermined"]) == ["CD19"]
    assert list(record["without_interval"]) == []
    assert value.notna().all(None)


def test_groups_and_undetermined_proteins_are_as_asked(calibrated_predictor, rna_file, tmp_path):
    wanted = IntervalRequest(0.95, "cell_type", drop_undetermined=True)
    predict_protein(FileRequest(calibrated_predictor, rna_file, tmp_path / "out.h5ad", key_added="p"), wanted)
    after = ad.read_h5ad(tmp_path / "out.h5ad")
    assert all(after.obsm[k]["CD19"].isna().all() for k in ("p", "p_lower", "p_upper"))
    half = ((after.obsm["p_upper"] - after.obsm["p_lower"]) / 2)["CD3"]
    t_cells = (after.obs["cell_type"] == "T").to_numpy()
    assert 0 < t_cells.sum() < 20
    np.testing.assert_allclose(half[t_cells], 0, atol=1e-6)
    np.testing.assert_allclose(half[~t_cells], make_intervals().half_widths[3, 0], rtol=1e-4)
    record = after.uns["scfusion_ttt"]["predict-protein"]
    assert record["undetermined_dropped"]
    assert record["interval_groups"] == "cell_type"


def test_intervals_that_cannot_be_given_are_refused(model_dir, predictor, calibrated_predictor, rna_file, tmp_path):
    out = tmp_path / "out.h5ad"
    adata = ad.read_h5ad(rna_file)
    adata.obsm["protein_scfusion_ttt_upper"] = np.ones((20, 2))
    adata.write_h5ad(tmp_path / "taken.h5ad")
    files = {PROTEIN_INTERVALS: make_intervals(("CD3", "CD4")).to_json().encode()}
    features = {"predicted_features": ["CD3", "CD19"]}
    other = head(model_dir, tmp_path / "other", ScFusionTTTForCrossModalPrediction, files, **features)
    for model, source, wanted, message in (
        (predictor, rna_file, IntervalRequest(level=0.9), "`model` must hold protein_intervals.json for --level"),
        (calibrated_predictor, rna_file, IntervalRequest(level=0.7), "`--level` must be one of the calibrated"),
        (calibrated_predictor, rna_file, IntervalRequest(group_key="site"), "`--group-key` must be a column of obs"),
        (calibrated_predictor, tmp_path / "taken.h5ad", None, r"`obsm\['protein_scfusion_ttt_upper'\]` is already in"),
        (other, rna_file, None, "`model` must have intervals for the proteins it predicts"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_protein(FileRequest(model, source, out), wanted)
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:.*have no count in any modality, and are kept")
def test_cells_without_counts_get_nan_and_a_warning(model_dir, annotator, tmp_path):
    adata = make_modalities(10, seed=6)[0]
    counts = adata.X.toarray()
    counts[4] = 0
    adata.X = counts
    adata.write_h5ad(tmp_path / "in.h5ad")
    with pytest.warns(UserWarning, match="1 of 10 cells have no usable counts"):
        embed(FileRequest(model_dir, tmp_path / "in.h5ad", tmp_path / "out.h5ad"))
    with pytest.warns(UserWarning, match="1 of 10 cells have no usable counts"):
        annotate(FileRequest(annotator, tmp_path / "out.h5ad", tmp_path / "out2.h5ad"))
    after = ad.read_h5ad(tmp_path / "out2.h5ad")
    assert np.isnan(after.obsm["X_scfusion_ttt"]).all(1).tolist() == [i == 4 for i in range(10)]
    assert after.obs["cell_type_pred"].isna().tolist() == [i == 4 for i in range(10)]


def test_mistakes_are_refused_and_leave_nothing(model_dir, annotator, predictor, rna_file, tmp_path):
    out = tmp_path / "out.h5ad"
    before = sorted(p.name for p in tmp_path.iterdir())
    adt = make_modalities(10, seed=7)[1]
    cases = [
        (embed, FileRequest(model_dir, rna_file, rna_file), "`output` must not exist yet"),
        (embed, FileRequest(model_dir, rna_file, tmp_path / "out.h5mu"), "`output` must end in .h5ad or .zarr"),
        (embed, FileRequest(model_dir, rna_file, out, key_added="X_pca"), r"`obsm\['X_pca'\]` is already in"),
        (annotate, FileRequest(annotator, rna_file, out, key_added="donor"), r"`obs\['donor'\]` is already in"),
        (embed, FileRequest(tmp_path, rna_file, out), "`model` must be a directory with config.json"),
        (annotate, FileRequest(model_dir, rna_file, out), "`model` must be a ScFusionTTTForCellTypeAnnotation"),
        (predict_protein, FileRequest(annotator, rna_file, out), "`model` must be a ScFusionTTTForCrossModal"),
    ]
    for command, request, message in cases:
        with pytest.raises(ValueError, match=message):
            command(request)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    adt.write_h5ad(tmp_path / "adt.h5ad")
    with pytest.raises(ValueError, match="`--batch-size` must be at least 1, got 0"):
        FileRequest(model_dir, rna_file, out, batch_size=0)
    with pytest.raises(ValueError, match="`input` must hold RNA to predict proteins from"):
        predict_protein(FileRequest(predictor, tmp_path / "adt.h5ad", out, modality="adt"))


def test_models_that_cannot_serve_are_refused(model_dir, rna_file, tmp_path):
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (other / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="`model` must be a scfusion_ttt model, got 'bert'"):
        embed(FileRequest(other, rna_file, tmp_path / "out.h5ad"))
    reverse = head(model_dir, tmp_path / "reverse", ScFusionTTTForCrossModalPrediction, target_modality="rna")
    with pytest.raises(ValueError, match="`model` must predict adt, got one that predicts 'rna'"):
        predict_protein(FileRequest(reverse, rna_file, tmp_path / "out.h5ad"))


def test_file_without_any_readable_cell_is_refused(model_dir, tmp_path):
    adata = make_modalities(4, seed=8)[0]
    adata.X = np.zeros((4, adata.n_vars), dtype=np.float32)
    adata.write_h5ad(tmp_path / "empty.h5ad")
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ValueError, match="`input` must hold cells that the model can read"),
    ):
        embed(FileRequest(model_dir, tmp_path / "empty.h5ad", tmp_path / "out.h5ad"))
    assert not (tmp_path / "out.h5ad").exists()
