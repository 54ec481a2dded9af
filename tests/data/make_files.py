"""Tiny CITE-seq files in every format that is read."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfusion_fm.data.schema import Cells, ModalityCounts
from scfusion_fm.data.vocabulary.resolve import resolve_genes

GENES = ["MT-CO1", "CD4", "CD3E", "GAPDH", "LYZ", "NKG7"]
ANTIBODIES = ["CD4", "CD3", "CD45RA", "IgG1", "HLA-DR"]
NUM_CELLS = 7


def make_counts(shape: tuple[int, int], seed: int) -> sp.csr_matrix:
    """Give counts without an empty row or column."""
    return sp.csr_matrix(np.random.default_rng(seed).poisson(2, shape) + np.eye(*shape) + 1, dtype=np.float32)


def make_rna(names: list[str] = GENES, num_cells: int = NUM_CELLS) -> anndata.AnnData:
    obs = pd.DataFrame({"batch": ["a"] * num_cells}, index=[f"cell{i}" for i in range(num_cells)])
    return anndata.AnnData(make_counts((num_cells, len(names)), 0), obs=obs, var=pd.DataFrame(index=names))


def make_adt(names: list[str] = ANTIBODIES, num_cells: int = NUM_CELLS) -> anndata.AnnData:
    obs = pd.DataFrame({"batch": ["a"] * num_cells}, index=[f"cell{i}" for i in range(num_cells)])
    return anndata.AnnData(make_counts((num_cells, len(names)), 1), obs=obs, var=pd.DataFrame(index=names))


def make_mudata(**modalities: anndata.AnnData) -> mudata.MuData:
    own_columns = mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
    with warnings.catch_warnings(), own_columns:
        warnings.simplefilter("ignore")  # CD4 is a gene and an antibody
        return mudata.MuData(modalities)


def make_cells(
    genes: list[str] | None = None,
    antibodies: list[str] | None = None,
    rna: np.ndarray | None = None,
    adt: np.ndarray | None = None,
    var: pd.DataFrame | None = None,
) -> Cells:
    """Give cells as a reader would, without a file."""

    def make_modality(names: list[str] | None, counts: np.ndarray | None, seed: int) -> ModalityCounts | None:
        if names is None:
            return None
        matrix = make_counts((NUM_CELLS, len(names)), seed) if counts is None else sp.csr_matrix(counts, dtype="f4")
        present = np.asarray(matrix.sum(axis=1)).ravel() > 0
        return ModalityCounts(matrix, pd.DataFrame(index=names), present)

    modalities = [make_modality(genes, rna, 0), make_modality(antibodies, adt, 1)]
    if var is not None:
        modalities[0].var = var
    num_obs = next(m.counts.shape[0] for m in modalities if m is not None)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(num_obs)])
    return Cells("memory", obs, *modalities, anndata.AnnData(obs=obs))


def write(adata: anndata.AnnData | mudata.MuData, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CD4 is a gene and an antibody
        adata.write(path)
    return path


def write_10x_h5(path: Path, rna: anndata.AnnData, adt: anndata.AnnData) -> None:
    """Write the layout of Cell Ranger 3."""
    matrix = sp.csc_matrix(sp.hstack([rna.X, adt.X]).T).astype(np.int32)
    ids = [*resolve_genes(list(rna.var_names)).gene_id, *adt.var_names]
    names = [*rna.var_names, *adt.var_names]
    types = ["Gene Expression"] * rna.n_vars + ["Antibody Capture"] * adt.n_vars
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(rna.obs_names, dtype="S")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = np.array(matrix.shape)
        for key, values in (
            ("id", ids),
            ("name", names),
            ("feature_type", types),
            ("genome", ["GRCh38"] * len(ids)),
        ):
            group[f"features/{key}"] = np.array(values, dtype="S")


def write_h5ad(path: Path, rna: anndata.AnnData, adt: anndata.AnnData) -> None:
    names = [*rna.var_names, *adt.var_names]
    types = ["Gene Expression"] * rna.n_vars + ["Antibody Capture"] * adt.n_vars
    var = pd.DataFrame(
        {"feature_types": types, "symbol": names, "antibody": names},
        index=[f"f{i}" for i in range(len(names))],
    )
    anndata.AnnData(sp.csr_matrix(sp.hstack([rna.X, adt.X])), obs=rna.obs, var=var).write_h5ad(path)


def write_protein_obsm(path: Path, rna: anndata.AnnData, adt: anndata.AnnData) -> None:
    rna.obsm["protein_expression"] = pd.DataFrame(adt.X.toarray(), index=rna.obs_names, columns=adt.var_names)
    rna.write_h5ad(path)


def write_anndata_zarr(path: Path, rna: anndata.AnnData, adt: anndata.AnnData) -> None:
    rna.obsm["protein_expression"] = pd.DataFrame(adt.X.toarray(), index=rna.obs_names, columns=adt.var_names)
    write_zarr(path, rna, version=3)


def write_zarr(path: Path, adata: anndata.AnnData | mudata.MuData, version: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries announce that version 2 will go
        with anndata.settings.override(zarr_write_format=version):
            adata.write_zarr(path)


WRITERS: dict[str, Callable[[Path, Any, Any], None]] = {
    "mudata.h5mu": lambda path, rna, adt: write(make_mudata(rna=rna, adt=adt), path),
    "other_names.h5mu": lambda path, rna, adt: write(make_mudata(gex=rna, prot=adt), path),
    "feature_types.h5ad": write_h5ad,
    "obsm.h5ad": write_protein_obsm,
    "cellranger.h5": write_10x_h5,
    "anndata.zarr": write_anndata_zarr,
    "mudata.zarr": lambda path, rna, adt: write_zarr(path, make_mudata(rna=rna, adt=adt), version=2),
}
