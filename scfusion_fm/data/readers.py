"""Read counts of RNA and surface proteins from the files in which they are exchanged."""

import warnings
from pathlib import Path
from typing import Any, Literal

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import scanpy
import scipy.sparse as sp
import zarr

from .obs import align_rows, check_obs_names, merge_obs
from .schema import Cells, ModalityCounts, check_counts
from .vocabulary import (
    resolve_antibodies,
    resolve_antibody_features,
    resolve_gene_features,
    resolve_genes,
)

MODALITY_NAMES = {"rna": ("rna", "gex"), "adt": ("adt", "prot", "protein")}
FEATURE_TYPES = {"rna": "Gene Expression", "adt": "Antibody Capture"}
PROTEIN_OBSM_KEY = "protein_expression"
SUFFIXES = (".h5ad", ".h5mu", ".h5", ".zarr")
# To tell genes from antibodies by name: share of the features that must resolve, lead over the other kind.
ANY_ENSEMBL_GENE = r"ENS[A-Z]*G\d{6,}"
MIN_HIT_RATE = 0.5
MIN_LEAD = 0.2

Container = anndata.AnnData | mudata.MuData


def read_cells(path: str | Path, modality: Literal["auto", "rna", "adt"] = "auto") -> Cells:
    """Read one file.

    Parameters
    ----------
    path
        `.h5ad`, `.h5mu`, 10x `.h5`, or a zarr directory of an AnnData or a MuData.
    modality
        What to read: 'auto' for all there is; 'rna' or 'adt' for one only. It also says what the features of
        an AnnData are where their names do not tell.

    Returns
    -------
    Counts per modality over the same cells, and the object as read.

    Raises
    ------
    ValueError
        If the file is missing, broken or of another format; if it has no cells, no features or no raw counts;
        if names of cells repeat or the modalities share no cell; if the modality is missing or unclear.

    Notes
    -----
    Counts are taken from `layers["counts"]`, else from `.raw` if it holds counts, else from `X`. In an
    AnnData, `var["feature_types"]` tells the modality, else `obsm["protein_expression"]` holds the ADT; else
    the share of names that are genes or antibodies decides. In a MuData, RNA is 'rna' or 'gex', ADT is 'adt',
    'prot' or 'protein'. Warns, with numbers, where only some cells have both modalities or `modality`
    contradicts the names.
    """
    check_modality(modality)
    path = Path(path).expanduser()
    return take_cells(open_container(path), path, modality)


