"""Small CITE-seq files with structure: cell types differ in genes and in proteins."""

import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

GENES = ["CD3E", "CD4", "CD8A", "MS4A1", "NKG7", "LYZ", "CD14", "GNLY", "CD79A", "IL7R", "CCR7", "ACTB", "B2M"]
GENES += ["TRAC", "CD27", "SELL", "FCGR3A", "NCAM1", "IL2RA", "PTPRC", "CD19", "CST3", "S100A8", "S100A9", "GZMB"]
GENES += ["PRF1", "KLRD1", "HLA-DRA", "CD74", "TCL1A", "FCN1", "VCAN", "LEF1", "TCF7", "CCL5", "GAPDH", "MALAT1"]
ANTIBODIES = ["CD3", "CD4", "CD8a", "CD19", "CD14"]
TYPES = ["B", "T", "Mono"]


def make_modalities(num_cells: int, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Draw cells of three types."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(len(TYPES), size=num_cells)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(np.array(TYPES)[kind]), "donor": [f"d{i % 4}" for i in range(num_cells)]},
        index=[f"s{seed}c{i}" for i in range(num_cells)],
    )
    rates = np.random.default_rng(0)
    rna = rng.poisson(rates.gamma(1.0, 3.0, (len(TYPES), len(GENES)))[kind])
    adt = rng.poisson(rates.gamma(1.0, 30.0, (len(TYPES), len(ANTIBODIES)))[kind])
    made = [ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs=obs.copy()) for x in (rna, adt)]
    made[0].var_names, made[1].var_names = GENES, ANTIBODIES
    return made[0], made[1]


def write_h5mu(path: Path, num_cells: int = 160, seed: int = 0) -> Path:
    """Write a paired file."""
    rna, adt = make_modalities(num_cells, seed)
    with warnings.catch_warnings(action="ignore"):
        mdata = md.MuData({"rna": rna, "adt": adt})
        mdata.obs["cell_type"] = rna.obs["cell_type"]
        mdata.obs["donor"] = rna.obs["donor"]
        mdata.write(path)
    return path
