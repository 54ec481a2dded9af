"""Pipelines of transformers give what the model gives, whatever form the cells have."""

import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
from make_cells import make_modalities
from scipy.special import softmax
from transformers import pipeline

import scfusion_fm
from scfusion_fm import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTModel,
)
from scfusion_fm.inference.model_files import verify_model

CELLS = 10
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pull_on_update|will be removed|Observation names|var_names are intersecting).*"
)


@pytest.fixture(scope="module")
def saved(model_dir, tmp_path_factory):
    """A classifier with random weights that `save_pretrained` wrote."""
    path = tmp_path_factory.mktemp("classifier") / "model"
    names = {0: "B", 1: "T", 2: "Mono"}
    torch.manual_seed(1)
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(model_dir, num_labels=3, id2label=names)
    for part in (model, ScFusionTTTFeatureExtractor.from_pretrained(model_dir)):
        part.save_pretrained(path)
    return path


@pytest.fixture
def modalities():
    return make_modalities(CELLS, seed=3)


def test_types_and_scores_are_those_of_the_verb_without_calibration(saved, modalities):
    rna = modalities[0]
    obs = scfusion_fm.annotate(rna, saved, copy=True).obs
    pipe = pipeline("cell-type-annotation", model=str(saved), device="cpu", dtype="float32")
    rna.layers["counts"], rna.X = rna.X.copy(), rna.X.log1p()
    for given in (rna, rna.to_df("counts"), {"rna_counts": rna.to_df("counts")}):
        for size in (3, 64):
            found = pd.DataFrame(pipe(given, batch_size=size))
            assert list(found["label"]) == list(obs["cell_type_pred"])
            np.testing.assert_allclose(found["score"], obs["cell_type_pred_probability"], rtol=1e-5)


def test_both_modalities_are_read(saved, modalities):
    rna, adt = modalities
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(saved)
    adt = adt[:, [name in extractor.protein_names for name in adt.var_names]].copy()
    model = ScFusionTTTForCellTypeAnnotation.from_pretrained(saved)
    with torch.no_grad():
        output = model(**extractor(rna_counts=rna.to_df(), adt_counts=adt.to_df()))
    expected = softmax(output.logits.numpy(), 1)
    pipe = pipeline("cell-type-annotation", model=model, feature_extractor=extractor, batch_size=4)
    found = pipe(md.MuData({"rna": rna, "adt": adt}), top_k=9)
    assert [len(cell) for cell in found] == [3] * CELLS
    for cell, row in zip(found, expected, strict=True):
        assert [x["label"] for x in cell] == [model.config.id2label[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([x["score"] for x in cell], np.sort(row)[::-1], rtol=1e-4)
    embedded = pipeline("cell-embedding", model=str(saved), dtype="float32")({"adt_counts": adt.to_df()})
    with torch.no_grad():
        expected = ScFusionTTTModel.from_pretrained(saved)(**extractor(adt_counts=adt.to_df())).pooler_output
    np.testing.assert_allclose(embedded, expected, atol=1e-5)


def test_proteins_are_those_of_the_verb_under_the_names_of_the_model(model_dir, modalities, tmp_path):
    torch.manual_seed(1)
    model = ScFusionTTTForCrossModalPrediction.from_pretrained(model_dir, predicted_features=["CD19", "CD3"])
    for part in (model, ScFusionTTTFeatureExtractor.from_pretrained(model_dir)):
        part.save_pretrained(tmp_path / "predictor")
    rna, adt = modalities
    expected = scfusion_fm.predict_protein(rna, tmp_path / "predictor", copy=True).obsm["protein_scfusion_ttt"]
    pipe = pipeline("protein-prediction", model=str(tmp_path / "predictor"), dtype="float32")
    for given in (rna, md.MuData({"rna": rna, "adt": adt}), rna.to_df()):
        found = pd.DataFrame(pipe(given, batch_size=4), index=rna.obs_names)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, atol=1e-5)
    with pytest.raises(ValueError, match="`cells` must hold RNA to predict proteins from"):
        pipe({"adt_counts": adt.to_df()})
    pipe.model.config.target_modality = "rna"
    with pytest.raises(ValueError, match="`model` must predict adt, got one that predicts 'rna'"):
        pipe(rna)


def test_a_pipeline_is_saved_as_a_model_directory(saved, modalities, tmp_path):
    pipe = pipeline("cell-type-annotation", model=str(saved), dtype="bfloat16")
    assert pipe.model.dtype == torch.bfloat16
    pipe.save_pretrained(tmp_path / "again")
    verify_model(tmp_path / "again")
    again = pipeline("cell-type-annotation", model=str(tmp_path / "again"))
    assert again(modalities[0]) == pipe(modalities[0])


def test_what_a_pipeline_cannot_do_is_refused(saved, modalities):
    pipe = pipeline("cell-type-annotation", model=str(saved))
    assert pipe(modalities[0][:0]) == []
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        pipe(modalities[0], top_k=0)
    with pytest.raises(ValueError, match="`padding` must be an argument of this pipeline"):
        pipe(modalities[0], padding=True)
    modalities[0].X = modalities[0].X.log1p()
    with pytest.raises(ValueError, match="`rna_counts` must"):
        pipe(modalities[0])
