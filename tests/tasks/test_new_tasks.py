"""Imputation and integration as runs: figures beside baselines, and models that the verbs take."""

import json
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from make_cells import make_modalities

import scfusion_fm as sf
from scfusion_fm.evaluation.calibration.interval_file import read_intervals

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pull_on_update|will be removed|Observation names|names are intersecting).*"
)
SMALL = {"epochs": 2, "batch_size": 16, "lr": 0.003, "threads": 1}


@pytest.fixture(scope="module")
def panels():
    """Three studies: each lacks a protein that the others have, and two have levels of their own."""
    found = []
    for seed, missing in ((50, "CD3"), (51, "CD14"), (52, "CD4")):
        rna, adt = make_modalities(70, seed)
        kept = [name for name in adt.var_names if name != missing]
        found.append(md.MuData({"rna": rna, "adt": adt[:, kept].copy()}))
    found[1]["adt"].X *= 3
    return found


@pytest.fixture(scope="module")
def imputed(panels, model_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("imputation") / "run"
    groups = {"test_groups": ["MuData2"], "allow_seen_test_cells": True}
    return sf.finetune.protein_imputation(panels, model=model_dir, output_dir=output, **groups, **SMALL)


def test_imputation_hides_proteins_of_a_study_that_is_held_out(imputed):
    results = json.loads((imputed.output_dir / "results.json").read_text())
    assert results["cells"]["test"] == 70
    table = {row["method"]: row for row in results["table"]}
    assert {"scFusionTTT", "mean", "PCA + kNN", "PCA + ridge"} <= set(table)
    assert table["scFusionTTT"]["pearson_per_protein"] > 0.3 > abs(table["mean"]["pearson_per_protein"])
    per_protein = pd.read_csv(imputed.output_dir / "per_protein.csv")
    own = per_protein[per_protein["method"] == "scFusionTTT"]
    assert sorted(own["protein"]) == ["CD14", "CD19", "CD3", "CD8a"]  # each hidden once; CD4 was not measured
    assert set(own["study"]) == {"MuData2"}
    assert set(results["proteins"]) == {"CD14", "CD19", "CD3", "CD4", "CD8a"}
    intervals = read_intervals(imputed.model / "protein_intervals.json")
    assert intervals.names == results["proteins"]
    assert len(results["intervals"]["coverage"]) == 4


def test_its_model_fills_the_gaps_of_a_file(imputed, panels):
    mdata = panels[2].copy()
    sf.impute(mdata, imputed.model)
    table, mask = (mdata.obsm[f"protein_scfusion_ttt_imputed{end}"] for end in ("", "_mask"))
    assert mask.mean().to_dict() == {name: float(name == "CD4") for name in table.columns}
    kind = mdata["rna"].obs["cell_type"].to_numpy()
    truth = make_modalities(70, 52)[1][:, "CD4"].X.toarray().ravel()
    means = [pd.Series(x).groupby(kind).mean().to_numpy() for x in (np.log1p(truth), table["CD4"].to_numpy())]
    assert np.corrcoef(*means)[0, 1] > 0.7


def make_batches(number=90):
    """Two batches of the same types, one of which has more of some genes in every cell; and their types."""
    parts = []
    for name, seed in (("a", 60), ("b", 61)):
        rna = make_modalities(number, seed)[0]
        dense = rna.X.toarray()
        dense[:, ::4] += 8.0 * (name == "b")
        parts.append(ad.AnnData(dense, obs=rna.obs.assign(batch=name), var=rna.var))
    return ad.concat(parts)


def test_integration_mixes_batches_and_its_model_embeds(model_dir, tmp_path):
    adata = make_batches()
    settings = {"batch_key": "batch", "types_key": "cell_type", "allow_seen_test_cells": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not measured.*")
        done = sf.finetune.batch_integration(
            adata, model=model_dir, output_dir=tmp_path / "run", **settings, **(SMALL | {"epochs": 4})
        )
    table = done.scores.set_index(["cells", "method"])
    assert {"training cells", "held-out cells"} == set(table.index.get_level_values("cells"))
    held_out = table.loc["held-out cells"]
    assert {"scFusionTTT", "pretrained, before", "PCA", "PCA within batches"} <= set(held_out.index)
    assert held_out.loc["scFusionTTT", "batches"] > held_out.loc["pretrained, before", "batches"]
    sf.embed(adata, done.model)
    stored = np.load(done.output_dir / "embedding.npz")
    assert stored["embedding"].shape[1] == adata.obsm["X_scfusion_ttt"].shape[1]
    nearest = np.linalg.norm(adata.obsm["X_scfusion_ttt"][:, None] - stored["embedding"][None], axis=2).min(0)
    np.testing.assert_allclose(nearest, 0, atol=1e-3)


def test_what_cannot_be_held_out_or_mixed_is_refused(panels, model_dir, tmp_path):
    adata = make_batches(30)
    impute, integrate = sf.finetune.protein_imputation, sf.finetune.batch_integration
    for task, data, settings, message in (
        (impute, panels, {"test_groups": ["nobody"]}, "`test_groups` must name groups of 'dataset'"),
        (impute, adata, {}, "`data` must hold cells with proteins"),
        (integrate, adata, {}, "`batch_key` must tell at least two batches"),
        (integrate, adata, {"batch_key": "lab"}, "`batch_key` must be a column of obs"),
        (integrate, adata, {"batch_key": "batch", "types_key": "kind"}, "`types_key` must be a column of obs"),
        (integrate, adata, {"batch_key": "batch", "modalities": ["atac"]}, "`modalities` must be out of rna and adt"),
    ):
        with pytest.raises(ValueError, match=message):
            task(data, model=model_dir, output_dir=tmp_path / "run", **settings, **(SMALL | {"epochs": 0.1}))
    assert not (tmp_path / "run").exists()
