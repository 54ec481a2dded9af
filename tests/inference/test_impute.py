"""`impute`: gaps are filled, what was measured stays, and what is hidden tells nothing."""

import anndata as ad
import mudata as md
import numpy as np
import pytest
import safetensors.numpy
import torch
from make_cells import make_modalities, write_h5mu
from seal import seal

import scfusion_fm as sf
from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, write_intervals
from scfusion_fm.inference.export import export_model
from scfusion_fm.inference.impute import load_regression
from scfusion_fm.inference.panel_regression import PANEL_REGRESSION, PanelRegression
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pull_on_update|will be removed|Observation names|names are intersecting).*"
)
KEY, RNA_KEY = "protein_scfusion_ttt_imputed", "rna_scfusion_ttt_imputed"


def make_partial(proteins=("CD3", "CD19", "CD14"), genes=30, seed=6):
    rna, adt = make_modalities(15, seed)
    return md.MuData({"rna": rna[:, :genes].copy(), "adt": adt[:, list(proteins)].copy()})


def test_proteins_that_a_panel_lacks_are_imputed_and_the_others_stay(model_dir):
    mdata = make_partial()
    assert sf.impute(mdata, model_dir) is None
    table, mask = mdata.obsm[KEY], mdata.obsm[f"{KEY}_mask"]
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    assert set(table.columns) == set(extractor.protein_names)
    measured = ["CD3", "CD19", "CD14"]
    counts = np.log1p(mdata["adt"][:, measured].X.toarray())
    np.testing.assert_allclose(table[measured], counts - counts.mean(1, keepdims=True), atol=1e-5)
    assert (mask[measured] == 0).all(None)
    others = [name for name in table.columns if name not in measured]
    assert (mask[others] == 1).all(None)
    assert table.notna().all(None)
    told = mdata.uns["scfusion_ttt"]["impute"]
    assert set(told["imputed"]) == set(others)
    assert told["target"] == "adt"


def test_chosen_proteins_have_the_names_of_the_file_and_cells_without_any_are_imputed(model_dir):
    mdata = make_partial()
    mdata["adt"].var_names = ["anti-CD3", "CD19", "CD14"]
    mdata["adt"].X[:4] = 0
    mdata.update()
    sf.impute(mdata, model_dir, proteins=["CD4", "CD3"], key_added="p")
    assert list(mdata.obsm["p"].columns) == ["CD4", "anti-CD3"]
    mask = mdata.obsm["p_mask"]
    assert mask["anti-CD3"].tolist() == [1.0] * 4 + [0.0] * 11
    assert mask["CD4"].eq(1).all()


def test_genes_that_were_not_measured_are_imputed_from_other_tokens(model_dir):
    whole = make_partial(genes=37)
    gaps = make_partial(genes=30)
    sf.impute(gaps, model_dir, target="rna")
    table, mask = gaps.obsm[RNA_KEY], gaps.obsm[f"{RNA_KEY}_mask"]
    missing = list(whole["rna"].var_names[30:])
    assert (mask[missing] == 1).all(None)
    assert table.notna().all(None)
    kept = list(gaps["rna"].var_names)
    counts = gaps["rna"].X.toarray()
    np.testing.assert_allclose(table[kept], np.log1p(counts * (1e4 / counts.sum(1, keepdims=True))), rtol=1e-4)
    sf.impute(gaps, model_dir, target="rna", genes=missing[:2], key_added="two")
    np.testing.assert_allclose(gaps.obsm["two"], table[missing[:2]], atol=1e-5)


def test_one_modality_alone_and_files_give_the_same_as_objects(model_dir, tmp_path):
    rna, adt = make_modalities(12, seed=7)
    for part, target, key in ((rna, "adt", KEY), (adt, "rna", RNA_KEY)):
        sf.impute(part, model_dir, target=target)
        assert (part.obsm[f"{key}_mask"] == 1).all(None)
        assert part.obsm[key].notna().all(None)
    paired = write_h5mu(tmp_path / "a.h5mu", 12, seed=7)
    sf.impute(paired, model_dir, output=tmp_path / "b.h5mu")
    mdata = md.MuData({"rna": make_modalities(12, seed=7)[0], "adt": make_modalities(12, seed=7)[1]})
    sf.impute(mdata, model_dir)
    np.testing.assert_allclose(md.read_h5mu(tmp_path / "b.h5mu").obsm[KEY], mdata.obsm[KEY], atol=1e-5)


