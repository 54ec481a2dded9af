"""scfusion surprise: scores that belong to a cell alone, percentiles over a shared panel, nothing lost."""

import sys
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pytest
from make_cells import make_modalities, write_h5mu

from scfusion_fm import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation
from scfusion_fm.cli.main import main
from scfusion_fm.data.files.readers import open_cells
from scfusion_fm.inference.export import export_model
from scfusion_fm.inference.inputs import open_for
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.inference.surprise import share_panel, surprise

pytestmark = pytest.mark.filterwarnings("ignore:.*(pull_on_update|will be removed|Observation names).*")
KEY = "scfusion_ttt_surprise"


def read(path):
    with warnings.catch_warnings(action="ignore"):
        return md.read_h5mu(path) if path.suffix == ".h5mu" else ad.read_h5ad(path)


def test_command_adds_columns_and_a_table_and_keeps_the_rest(monkeypatch, model_dir, paired_file, tmp_path):
    source = write_h5mu(tmp_path / "in.h5mu", 30, seed=4)
    out = tmp_path / "out.h5mu"
    words = ["surprise", model_dir, source, out, "--reference", paired_file, "--draws", 2]
    monkeypatch.setattr(sys, "argv", ["scfusion", *map(str, words)])
    main()
    before, after = read(source), read(out)
    endings = ["", "_rna", "_adt", "_percentile", "_reconstruction", "_reconstruction_percentile"]
    assert set(after.obs) - set(before.obs) == {KEY + e for e in endings}
    assert after.obs[[KEY + e for e in endings]].notna().all(None)
    np.testing.assert_allclose(after.obs[KEY], (after.obs[KEY + "_rna"] + after.obs[KEY + "_adt"]) / 2)
    assert after.obs[KEY + "_percentile"].between(0, 100).all()
    assert 20 < after.obs[KEY + "_percentile"].mean() < 80  # cells of the same kind
    for modality in ("rna", "adt"):
        assert after[modality].var.equals(before[modality].var)
        assert np.array_equal(after[modality].X.toarray(), before[modality].X.toarray())
    record = after.uns["scfusion_ttt"]["surprise"]
    tokens = record["tokens"]
    extractor = load_extractor(model_dir)
    assert len(tokens) == extractor.num_rna_tokens + extractor.num_proteins
    assert sorted(",".join(tokens["model_features"]).split(",")) == sorted(
        [*extractor.gene_symbols, *extractor.protein_names]
    )
    assert (tokens["cells"] == 30).all()
    rna = (tokens["modality"] == "rna").to_numpy()
    assert tokens["mean"][rna].mean() == pytest.approx(after.obs[KEY + "_rna"].mean())
    assert (tokens["reference_mean"] > 0).all()


def test_score_depends_neither_on_batch_mates_nor_on_absent_genes(model_dir, tmp_path):
    rna, _ = make_modalities(20, seed=3)
    part = rna[:, :25].copy()
    part.var_names = [f"hg19-{name}" for name in part.var_names]
    part.write_h5ad(tmp_path / "in.h5ad")
    part[::-1].copy().write_h5ad(tmp_path / "back.h5ad")
    for name, size in (("in", 64), ("back", 3)):
        output = tmp_path / f"{name}_out.h5ad"
        surprise(tmp_path / f"{name}.h5ad", model_dir, output=output, batch_size=size, draws=2)
    first, second = (read(tmp_path / f"{n}_out.h5ad").obs for n in ("in", "back"))
    columns = [KEY, KEY + "_rna", KEY + "_reconstruction"]
    np.testing.assert_allclose(first[columns], second.loc[first.index, columns], rtol=1e-4)
    assert first[KEY + "_adt"].isna().all()
    assert KEY + "_percentile" not in first
    tokens = read(tmp_path / "in_out.h5ad").uns["scfusion_ttt"]["surprise"]["tokens"]
    assert tokens.loc[tokens["modality"] == "adt", "mean"].isna().all()
    assert tokens["mean"].isna().sum() == (tokens["cells"] == 0).sum() > 5
    own, known = (set(",".join(tokens[column]).split(",")) for column in ("features", "model_features"))
    assert own - known == set(part.var_names)
    assert {name.removeprefix("hg19-") for name in own} == known


