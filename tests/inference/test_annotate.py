"""scfusion annotate: calibrated probabilities, unknown cells at a promised rate, levels of an ontology."""

import sys
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
from make_cells import make_modalities, write_h5mu
from scipy.special import softmax
from seal import change_json, copy_model, seal

from scfusion_fm.cli.main import main
from scfusion_fm.evaluation.calibration.classifier import (
    ANNOTATION_CALIBRATION,
    AnnotationCalibration,
    InputCalibration,
)
from scfusion_fm.evaluation.calibration.unknown import ClassGaussians
from scfusion_fm.inference.annotate import annotate
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.model_files import verify_model
from scfusion_fm.model import ScFusionTTTForCellTypeAnnotation
from scfusion_fm.untrusted.checksums import SUMS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pull_on_update|will be removed|Observation names|are in both modalities).*"
)
NAMES = ["B", "T", "Mono"]
RATES = {0.05: np.inf, 0.2: 0.0}


@pytest.fixture(scope="module")
def export(export_head):
    def export_calibrated(path, calibration, names=NAMES):
        files = {ANNOTATION_CALIBRATION: calibration.to_json().encode()}
        settings = {"num_labels": len(names), "id2label": dict(enumerate(names))}
        return export_head(path, ScFusionTTTForCellTypeAnnotation, files, **settings)

    return export_calibrated


@pytest.fixture(scope="module")
def calibrated(export, tmp_path_factory):
    """Temperature 2 for RNA alone and 0.5 for both; every paired cell is above the threshold at a rate of 0.2."""
    gaussians = ClassGaussians(np.zeros((1, 16)), np.eye(16))
    inputs = {
        "rna": InputCalibration(9, 2.0, {0.05: np.inf, 0.2: 1e9}, gaussians),
        "rna+adt": InputCalibration(9, 0.5, RATES, gaussians),
    }
    calibration = AnnotationCalibration(NAMES, "mahalanobis", inputs)
    return export(tmp_path_factory.mktemp("calibrated") / "model", calibration)


@pytest.fixture(scope="module")
def mixed_file(tmp_path_factory):
    """12 paired cells, of which the last 4 have no protein."""
    path = write_h5mu(tmp_path_factory.mktemp("mixed") / "in.h5mu", 12, seed=5)
    with warnings.catch_warnings(action="ignore"):
        mdata = md.read_h5mu(path)
        part = md.MuData({"rna": mdata["rna"], "adt": mdata["adt"][:8].copy()})
        part.write(path)
    return path


def read(path):
    with warnings.catch_warnings(action="ignore"):
        return md.read_h5mu(path) if path.suffix == ".h5mu" else ad.read_h5ad(path)


def test_annotation_is_the_softmax_of_the_model(annotator, rna_file, tmp_path):
    annotate(rna_file, annotator, output=tmp_path / "out.h5ad", key_added="type")
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


def test_temperature_is_that_of_what_a_cell_shows(annotator, calibrated, mixed_file, tmp_path):
    annotate(mixed_file, annotator, output=tmp_path / "plain.h5mu")
    annotate(mixed_file, calibrated, output=tmp_path / "calibrated.h5mu")
    before, after = (read(tmp_path / f"{n}.h5mu") for n in ("plain", "calibrated"))
    assert list(before.obs["cell_type_pred"]) == list(after.obs["cell_type_pred"])
    column = "cell_type_pred_probability"
    assert (after.obs[column][:8] > before.obs[column][:8]).all()
    assert (after.obs[column][8:] < before.obs[column][8:]).all()
    record = after.uns["scfusion_ttt"]["annotate"]
    assert record["temperature"] == {"rna": 2.0, "rna+adt": 0.5}
    assert "unknown" not in list(after.obs["cell_type_pred"].cat.categories)


def test_command_says_unknown_and_gives_levels(monkeypatch, calibrated, mixed_file, tmp_path):
    tree = tmp_path / "tree.tsv"
    tree.write_text("label\tontology_id\tparent\nX\tCL:0\t\nB\tCL:1\tX\nT\tCL:2\tX\nMono\tCL:3\tX\n")
    out = tmp_path / "out.h5mu"
    options = ["--reject-rate", 0.2, "--ontology", tree, "--min-probability", 1]
    monkeypatch.setattr(sys, "argv", ["scfusion", *map(str, ["annotate", calibrated, mixed_file, out, *options])])
    main()
    obs, record = read(out).obs, read(out).uns["scfusion_ttt"]["annotate"]
    assert list(obs["cell_type_pred"].cat.categories) == [*NAMES, "unknown"]
    assert (obs["cell_type_pred"][:8] == "unknown").all()
    assert (obs["cell_type_pred"][8:] != "unknown").all()
    assert (obs["cell_type_pred_unknown_score"] > 0).all()
    assert list(obs["cell_type_pred_level"]) == ["unknown"] * 8 + ["X"] * 4
    assert list(obs["cell_type_pred_ontology_id"]) == [""] * 8 + ["CL:0"] * 4
    assert obs["cell_type_pred_level_probability"][:8].isna().all()
    np.testing.assert_allclose(obs["cell_type_pred_level_probability"][8:], 1)
    assert (record["reject_rate"], record["unknown_score"]) == (0.2, "mahalanobis")
    assert obs["cell_type_pred_probability"].between(1 / 3, 1).all()


