"""scfusion embed: what it adds, and what it keeps."""

import hashlib
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pytest
from make_cells import make_modalities

from scfusion_fm.inference.embed import embed


def test_embedding_is_added_and_the_rest_stays(model_dir, rna_file, tmp_path):
    embed(rna_file, model_dir, output=tmp_path / "out.h5ad")
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
    assert record["model_sha256"] == hashlib.sha256((model_dir / "model.safetensors").read_bytes()).hexdigest()
    assert record["obsm"] == "X_scfusion_ttt"


def test_embedding_depends_neither_on_batches_nor_on_order_of_cells_and_genes(model_dir, rna_file, tmp_path):
    embed(rna_file, model_dir, output=tmp_path / "whole.h5ad")
    shuffled = ad.read_h5ad(rna_file)[::-1, ::-1].copy()
    shuffled.write_h5ad(tmp_path / "shuffled.h5ad")
    embed(tmp_path / "shuffled.h5ad", model_dir, output=tmp_path / "parts.h5ad", batch_size=3)
    whole, parts = (ad.read_h5ad(tmp_path / f"{n}.h5ad") for n in ("whole", "parts"))
    expected = whole[parts.obs_names].obsm["X_scfusion_ttt"]
    np.testing.assert_allclose(parts.obsm["X_scfusion_ttt"], expected, rtol=1e-4, atol=1e-5)


def test_a_batch_with_a_panel_of_its_own_is_embedded_as_alone(model_dir, tmp_path):
    rna, adt = make_modalities(60, seed=3)
    rna.X, adt.X = rna.X.toarray() + 1, adt.X.toarray() + 1
    second, genes, proteins = np.arange(30, 60), slice(0, 20), slice(0, 3)
    with warnings.catch_warnings(action="ignore"):
        alone = md.MuData({"rna": rna[second, genes].copy(), "adt": adt[second, proteins].copy()})
        alone.write(tmp_path / "alone.h5mu")
        rna.X[30:, 20:], adt.X[30:, 3:] = 0, 0
        rna.obs["batch"] = ["one"] * 30 + ["two"] * 30
        md.MuData({"rna": rna, "adt": adt}).write(tmp_path / "joined.h5mu")
    embed(tmp_path / "alone.h5mu", model_dir, output=tmp_path / "expected.h5mu")
    with pytest.warns(UserWarning, match="in the groups of 'batch', what has no count is not measured: 'two' lacks"):
        embed(tmp_path / "joined.h5mu", model_dir, output=tmp_path / "out.h5mu", batch_key="batch")
    with warnings.catch_warnings(action="ignore"):
        found, expected = (md.read_h5mu(tmp_path / f"{n}.h5mu").obsm["X_scfusion_ttt"] for n in ("out", "expected"))
    np.testing.assert_allclose(found[30:], expected, rtol=1e-6, atol=1e-7)