@pytest.mark.filterwarnings("ignore:.*have no count in any modality, and are kept")
def test_ordinary_cells_are_in_the_middle_and_empty_ones_have_no_score(model_dir, paired_file, tmp_path):
    adata = make_modalities(40, seed=6)[0]
    counts = adata.X.toarray()
    counts[0] = 0
    counts[1:20] = 0
    counts[1:20, 3] = 500  # one gene only
    adata.X = counts
    adata.write_h5ad(tmp_path / "in.h5ad")
    surprise(tmp_path / "in.h5ad", model_dir, output=tmp_path / "out.h5ad", reference=paired_file, draws=2)
    obs = read(tmp_path / "out.h5ad").obs
    assert obs[[KEY, KEY + "_percentile", KEY + "_reconstruction"]].iloc[0].isna().all()
    ordinary, strange = obs.iloc[20:], obs.iloc[1:20]
    # The model is untrained: zeros are easy to it. What matters here is that these cells are told apart.
    assert strange[KEY + "_reconstruction_percentile"].max() < 5
    assert 30 < ordinary[KEY + "_reconstruction_percentile"].mean() < 70
    assert 20 < ordinary[KEY + "_percentile"].mean() < 80


@pytest.mark.filterwarnings("ignore:.*the model knows little of this file")
def test_files_are_compared_over_what_both_measure(model_dir, paired_file, tmp_path):
    rna, adt = make_modalities(20, seed=7)
    rna[:, :10].copy().write_h5ad(tmp_path / "few.h5ad")
    adt.write_h5ad(tmp_path / "adt.h5ad")
    extractor = load_extractor(model_dir)
    few, whole = (open_for(open_cells(p), extractor) for p in (tmp_path / "few.h5ad", paired_file))
    first, second = (shared.read_all() for shared in share_panel(few, whole))
    assert np.array_equal(first.rna_observed, second.rna_observed)
    assert 0 < second.rna_observed.sum() <= 10
    assert not second.adt_observed.any()
    with pytest.raises(ValueError, match="`reference` must measure genes or proteins of the input"):
        share_panel(few, open_for(open_cells(tmp_path / "adt.h5ad", "adt"), extractor))


def test_mistakes_are_refused_and_too_small_references_warn(model_dir, paired_file, tmp_path):
    make_modalities(10, seed=8)[0].write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(ValueError, match=r"`draws` must lie in \[0, 1000\], got -1"):
        surprise(tmp_path / "in.h5ad", model_dir, draws=-1)
    taken = ad.read_h5ad(tmp_path / "in.h5ad")
    taken.obs[KEY + "_adt"] = 1.0
    taken.write_h5ad(tmp_path / "taken.h5ad")
    with pytest.raises(ValueError, match=r"`obs\['scfusion_ttt_surprise_adt'\]` is already in"):
        surprise(tmp_path / "taken.h5ad", model_dir, output=tmp_path / "out.h5ad")
    head = ScFusionTTTForCellTypeAnnotation.from_pretrained(model_dir, num_labels=2)
    export_model(head, ScFusionTTTFeatureExtractor.from_pretrained(model_dir), tmp_path / "head", {})
    with pytest.raises(ValueError, match="`model` must be a ScFusionTTTForPreTraining"):
        surprise(tmp_path / "in.h5ad", tmp_path / "head", output=tmp_path / "out.h5ad", draws=1)
    rna, adt = make_modalities(10, seed=8)
    rna.X = np.zeros((10, rna.n_vars), dtype=np.float32)
    with warnings.catch_warnings(action="ignore"):
        md.MuData({"rna": rna, "adt": adt}).write(tmp_path / "no_rna.h5mu")
        with pytest.raises(ValueError, match="`input` must hold cells that the model can read"):
            surprise(tmp_path / "no_rna.h5mu", model_dir, output=tmp_path / "out.h5mu", reference=tmp_path / "in.h5ad")
    assert not (tmp_path / "out.h5mu").exists()
    assert not (tmp_path / "out.h5ad").exists()
    with pytest.warns(UserWarning, match="10 cells have no percentile"):
        surprise(tmp_path / "in.h5ad", model_dir, output=tmp_path / "out.h5ad", reference=tmp_path / "in.h5ad")
    assert read(tmp_path / "out.h5ad").obs[KEY + "_percentile"].isna().all()
