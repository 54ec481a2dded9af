"""Which matrix of a file holds the counts of which modality."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from scfusion_fm.data.files.counts import CellsFile, StoredModality, check_values
from scfusion_fm.data.files.obs import check_obs_names, merge_obs
from scfusion_fm.data.files.stored import StoredAnnData, StoredTable, store_matrix
from scfusion_fm.data.schema import as_text
from scfusion_fm.data.vocabulary.resolve import (
    resolve_antibodies,
    resolve_antibody_features,
    resolve_gene_features,
    resolve_genes,
)

MODALITY_NAMES = {"rna": ("rna", "gex"), "adt": ("adt", "prot", "protein")}
FEATURE_TYPES = {"rna": "Gene Expression", "adt": "Antibody Capture"}
PROTEIN_OBSM_KEY = "protein_expression"
# To tell genes from antibodies by name: share of the features that must resolve, lead over the other kind.
ANY_ENSEMBL_GENE = r"ENS[A-Z]*G\d{6,}"
MIN_RESOLVED = 0.5
MIN_LEAD = 0.2


def select_modalities(mod: Mapping[str, StoredAnnData], obs: pd.DataFrame, modality: str, path: str) -> CellsFile:
    """
    Find the modalities of a MuData by their names.

    Raises
    ------
    ValueError
        If a wanted modality is missing, there twice, without counts, or shares no cell with the other.
    """
    wanted = ("rna", "adt") if modality == "auto" else (modality,)
    found = {name: [key for key in MODALITY_NAMES[name] if key in mod] for name in wanted}
    for name, keys in found.items():
        if len(keys) > 1:
            raise ValueError(f"`path` must name its {name} modality once, got {keys} in {path!r}. Remove one.")
    keys = {name: keys[0] for name, keys in found.items() if keys}
    if not keys:
        expected = [key for name in wanted for key in MODALITY_NAMES[name]]
        raise ValueError(
            f"`path` must hold a modality named {' or '.join(expected)}, got {sorted(mod)} "
            f"in {path!r}. Rename the modalities."
        )
    tables = {}
    for name, key in keys.items():
        check_obs_names(mod[key].obs_names, f"{path}, modality {key}")
        tables[name] = _find_counts(mod[key], f"{path}, modality {key}")
    return _join(path, merge_obs(obs, {key: mod[key].obs for key in keys.values()}), tables)


def select_features(adata: StoredAnnData, modality: str, path: str) -> CellsFile:
    """
    Find the modalities of an AnnData: by its feature types, a protein slot, or the names of the features.

    Raises
    ------
    ValueError
        If the modality is missing or unclear, or there are no counts.
    """
    found = _find_counts(adata, path)
    if "feature_types" in found.var:
        tables = _by_feature_type(found, path)
    elif PROTEIN_OBSM_KEY in adata.obsm:
        tables = {"rna": found, "adt": _find_protein_obsm(adata, path)}
    else:
        kind = _guess_modality(found.var, path) if modality == "auto" else modality
        if modality != "auto":
            _warn_contradiction(found.var, modality, path)
        tables = {kind: found}
    if modality != "auto":
        tables = {name: table for name, table in tables.items() if name == modality}
    if not tables:
        raise ValueError(f"`path` must hold {modality} counts, got none in {path!r}. Choose another `modality`.")
    return _join(path, adata.obs.set_axis(adata.obs_names.astype(str)), tables)


def _join(path: str, obs: pd.DataFrame, tables: dict[str, StoredModality]) -> CellsFile:
    """Put all modalities on the cells of `obs`."""
    _check_overlap(tables, path, len(obs))
    tables = {name: table.put_in_order(obs.index) for name, table in tables.items()}
    return CellsFile(path, obs, tables.get("rna"), tables.get("adt"))


def _by_feature_type(found: StoredModality, path: str) -> dict[str, StoredModality]:
    types = as_text(found.var["feature_types"]).to_numpy()
    tables = {
        name: replace(found, var=found.var[types == label], columns=np.flatnonzero(types == label))
        for name, label in FEATURE_TYPES.items()
        if (types == label).any()
    }
    if not tables:
        raise ValueError(
            f"`feature_types` must contain {' or '.join(FEATURE_TYPES.values())}, "
            f"got {sorted(set(types))[:5]} in {path!r}. Correct the column or remove it."
        )
    return tables


def _find_protein_obsm(adata: StoredAnnData, path: str) -> StoredModality:
    table = adata.obsm[PROTEIN_OBSM_KEY]
    slot = f'obsm["{PROTEIN_OBSM_KEY}"]'
    if not isinstance(table, StoredTable):
        raise ValueError(
            f"`{slot}` must be a DataFrame with a column per antibody, got an array in {path!r}. Give it column names."
        )
    proteins = table.read()
    name = f"{path}, {slot}"
    if proteins.shape[1] == 0:
        raise ValueError(f"`{name}` must have columns, got none. Remove it or fill it.")
    var = pd.DataFrame(index=proteins.columns.astype(str))
    matrix = store_matrix(proteins.to_numpy())
    largest = check_values(matrix, name)
    return StoredModality(matrix, var, adata.obs_names.astype(str), name, slot, largest)


def _guess_modality(var: pd.DataFrame, path: str) -> str:
    if var.index.astype(str).str.match(ANY_ENSEMBL_GENE).mean() > 0.5:
        return "rna"  # of whatever species; the alignment tells which
    genes, antibodies = _hit_rates(var)
    if max(genes, antibodies) < MIN_RESOLVED:  # the names may stand in a column
        genes, antibodies = (
            (features["match"] != "unknown").mean()
            for features in (resolve_gene_features(var), resolve_antibody_features(var))
        )
    if max(genes, antibodies) >= MIN_RESOLVED and abs(genes - antibodies) >= MIN_LEAD:
        return "rna" if genes > antibodies else "adt"
    names = list(var.index.astype(str))
    raise ValueError(
        f"`modality` cannot be told from the names in {path!r}: {genes:.0%} are human genes, "
        f"{antibodies:.0%} are known antibodies, for example {names[:3]}. Give `modality` 'rna' or 'adt', "
        'or set var["feature_types"].'
    )


def _hit_rates(var: pd.DataFrame) -> tuple[float, float]:
    """Give the shares of names that are genes and antibodies; aliases of genes (CD10) do not count."""
    names = list(var.index.astype(str))
    genes = resolve_genes(names)["match"].isin(["id", "versioned_id", "symbol", "previous"]).mean()
    return genes, (resolve_antibodies(names)["match"] != "unknown").mean()


def _warn_contradiction(var: pd.DataFrame, modality: str, path: str) -> None:
    genes, antibodies = _hit_rates(var)
    lead = antibodies - genes if modality == "rna" else genes - antibodies
    if lead >= MIN_LEAD:
        warnings.warn(
            f"{path}: read as {modality} as `modality` says, but {genes:.0%} of the {len(var):,} names are "
            f"human genes and {antibodies:.0%} known antibodies.",
            UserWarning,
            stacklevel=4,
        )


def _find_counts(adata: StoredAnnData, name: str) -> StoredModality:
    """Take layers["counts"], else .raw if it holds counts, else X."""
    if 0 in adata.shape:
        raise ValueError(f"`{name}` must have cells and features, got shape {adata.shape}.")
    names = adata.obs_names.astype(str)
    if "counts" in adata.layers:
        matrix, slot = adata.layers["counts"], 'layers["counts"]'
        largest = check_values(matrix, f"{name}, {slot}")
        return StoredModality(matrix, adata.var, names, f"{name}, {slot}", slot, largest)
    tried = []
    for slot, holder in ((".raw", adata.raw), ("X", adata)):
        if holder is None or holder.X is None:
            continue
        try:
            largest = check_values(holder.X, f"{name}, {slot}")
        except ValueError as error:
            tried.append(str(error))
            continue
        var = holder.var if slot == "X" else _complete_raw_var(adata)
        return StoredModality(holder.X, var, names, f"{name}, {slot}", slot, largest)
    reasons = " ".join(tried) or "all are empty."
    raise ValueError(
        f'`{name}` must hold raw counts in layers["counts"], .raw or X, got none: layers["counts"] missing, {reasons}'
    )


def _complete_raw_var(adata: StoredAnnData) -> pd.DataFrame:
    """Give the features of .raw the columns that only `adata.var` has, where all of them are known there."""
    var = adata.raw.var
    missing = adata.var.columns.difference(var.columns)
    if adata.var_names.is_unique and var.index.isin(adata.var_names).all():
        return pd.concat([var, adata.var.loc[var.index, missing]], axis=1)
    return var


def _check_overlap(tables: dict[str, StoredModality], path: str, num_obs: int) -> None:
    if len(tables) < 2:
        return
    rna_names, adt_names = tables["rna"].names, tables["adt"].names
    shared = rna_names.intersection(adt_names)
    if shared.empty:
        raise ValueError(
            f"`path` must hold modalities that share cells, got none in common in {path!r}: RNA "
            f"has names like {rna_names[0]!r}, ADT like {adt_names[0]!r}. "
            "Give the same cell the same name in both."
        )
    if len(shared) < max(len(rna_names), len(adt_names)):
        warnings.warn(
            f"{path}: of {num_obs:,} cells {len(shared):,} are in both modalities, "
            f"{len(rna_names) - len(shared):,} in RNA only, {len(adt_names) - len(shared):,} in ADT only; "
            "all are kept.",
            UserWarning,
            stacklevel=3,
        )