def take_cells(container: Container, path: Path, modality: Literal["auto", "rna", "adt"] = "auto") -> Cells:
    """Take the counts out of what `open_container` gave; see `read_cells`."""
    check_obs_names(container.obs_names, str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of anndata and mudata, about their own internals
        if isinstance(container, mudata.MuData):
            tables, obs = _split_mudata(container, modality, path)
        else:
            tables, obs = _split_anndata(container, modality, path)
    counts = {
        name: align_rows(matrix, var, names, obs.index, slot) for name, (matrix, var, names, slot) in tables.items()
    }
    _check_overlap(counts, tables, path)
    return Cells(str(path), obs, counts.get("rna"), counts.get("adt"), container)


def check_modality(modality: str) -> None:
    """
    Check the name of a modality.

    Raises
    ------
    ValueError
        If it is none.
    """
    if modality not in ("auto", "rna", "adt"):
        raise ValueError(f"`modality` must be 'auto', 'rna' or 'adt', got {modality!r}.")


def open_container(path: Path) -> Container:
    """
    Read a file as it is, without a look at its content.

    Raises
    ------
    ValueError
        If it is missing, broken or of another format.
    """
    if not path.exists():
        raise ValueError(f"`path` must exist, got {str(path)!r}. Check the spelling.")
    if path.is_dir():
        read = _choose_zarr_reader(path)
    elif path.suffix.lower() not in SUFFIXES[:3]:
        raise ValueError(f"`path` must end in one of {', '.join(SUFFIXES)}, got {str(path)!r}.")
    elif not h5py.is_hdf5(path):
        raise ValueError(
            f"`path` must be an HDF5 file, got {str(path)!r} ({path.stat().st_size:,} bytes), which is none "
            "or is cut off. Copy it again."
        )
    else:
        readers = {".h5ad": anndata.read_h5ad, ".h5mu": mudata.read_h5mu, ".h5": _read_10x_h5}
        read = readers[path.suffix.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated names and the like are judged below
            container = read(path)
    except Exception as error:  # the libraries raise OSError, KeyError, RuntimeError and more on broken files
        raise ValueError(
            f"`path` must be a complete {path.suffix or 'zarr'} file, got {str(path)!r}, which cannot be "
            f"read ({type(error).__name__}: {error}). Copy or write it again."
        ) from error
    return container


def _choose_zarr_reader(path: Path) -> Any:
    try:
        group = zarr.open_group(path, mode="r")
        encoding = group.attrs.asdict().get("encoding-type", "")
    except Exception as error:
        raise ValueError(
            f"`path` must be a file or a zarr directory, got {str(path)!r}, which holds no zarr group."
        ) from error
    readers = {"anndata": anndata.read_zarr, "mudata": mudata.read_zarr, "MuData": mudata.read_zarr}
    if encoding not in readers:
        raise ValueError(
            f"`path` must hold an AnnData or a MuData, got the zarr group {str(path)!r} of type {encoding!r}."
        )
    _check_chunks(group, path)
    return readers[encoding]


def _check_chunks(group: zarr.Group, path: Path) -> None:
    """Check that no values of a sparse matrix are lost: zarr reads a missing chunk as zeros."""
    try:
        members = list(group.members(max_depth=None))
    except Exception as error:  # zarr raises TypeError, KeyError and more on broken metadata
        raise ValueError(
            f"`path` must be a complete zarr directory, got {str(path)!r}, whose metadata cannot be read "
            f"({type(error).__name__}: {error}). Copy it again."
        ) from error
    for name, array in members:
        is_values = isinstance(array, zarr.Array) and name.endswith("/data")
        if is_values and array.nchunks_initialized < array.nchunks:
            raise ValueError(
                f"`path` must be a complete zarr directory, got {str(path)!r} with "
                f"{array.nchunks_initialized:,} of {array.nchunks:,} chunks of {name}. Copy it again."
            )


def _read_10x_h5(path: Path) -> anndata.AnnData:
    return scanpy.read_10x_h5(path, gex_only=False)


Table = tuple[sp.csr_matrix, pd.DataFrame, pd.Index, str]  # counts, features, names of the cells, slot


def _split_mudata(mdata: mudata.MuData, modality: str, path: Path) -> tuple[dict[str, Table], pd.DataFrame]:
    wanted = ("rna", "adt") if modality == "auto" else (modality,)
    found = {name: [key for key in MODALITY_NAMES[name] if key in mdata.mod] for name in wanted}
    for name, keys in found.items():
        if len(keys) > 1:
            raise ValueError(f"`path` must name its {name} modality once, got {keys} in {str(path)!r}. Remove one.")
    keys = {name: keys[0] for name, keys in found.items() if keys}
    if not keys:
        expected = [key for name in wanted for key in MODALITY_NAMES[name]]
        raise ValueError(
            f"`path` must hold a modality named {' or '.join(expected)}, got {sorted(mdata.mod)} "
            f"in {str(path)!r}. Rename the modalities."
        )
    tables = {}
    for name, key in keys.items():
        adata = mdata.mod[key]
        check_obs_names(adata.obs_names, f"{path}, modality {key}")
        matrix, var, slot = _read_counts(adata, f"{path}, modality {key}")
        tables[name] = (matrix, var, adata.obs_names.astype(str), slot)
    obs = merge_obs(mdata.obs, {key: mdata.mod[key].obs for key in keys.values()})
    return tables, obs


def _split_anndata(adata: anndata.AnnData, modality: str, path: Path) -> tuple[dict[str, Table], pd.DataFrame]:
    matrix, var, slot = _read_counts(adata, str(path))
    names = adata.obs_names.astype(str)
    obs = adata.obs.set_axis(names)
    if "feature_types" in var:
        tables = _by_feature_type(matrix, var, names, slot, path)
    elif PROTEIN_OBSM_KEY in adata.obsm:
        tables = {"rna": (matrix, var, names, slot), "adt": _read_protein_obsm(adata, path)}
    else:
        kind = _guess_modality(var, path) if modality == "auto" else modality
        if modality != "auto":
            _warn_contradiction(var, modality, path)
        tables = {kind: (matrix, var, names, slot)}
    if modality != "auto":
        tables = {name: table for name, table in tables.items() if name == modality}
    if not tables:
        raise ValueError(f"`path` must hold {modality} counts, got none in {str(path)!r}. Choose another `modality`.")
    return tables, obs


def _by_feature_type(
    matrix: sp.csr_matrix, var: pd.DataFrame, names: pd.Index, slot: str, path: Path
) -> dict[str, Table]:
    types = var["feature_types"].astype(str).to_numpy()
    tables = {
        name: (matrix[:, types == label].tocsr(), var[types == label], names, slot)
        for name, label in FEATURE_TYPES.items()
        if (types == label).any()
    }
    if not tables:
        raise ValueError(
            f"`feature_types` must contain {' or '.join(FEATURE_TYPES.values())}, "
            f"got {sorted(set(types))[:5]} in {str(path)!r}. Correct the column or remove it."
        )
    return tables


def _read_protein_obsm(adata: anndata.AnnData, path: Path) -> Table:
    proteins = adata.obsm[PROTEIN_OBSM_KEY]
    if not isinstance(proteins, pd.DataFrame):
        raise ValueError(
            f'`obsm["{PROTEIN_OBSM_KEY}"]` must be a DataFrame with a column per antibody, '
            f"got {type(proteins).__name__} in {str(path)!r}. Give it column names."
        )
    name = f'{path}, obsm["{PROTEIN_OBSM_KEY}"]'
    if proteins.shape[1] == 0:
        raise ValueError(f"`{name}` must have columns, got none. Remove it or fill it.")
    matrix = _to_counts(proteins.to_numpy(), name)
    var = pd.DataFrame(index=proteins.columns.astype(str))
    return matrix, var, adata.obs_names.astype(str), f'obsm["{PROTEIN_OBSM_KEY}"]'


def _guess_modality(var: pd.DataFrame, path: Path) -> str:
    if var.index.astype(str).str.match(ANY_ENSEMBL_GENE).mean() > 0.5:
        return "rna"  # of whatever species; the alignment tells which
    genes, antibodies = _hit_rates(var)
    if max(genes, antibodies) < MIN_HIT_RATE:  # the names may stand in a column
        genes, antibodies = (
            (features["match"] != "unknown").mean()
            for features in (resolve_gene_features(var), resolve_antibody_features(var))
        )
    if max(genes, antibodies) >= MIN_HIT_RATE and abs(genes - antibodies) >= MIN_LEAD:
        return "rna" if genes > antibodies else "adt"
    names = list(var.index.astype(str))
    raise ValueError(
        f"`modality` cannot be told from the names in {str(path)!r}: {genes:.0%} are human genes, "
        f"{antibodies:.0%} are known antibodies, for example {names[:3]}. Give `modality` 'rna' or 'adt', "
        'or set var["feature_types"].'
    )


def _hit_rates(var: pd.DataFrame) -> tuple[float, float]:
    """Give the shares of names that are genes and antibodies; aliases of genes (CD10) do not count."""
    names = list(var.index.astype(str))
    genes = resolve_genes(names)["match"].isin(["id", "versioned_id", "symbol", "previous"]).mean()
    return genes, (resolve_antibodies(names)["match"] != "unknown").mean()


def _warn_contradiction(var: pd.DataFrame, modality: str, path: Path) -> None:
    genes, antibodies = _hit_rates(var)
    lead = antibodies - genes if modality == "rna" else genes - antibodies
    if lead >= MIN_LEAD:
        warnings.warn(
            f"{path}: read as {modality} as `modality` says, but {genes:.0%} of the {len(var):,} names are "
            f"human genes and {antibodies:.0%} known antibodies.",
            UserWarning,
            stacklevel=4,
        )


def _read_counts(adata: anndata.AnnData, name: str) -> tuple[sp.csr_matrix, pd.DataFrame, str]:
    """Take layers["counts"], else .raw if it holds counts, else X."""
    if 0 in adata.shape:
        raise ValueError(f"`{name}` must have cells and features, got shape {adata.shape}.")
    if "counts" in adata.layers:
        return _to_counts(adata.layers["counts"], f'{name}, layers["counts"]'), adata.var, 'layers["counts"]'
    tried = []
    for slot, holder in ((".raw", adata.raw), ("X", adata)):
        if holder is None or holder.X is None:
            continue
        try:
            matrix = _to_counts(holder.X, f"{name}, {slot}")
        except ValueError as error:
            tried.append(str(error))
            continue
        return matrix, holder.var if slot == "X" else _complete_raw_var(adata), slot
    reasons = " ".join(tried) or "all are empty."
    raise ValueError(
        f'`{name}` must hold raw counts in layers["counts"], .raw or X, got none: layers["counts"] missing, {reasons}'
    )


def _complete_raw_var(adata: anndata.AnnData) -> pd.DataFrame:
    """Give the features of .raw the columns that only `adata.var` has, where all of them are known there."""
    var = adata.raw.var
    missing = adata.var.columns.difference(var.columns)
    if adata.var_names.is_unique and var.index.isin(adata.var_names).all():
        return pd.concat([var, adata.var.loc[var.index, missing]], axis=1)
    return var


def _to_counts(matrix: Any, name: str) -> sp.csr_matrix:
    if sp.issparse(matrix):
        check_sparse(matrix, name)
    check_counts(matrix, name)
    counts = sp.csr_matrix(matrix, dtype=np.float32, copy=True)  # the container keeps its own
    num_entries = counts.nnz
    counts.sum_duplicates()
    if counts.nnz < num_entries:
        raise ValueError(
            f"`{name}` must store each entry once, got {num_entries - counts.nnz:,} repeated entries. "
            "The file may be damaged: write it again."
        )
    counts.eliminate_zeros()
    return counts


def check_sparse(matrix: Any, name: str) -> None:
    """
    Check that all indices lie inside the matrix; compiled code would read beyond it.

    Raises
    ------
    ValueError
        If some do not.
    """
    try:
        matrix.check_format(full_check=True)
        if (np.diff(matrix.indptr.astype(np.int64)) < 0).any():  # which scipy misses where 32 bits overflow
            raise ValueError("index pointer values must not decrease")
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be a valid sparse matrix, got one whose indices do not fit ({error}). "
            "The file may be damaged: write it again."
        ) from error


def _check_overlap(counts: dict[str, ModalityCounts], tables: dict[str, Table], path: Path) -> None:
    if len(tables) < 2:
        return
    rna_names, adt_names = tables["rna"][2], tables["adt"][2]
    shared = rna_names.intersection(adt_names)
    if shared.empty:
        raise ValueError(
            f"`path` must hold modalities that share cells, got none in common in {str(path)!r}: RNA "
            f"has names like {rna_names[0]!r}, ADT like {adt_names[0]!r}. "
            "Give the same cell the same name in both."
        )
    if len(shared) < max(len(rna_names), len(adt_names)):
        num_obs = len(counts["rna"].present)
        warnings.warn(
            f"{path}: of {num_obs:,} cells {len(shared):,} are in both modalities, "
            f"{len(rna_names) - len(shared):,} in RNA only, {len(adt_names) - len(shared):,} in ADT only; "
            "all are kept.",
            UserWarning,
            stacklevel=3,
        )
