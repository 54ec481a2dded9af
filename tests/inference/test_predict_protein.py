"""scfusion predict-protein: predictions from RNA alone, and the intervals that a model was calibrated for."""

import warnings

import anndata as ad
import mudata as md
import numpy as np
import pytest
import torch
from make_cells import make_modalities, write_h5mu

from scfusion_fm.evaluation.calibration.deviations import FileScale, find_ends
from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals, fit_left_out_intervals
from scfusion_fm.evaluation.calibration.interval_file import PROTEIN_INTERVALS, write_intervals
from scfusion_fm.inference.loaded import load
from scfusion_fm.inference.predict_protein import predict_protein
from scfusion_fm.model import ScFusionTTTForCrossModalPrediction
from scfusion_fm.notices import ScFusionWarning

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pull_on_update|will be removed|Observation names|names are intersecting).*"
)


def make_intervals(names=("CD3", "CD19")):
    """Intervals from 40 cells: RNA determines the first protein only, and T cells have their own."""
    rng = np.random.default_rng(0)
    predicted, noise = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    measured = np.stack([predicted[:, 0] + 0.1 * noise[:, 0], noise[:, 1]], 1)
    measured[:35, 0] = predicted[:35, 0]
    seen = np.ones((40, 2), dtype=bool)
    return fit_intervals(measured, predicted, seen, list(names), ["T"] * 35 + ["B"] * 5)


@pytest.fixture(scope="module")
def calibrated_predictor(export_head, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "model"
    files = {PROTEIN_INTERVALS: write_intervals(make_intervals()).encode()}
    features = ["CD3", "CD19"]
    return export_head(path, ScFusionTTTForCrossModalPrediction, files, predicted_features=features)


def test_protein_prediction_does_not_see_the_measured_protein(predictor, tmp_path):
    paired = write_h5mu(tmp_path / "paired.h5mu", 12, seed=5)
    make_modalities(12, seed=5)[0].write_h5ad(tmp_path / "rna.h5ad")
    predict_protein(paired, predictor, output=tmp_path / "a.h5mu")
    predict_protein(tmp_path / "rna.h5ad", predictor, output=tmp_path / "b.h5ad")
    with warnings.catch_warnings(action="ignore"):
        a = md.read_h5mu(tmp_path / "a.h5mu").obsm["protein_scfusion_ttt"]
    b = ad.read_h5ad(tmp_path / "b.h5ad").obsm["protein_scfusion_ttt"]
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=1e-5)


def test_intervals_stand_beside_the_same_predictions(predictor, calibrated_predictor, rna_file, tmp_path):
    predict_protein(rna_file, predictor, output=tmp_path / "plain.h5ad")
    predict_protein(rna_file, calibrated_predictor, output=tmp_path / "out.h5ad")
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
    asked = {"level": 0.95, "group_key": "cell_type", "drop_undetermined": True}
    predict_protein(rna_file, calibrated_predictor, output=tmp_path / "out.h5ad", key_added="p", **asked)
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


