"""Embeddings that start from principal components: against a full SVD, and what the mean over tokens then is."""

import numpy as np
import pytest
import torch
from scipy import sparse

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTModel
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.training.components import Panels, read_panels, start_from_components


def make_panels(cells=60, features=25):
    random = np.random.default_rng(0)
    panel = random.integers(0, 2, cells)
    measured = np.ones((2, features))
    measured[1, 10:15] = 0
    values = random.normal(size=(cells, 4)) @ random.normal(size=(4, features)) + random.normal(size=features)
    return Panels(sparse.csr_matrix(values * measured[panel]), measured, panel)


def test_means_are_over_cells_in_which_a_feature_was_measured():
    panels = make_panels()
    values = np.where(panels.measured[panels.panel] > 0, panels.values.toarray(), np.nan)
    np.testing.assert_allclose(panels.means(), np.nanmean(values, 0))


def test_components_are_those_of_a_full_decomposition():
    panels = make_panels()
    centred = (panels.values.toarray() - panels.means()) * panels.measured[panels.panel]
    expected = np.linalg.svd(centred, full_matrices=False)[2][:3]
    found = panels.components(3, seed=0)
    np.testing.assert_allclose(np.abs(expected @ found), np.eye(3), atol=1e-6)
    assert panels.components(100, seed=0).shape == (25, 25)


def test_the_mean_over_tokens_starts_as_principal_components(atlas_path):
    atlas = Atlas(atlas_path)
    extractor = ScFusionTTTFeatureExtractor(**atlas.vocabulary.to_dict(), patch_size=2)
    config = ScFusionTTTConfig(
        num_rna_tokens=extractor.num_rna_tokens,
        rna_patch_size=2,
        num_proteins=extractor.num_proteins,
        hidden_size=4,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = ScFusionTTTModel(config)
    rows = atlas.rows_of("train")
    start_from_components(model, lambda rows: extractor(**atlas.read(rows).as_counts()), rows, seed=0)
    batch = extractor(**atlas.read(rows).as_counts())
    for name, panels in read_panels([batch]).items():
        embedding = getattr(model, f"{name}_embeddings")
        values = batch[f"{name}_values"].reshape(len(rows), -1, 2 if name == "rna" else 1)
        observed = batch[f"{name}_observed"].reshape(values.shape)
        tokens = (embedding(values, observed) - embedding.position_embeddings).detach()
        assert tokens[observed.any(-1)].square().mean().item() == pytest.approx(1.0, rel=1e-4)
        assert tokens[~observed.any(-1)].abs().sum() == 0
        centred = (panels.values.toarray() - panels.means()) * panels.measured[panels.panel]
        coordinates = torch.from_numpy(centred @ panels.components(4, seed=0)).float()
        ratio = tokens.sum(1).norm() / coordinates.norm()
        torch.testing.assert_close(tokens.sum(1), ratio * coordinates, rtol=1e-3, atol=1e-3)
