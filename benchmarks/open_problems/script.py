"""
Predict proteins from RNA in Open Problems' task `predict_modality`: the script of a viash component.

It reads `train_mod1`, `train_mod2` and `test_mod1`, and writes the prediction in `layers["normalized"]`. viash puts
`par` and `meta` in the place of those between the two marks.
"""

import sys
import tempfile
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scfusion_fm as sf

## VIASH START
FILES = "resources_test/task_predict_modality/openproblems_neurips2021/bmmc_cite/normal"
par = {
    "input_train_mod1": f"{FILES}/train_mod1.h5ad",
    "input_train_mod2": f"{FILES}/train_mod2.h5ad",
    "input_test_mod1": f"{FILES}/test_mod1.h5ad",
    "output": "output.h5ad",
    "model": "scfusion-human-blood",
    "epochs": None,
    "seed": 0,
}
meta = {"name": "scfusion_ttt"}
## VIASH END

NOT_APPLICABLE = 99  # the exit code by which the task knows that a method is for other data
KEY = "protein_scfusion_ttt"
NAMED_BY = 8  # training cells, of which the names of proteins are learned


def take_counts(adata: ad.AnnData) -> ad.AnnData:
    """Give the raw counts and names of a file of the task, as `scfusion_fm` reads them."""
    counts = sp.csr_matrix(adata.layers["counts"], dtype=np.float32)
    return ad.AnnData(counts, obs=adata.obs[["batch"]].astype(str), var=adata.var[[]].copy())


def take_ids(adata: ad.AnnData) -> pd.DataFrame:
    """Give the Ensembl ids of genes beside their names, where the task has them."""
    return adata.var[[column for column in ("gene_ids",) if column in adata.var]].astype(str)


def centre_logs(counts: sp.csr_matrix) -> np.ndarray:
    """Give the centred log ratios of proteins, the units in which the model predicts."""
    logs = np.log1p(counts.toarray())
    return logs - logs.mean(1, keepdims=True)


def predict(train_mod1: ad.AnnData, train_mod2: ad.AnnData, test_mod1: ad.AnnData) -> np.ndarray:
    """Learn from the training cells, and predict the normalised values of the test cells."""
    rna, adt, test = (take_counts(x) for x in (train_mod1, train_mod2, test_mod1))
    rna.var, test.var = take_ids(train_mod1), take_ids(test_mod1)
    cells = md.MuData({"rna": rna, "adt": adt})
    cells.obs["batch"] = rna.obs["batch"]
    settings = {"seed": par["seed"], "test_fraction": 0, "report": False}
    if par["epochs"] is not None:
        settings["epochs"] = par["epochs"]
    with tempfile.TemporaryDirectory() as scratch:
        tuned = sf.finetune.protein_prediction(
            cells, model=par["model"], output_dir=Path(scratch) / "run", batch_key="batch", **settings
        )
        sf.predict_protein(test, tuned.model, modality="rna")
        some = sf.predict_protein(cells[:NAMED_BY].copy(), tuned.model, copy=True)
    told = some.uns["scfusion_ttt"]["predict-protein"]  # proteins by their names in the task, and in the model
    found = test.obsm[KEY].rename(columns=dict(zip(told["model_proteins"], told["proteins"], strict=True)))
    measured, wanted = centre_logs(adt.X), np.asarray(sp.csr_matrix(train_mod2.layers["normalized"]).todense())
    values = np.tile(wanted.mean(0), (test.n_obs, 1))  # of proteins that the model does not know
    for place, name in enumerate(adt.var_names):
        if name in found:
            slope, level = np.polyfit(measured[:, place], wanted[:, place], 1)
            values[:, place] = level + slope * found[name].to_numpy()
    return values


train_mod1, train_mod2, test_mod1 = (
    ad.read_h5ad(par[f"input_{name}"]) for name in ("train_mod1", "train_mod2", "test_mod1")
)
if (train_mod1.uns["modality"], train_mod2.uns["modality"]) != ("GEX", "ADT"):
    print("NON-APPLICABLE ERROR: this method predicts ADT from GEX.", flush=True)
    sys.exit(NOT_APPLICABLE)
ad.AnnData(
    layers={"normalized": sp.csc_matrix(predict(train_mod1, train_mod2, test_mod1))},
    obs=test_mod1.obs[[]],
    var=train_mod2.var[[]],
    uns={"dataset_id": train_mod1.uns["dataset_id"], "method_id": meta["name"]},
).write_h5ad(par["output"], compression="gzip")
