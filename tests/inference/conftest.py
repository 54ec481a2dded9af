"""Fixtures: models with heads, and a file with RNA and other results."""

import numpy as np
import pytest
import torch
from make_cells import make_modalities

from scfusion_fm.inference.export import export_model
from scfusion_fm.model import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
)


@pytest.fixture(scope="session")
def export_head(model_dir):
    """Write a model with a fresh head on the pretrained one."""

    def export(path, model_class, files=None, change=lambda model: None, **settings):
        torch.manual_seed(1)
        model = model_class.from_pretrained(model_dir, **settings)
        change(model)
        export_model(model, ScFusionTTTFeatureExtractor.from_pretrained(model_dir), path, {}, files=files)
        return path

    return export


@pytest.fixture(scope="session")
def annotator(export_head, tmp_path_factory):
    path = tmp_path_factory.mktemp("annotator") / "model"
    names = {0: "B", 1: "T", 2: "Mono"}
    return export_head(path, ScFusionTTTForCellTypeAnnotation, num_labels=3, id2label=names)


@pytest.fixture(scope="session")
def predictor(export_head, tmp_path_factory):
    path = tmp_path_factory.mktemp("predictor") / "model"
    return export_head(path, ScFusionTTTForCrossModalPrediction, predicted_features=["CD3", "CD19"])


@pytest.fixture
def rna_file(tmp_path):
    adata = make_modalities(20, seed=3)[0]
    adata.obsm["X_pca"] = np.ones((20, 2))
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    adata.uns["note"] = "kept"
    adata.write_h5ad(tmp_path / "rna.h5ad")
    return tmp_path / "rna.h5ad"