@pytest.mark.filterwarnings("ignore:.*have no count in any modality, and are kept")
@pytest.mark.filterwarnings("ignore:.*have no usable counts")
def test_cells_without_counts_have_neither_type_nor_level(annotator, tmp_path):
    adata = make_modalities(5, seed=6)[0]
    counts = adata.X.toarray()
    counts[0] = 0
    adata.X = counts
    adata.write_h5ad(tmp_path / "in.h5ad")
    tree = tmp_path / "tree.tsv"
    tree.write_text("label\tontology_id\tparent\n" + "".join(f"{n}\t\t\n" for n in NAMES))
    annotate(tmp_path / "in.h5ad", annotator, output=tmp_path / "out.h5ad", ontology=tree)
    obs = read(tmp_path / "out.h5ad").obs.filter(like="cell_type_pred")
    assert obs.iloc[0].isna().all()
    assert obs["cell_type_pred_level"][1:].isin([*NAMES, "unknown"]).all()


def test_cells_that_cannot_be_rejected_warn(calibrated, mixed_file, tmp_path):
    with pytest.warns(UserWarning, match=r"12 of 12 cells cannot be called unknown.*a reject rate of 0.05"):
        annotate(mixed_file, calibrated, output=tmp_path / "out.h5mu", reject_rate=0.05)
    assert (read(tmp_path / "out.h5mu").obs["cell_type_pred"] != "unknown").all()


def test_what_cannot_be_done_is_refused(annotator, calibrated, export, mixed_file, tmp_path):
    found = AnnotationCalibration.load(calibrated / ANNOTATION_CALIBRATION)
    other = export(tmp_path / "other", found, ["B", "T", "NK"])
    taken = AnnotationCalibration(["B", "T", "unknown"], "energy", {"rna": InputCalibration(9, 1.0, RATES)})
    taken = export(tmp_path / "taken", taken, ["B", "T", "unknown"])
    gaussians = ClassGaussians(np.zeros((1, 2)), np.eye(2))
    wide = AnnotationCalibration(NAMES, "mahalanobis", {"rna": InputCalibration(9, 1.0, RATES, gaussians)})
    wide = export(tmp_path / "wide", wide)
    for model, rate, message in (
        (annotator, 0.05, "`model` must hold annotation_calibration.json for a `reject_rate`"),
        (other, None, "`model` must have a calibration for its classes"),
        (taken, 0.05, "`model` must have no class 'unknown' for a `reject_rate`"),
        (wide, None, "`model` must have a calibration for embeddings of width 16, got 2"),
        (calibrated, 0.3, r"`reject_rate` must be one of the calibrated \[0.05, 0.2\], got 0.3"),
    ):
        with pytest.raises(ValueError, match=message):
            annotate(mixed_file, model, output=tmp_path / "out.h5mu", reject_rate=rate)
    assert not (tmp_path / "out.h5mu").exists()


def test_an_unchanged_model_is_saved_with_its_calibration(calibrated, mixed_file, tmp_path):
    model, extractor = load_pretrained(calibrated, ScFusionTTTForCellTypeAnnotation)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "again")
    verify_model(tmp_path / "again")
    found = []
    for path in (calibrated, tmp_path / "again"):
        annotate(mixed_file, path, output=tmp_path / f"{len(found)}.h5mu", reject_rate=0.2)
        found.append(read(tmp_path / f"{len(found)}.h5mu").obs)
    pd.testing.assert_frame_equal(*found)


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.filterwarnings("ignore:.*has no SHA256SUMS")
def test_a_calibration_of_other_weights_is_refused(calibrated, mixed_file, tmp_path, sums):
    copy_model(calibrated, tmp_path / "model")
    change_json(tmp_path / "model" / ANNOTATION_CALIBRATION, weights_sha256="0" * 64)
    if not sums:
        (tmp_path / "model" / SUMS).unlink()
    with pytest.raises(ValueError, match=r"annotation_calibration.json' must be made for model.safetensors beside it"):
        annotate(mixed_file, tmp_path / "model", output=tmp_path / "out.h5mu")


def test_a_calibration_that_is_no_json_is_named(calibrated, mixed_file, tmp_path):
    copy_model(calibrated, tmp_path / "model")
    (tmp_path / "model" / ANNOTATION_CALIBRATION).write_text("{broken")
    seal(tmp_path / "model")
    with pytest.raises(ValueError, match=r"calibration.json': must be complete JSON, .* The file is damaged"):
        annotate(mixed_file, tmp_path / "model", output=tmp_path / "out.h5mu")