def test_intervals_that_cannot_be_given_are_refused(export_head, predictor, calibrated_predictor, rna_file, tmp_path):
    out = tmp_path / "out.h5ad"
    adata = ad.read_h5ad(rna_file)
    adata.obsm["protein_scfusion_ttt_upper"] = np.ones((20, 2))
    adata.write_h5ad(tmp_path / "taken.h5ad")
    files = {PROTEIN_INTERVALS: write_intervals(make_intervals(("CD3", "CD4"))).encode()}
    features = {"predicted_features": ["CD3", "CD19"]}
    other = export_head(tmp_path / "other", ScFusionTTTForCrossModalPrediction, files, **features)
    for model, source, wanted, message in (
        (predictor, rna_file, {"level": 0.9}, "`model` must hold protein_intervals.json for `level`"),
        (calibrated_predictor, rna_file, {"level": 0.7}, "`level` must be one of the calibrated"),
        (calibrated_predictor, rna_file, {"group_key": "site"}, "`group_key` must be a column of obs"),
        (
            calibrated_predictor,
            rna_file,
            {"unit": "deviations"},
            "`model` must have intervals for new groups for",
        ),
        (calibrated_predictor, rna_file, {"unit": "counts"}, r"`unit` must be one of \['clr', 'deviations'\]"),
        (calibrated_predictor, tmp_path / "taken.h5ad", {}, r"`obsm\['protein_scfusion_ttt_upper'\]` is already in"),
        (other, rna_file, {}, "`model` must have intervals for the proteins it predicts"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_protein(source, model, output=out, **wanted)
    assert not out.exists()


@pytest.fixture(scope="module")
def study_predictor(export_head, tmp_path_factory):
    """A predictor in units of the study."""
    path = tmp_path_factory.mktemp("studies") / "model"
    sizes = {"num_coordinates": 4, "study_genes": list(range(20)), "own_genes": list(range(-1, 4))}
    names = ["CD3", "CD4", "CD8a", "CD19"]

    def fit(model):
        torch.manual_seed(0)
        readout = model.study_readout
        readout.coordinates.deviations.fill_(1.0)
        readout.deviations.fill_(1.0)
        for tensor in (readout.coordinates.loadings, readout.levels, *readout.parameters()):
            tensor.data.uniform_(-1, 1)

    return export_head(path, ScFusionTTTForCrossModalPrediction, predicted_features=names, change=fit, **sizes)


@pytest.fixture(scope="module")
def new_study_predictor(export_head, tmp_path_factory):
    """A predictor with intervals for new groups; RNA tells the level of CD3 alone."""
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(90, 2))
    measured = predicted + 0.3 * rng.normal(size=(90, 2)) + np.repeat([0, 3, 6], 30)[:, None] * [0.0, 1.0]
    groups = np.repeat(["x", "y", "z"], 30)
    intervals = fit_left_out_intervals(measured, predicted, np.ones((90, 2), bool), ["CD3", "CD19"], groups)
    files = {PROTEIN_INTERVALS: write_intervals(intervals).encode()}
    path = tmp_path_factory.mktemp("new_study") / "model"
    return intervals, export_head(path, ScFusionTTTForCrossModalPrediction, files, predicted_features=["CD3", "CD19"])


def test_deviations_are_from_the_mean_of_the_file(new_study_predictor, capsys):
    intervals, model = new_study_predictor
    adata = make_modalities(80, seed=3)[0]
    plain = predict_protein(adata, model, copy=True)
    assert "RNA does not tell the level of 1 of 2 proteins in a new study" in capsys.readouterr().err
    assert list(plain.uns["scfusion_ttt"]["predict-protein"]["level_unknown"]) == ["CD19"]
    found = predict_protein(adata, model, copy=True, unit="deviations")
    value, lower, upper = (found.obsm[f"protein_scfusion_ttt{end}"] for end in ("", "_lower", "_upper"))
    before = plain.obsm["protein_scfusion_ttt"].to_numpy(np.float64)
    expected = (before - before.mean(0)) / intervals.relative.deviations
    np.testing.assert_allclose(value, expected, atol=1e-4)
    rest = FileScale.of(before.mean(0), before.var(0), intervals.relative.deviations).rest
    ends = find_ends(expected, intervals.relative_widths(0.9, rest))
    np.testing.assert_allclose(np.stack((lower, upper)), ends, atol=1e-3)
    assert ((lower <= value) & (value <= upper)).all(None)
    record = found.uns["scfusion_ttt"]["predict-protein"]
    assert record["unit"].startswith("deviations of the protein")
    assert list(record["level_unknown"]) == []
    with pytest.raises(ValueError, match="`unit='deviations'` needs at least 50 cells with RNA, got 20"):
        predict_protein(adata[:20].copy(), model, unit="deviations")


def predict_in_memory(adata, model, **options):
    found = predict_protein(adata, model, copy=True, **options)
    return found.obsm["protein_scfusion_ttt"], found.uns["scfusion_ttt"]["predict-protein"]


def test_genes_are_read_in_units_of_the_file(study_predictor):
    adata = make_modalities(80, seed=3)[0]
    loaded = load(study_predictor)
    first, record = predict_in_memory(adata, loaded)
    assert list(record["centred_over"]) == list(first.columns)
    np.testing.assert_allclose(first.sum(1), 0, atol=1e-4)
    np.testing.assert_allclose(predict_in_memory(adata, loaded)[0], first, rtol=1e-6)
    # More cells of another kind move the units, so that the first cells are read as others.
    others = make_modalities(80, seed=4)[0]
    others.X = others.X.multiply(np.where(np.arange(others.n_vars) % 3, 1, 8)[None]).tocsr()
    both = predict_in_memory(ad.concat([adata, others]), loaded)[0]
    assert np.abs(both[:80].to_numpy() - first.to_numpy()).max() > 1e-3
    with pytest.warns(ScFusionWarning, match="20 cells are too few to tell how their study differs"):
        few = predict_in_memory(adata[:20].copy(), loaded)[0]
    assert np.isfinite(few.to_numpy()).all()


def test_predictions_are_centred_over_the_panel(study_predictor):
    loaded = load(study_predictor)
    rna, adt = make_modalities(80, seed=3)
    every, _ = predict_in_memory(rna, loaded)
    three, record = predict_in_memory(rna, loaded, proteins=["CD3", "CD19", "CD4"])
    assert sorted(record["centred_over"]) == ["CD19", "CD3", "CD4"]
    np.testing.assert_allclose(three.sum(1), 0, atol=1e-4)
    np.testing.assert_allclose(three["CD3"] - three["CD19"], every["CD3"] - every["CD19"], atol=1e-4)
    one, record = predict_in_memory(rna, loaded, proteins=["CD3"])  # its mean would be itself
    np.testing.assert_allclose(one["CD3"], every["CD3"], atol=1e-5)
    assert len(record["centred_over"]) == 4
    with warnings.catch_warnings(action="ignore"):
        mdata = md.MuData({"rna": rna, "adt": adt[:, ["CD3", "CD4", "CD19"]].copy()})
    measured, record = predict_in_memory(mdata, loaded)
    assert sorted(record["centred_over"]) == ["CD19", "CD3", "CD4"]
    np.testing.assert_allclose(measured[["CD3", "CD4", "CD19"]].sum(1), 0, atol=1e-4)
