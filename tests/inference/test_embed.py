"""scfusion embed: what it adds, and what it keeps."""

import hashlib

import anndata as ad
import numpy as np

from scfusion_fm.inference.embed import embed
from scfusion_fm.inference.job import FileRequest


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
    assert record["model_sha256"] == hashlib.sha256((model_dir / "model.safetensors").read_bytes()).hexdigest()
    assert record["obsm"] == "X_scfusion_ttt"


def test_embedding_depends_neither_on_batches_nor_on_order_of_cells_and_genes(model_dir, rna_file, tmp_path):
    embed(FileRequest(model_dir, rna_file, tmp_path / "whole.h5ad"))
    shuffled = ad.read_h5ad(rna_file)[::-1, ::-1].copy()
    shuffled.write_h5ad(tmp_path / "shuffled.h5ad")
    embed(FileRequest(model_dir, tmp_path / "shuffled.h5ad", tmp_path / "parts.h5ad", batch_size=3))
    whole, parts = (ad.read_h5ad(tmp_path / f"{n}.h5ad") for n in ("whole", "parts"))
    expected = whole[parts.obs_names].obsm["X_scfusion_ttt"]
    np.testing.assert_allclose(parts.obsm["X_scfusion_ttt"], expected, rtol=1e-4, atol=1e-5)