def test_what_cannot_be_imputed_is_refused(model_dir, annotator, tmp_path):
    cells = make_modalities(5, seed=1)[0]
    for wanted, message in (
        ({"target": "atac"}, "`target` must be one of"),
        ({"level": 0.9}, "`level` must be left out for a model without intervals"),
        ({"proteins": ["CD999"]}, "`proteins` must name proteins"),
        ({"genes": ["CD4"]}, "`genes` must be left out where"),
        ({"target": "rna", "genes": ["NOGENE"]}, "`genes` must name genes that the model knows"),
    ):
        with pytest.raises(ValueError, match=message):
            sf.impute(ad.AnnData.copy(cells), model_dir, **wanted)
    with pytest.raises(ValueError, match="`model` must be a ScFusionTTTForPreTraining"):
        sf.impute(cells, annotator)


def make_imputer(model_dir, path, share):
    """Write a model with a regression and intervals, as a fine-tuning leaves it."""
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    genes, proteins = len(extractor.gene_ids), extractor.num_proteins
    known = np.arange(proteins) < 4
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(2 + proteins, 2 + proteins))
    regression = PanelRegression(
        np.zeros(genes, np.float32),
        rng.normal(size=(genes, 2)).astype(np.float32),
        np.zeros(proteins, np.float32),
        mix @ mix.T,
        known,
        share=share,
    )
    names = [name for name, is_known in zip(extractor.protein_names, known, strict=True) if is_known]
    measured = rng.normal(size=(40, 4))
    intervals = fit_intervals(measured, measured + 0.1, np.ones((40, 4), dtype=bool), names)
    model = ScFusionTTTForPreTraining.from_pretrained(model_dir, predicted_features=names)
    files = {PANEL_REGRESSION: regression.to_bytes(), PROTEIN_INTERVALS: write_intervals(intervals).encode()}
    export_model(model, extractor, path, {}, files=files)
    return path, names


def test_a_fine_tuned_model_mixes_its_regression_in_and_gives_intervals(model_dir, tmp_path):
    found = {}
    for share in (0.0, 0.25, 1.0):
        path, names = make_imputer(model_dir, tmp_path / f"model{share}", share)
        mdata = make_partial(proteins=("CD3", "CD19"))
        sf.impute(mdata, path)
        found[share] = mdata.obsm[KEY]
    assert set(found[1.0].columns) == {*names, "CD3", "CD19"}
    imputed = [name for name in names if name not in ("CD3", "CD19")]
    mixed = 0.75 * found[0.0][imputed] + 0.25 * found[1.0][imputed]
    np.testing.assert_allclose(found[0.25][imputed], mixed, atol=1e-4)
    assert np.abs(found[0.0][imputed] - found[1.0][imputed]).max(axis=None) > 0.01
    lower, upper = (mdata.obsm[f"{KEY}_{end}"] for end in ("lower", "upper"))
    np.testing.assert_allclose((upper - lower)[imputed], 0.2, atol=1e-3)
    assert lower[["CD3", "CD19"]].isna().all(None)
    with pytest.raises(ValueError, match="`level` must be one of the calibrated"):
        sf.impute(mdata, path, level=0.7)


def test_a_regression_belongs_to_its_weights(model_dir, tmp_path):
    path, _ = make_imputer(model_dir, tmp_path / "model", 0.5)
    other, _ = make_imputer(model_dir, tmp_path / "other", 0.5)
    model = ScFusionTTTForPreTraining.from_pretrained(path)
    model.save_pretrained(tmp_path / "same")
    assert (tmp_path / "same" / PANEL_REGRESSION).is_file()
    with torch.no_grad():
        model.adt_decoder.head_bias += 1
    with pytest.warns(UserWarning, match="panel_regression.safetensors"):
        model.save_pretrained(tmp_path / "changed")
    assert not (tmp_path / "changed" / PANEL_REGRESSION).exists()
    weights = safetensors.numpy.load_file(other / "model.safetensors")
    weights["adt_decoder.head_bias"] += 1
    safetensors.numpy.save_file(weights, other / "model.safetensors", {"format": "pt"})
    seal(other)
    with pytest.raises(ValueError, match=r"panel_regression.safetensors' must be made for model.safetensors"):
        load_regression(other, ScFusionTTTFeatureExtractor.from_pretrained(other))
