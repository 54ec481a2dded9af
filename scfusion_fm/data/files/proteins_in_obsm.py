"""Counts of proteins in `obsm`: tables of antibodies, or arrays whose names stand in `uns`."""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from scfusion_fm.data.files.columns import Role, read_names, role_of_word
from scfusion_fm.data.files.counts import StoredModality, check_values
from scfusion_fm.data.files.stored import StoredAnnData, StoredMatrix, StoredTable, store_matrix
from scfusion_fm.data.vocabulary.antibody_names import is_hashtag

PROTEIN_OBSM_KEY = "protein_expression"
OURS = "scfusion_ttt"  # in the name of what our commands add: predictions, not counts


@dataclass
class Proteins:
    """
    Hold what `obsm` has of proteins.

    Attributes
    ----------
    found
        Counts, by key.
    told
        What a user must know, whether or not proteins are read from here.
    unread
        Why keys that look like proteins cannot be read; of no importance where proteins are read elsewhere.
    """

    found: dict[str, StoredModality] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def choose(self) -> StoredModality | None:
        """Take the usual key, or the only other one; None where it is not clear, which `unread` then says."""
        if not self.found:
            return None
        if PROTEIN_OBSM_KEY not in self.found and len(self.found) > 1:
            names = " and ".join(table.slot for table in self.found.values())
            reason = f'{names} all hold counts of antibodies; name one of them "{PROTEIN_OBSM_KEY}" to have it read.'
            self.unread = dict.fromkeys(self.found, reason)
            return None
        key = PROTEIN_OBSM_KEY if PROTEIN_OBSM_KEY in self.found else next(iter(self.found))
        table = self.found[key]
        if key != PROTEIN_OBSM_KEY:
            self.told.append(f"the {len(table.var):,} columns of {table.slot} are read as antibodies.")
        self.told += [
            f"{other.slot} holds counts of antibodies too, and is not read beside {table.slot}."
            for other in self.found.values()
            if other is not table
        ]
        return table


def find_proteins(adata: StoredAnnData, where: str) -> Proteins:
    """Look for antibodies in `obsm`; what is not counts, or nothing of the kind, is left alone."""
    proteins = Proteins()
    for key in adata.obsm:
        role = role_of_key(key)
        if role in ("other", "derived") or OURS in key:
            continue
        try:
            element = adata.obsm[key]
        except ValueError as error:
            proteins.told.append(f'obsm["{key}"] cannot be read, and is left out: {error}')
            continue
        names = element.names if isinstance(element, StoredTable) else _find_names(adata, key, element)
        if not names:
            if role == "adt" and (key == PROTEIN_OBSM_KEY or _holds_counts(element)):
                proteins.unread[key] = _ask_for_names(key, isinstance(element, StoredTable))
            continue
        if not _are_antibodies(names, role):
            continue
        if not read_names(pd.DataFrame(index=names)).antibodies.any():
            proteins.unread[key] = f'`obsm["{key}"]` must have columns with names of antibodies, got {names[:3]}.'
            continue
        try:
            proteins.found[key] = _read(adata, key, element, names, where)
        except ValueError as error:
            proteins.unread[key] = str(error)
    return proteins


def list_proteins(adata: StoredAnnData) -> list[str]:
    """Name the keys that look like proteins, whatever they hold."""
    found = []
    for key in adata.obsm:
        try:
            element = adata.obsm[key]
        except ValueError:
            continue
        names = element.names if isinstance(element, StoredTable) else _find_names(adata, key, element)
        if key == PROTEIN_OBSM_KEY or (names and _are_antibodies(names, role_of_key(key))):
            found.append(key)
    return found


def role_of_key(key: str) -> Role:
    """Tell what the words of a key mean: adt for `X_adt`, other for `HTO_counts`."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", key) if word not in ("X", "")]
    roles = {role_of_word(word) for word in ["".join(words), *words]}
    return next((role for role in ("other", "derived", "adt") if role in roles), "unknown")  # type: ignore[return-value]


def _are_antibodies(names: list[str], role: Role) -> bool:
    if np.mean([is_hashtag(name) for name in names]) > 0.5:
        return False
    by_name = read_names(pd.DataFrame(index=names)).role
    return by_name == "adt" or (role == "adt" and by_name != "rna")


def _find_names(adata: StoredAnnData, key: str, element: StoredMatrix) -> list[str]:
    """Find the list of names in `uns` that fits an array; the one that is called for proteins if there are several."""
    if len(element.shape) != 2:
        return []
    lists: dict[tuple[str, ...], Role] = {}
    for name in adata.uns:
        try:
            values = adata.uns[name]
        except ValueError:
            continue  # a broken list of something
        if len(values) == element.shape[1] and len(set(values)) == len(values):
            role = role_of_key(name)
            lists[tuple(values)] = "adt" if "adt" in (role, lists.get(tuple(values))) else role
    fitting = [list(names) for names, role in lists.items() if _are_antibodies(list(names), role)]
    if len(fitting) > 1:
        fitting = [list(names) for names, role in lists.items() if role == "adt"]
    return fitting[0] if len(fitting) == 1 else []


def _holds_counts(element: StoredTable | StoredMatrix) -> bool:
    try:
        return not isinstance(element, StoredTable) and len(element.shape) == 2 and check_values(element, "obsm") > 0
    except ValueError:
        return False


def _ask_for_names(key: str, is_table: bool) -> str:
    slot = f'obsm["{key}"]'
    if is_table:
        return f"`{slot}` must have columns, got none. Remove it or fill it."
    return (
        f"`{slot}` must be a DataFrame with a column per antibody, got an array. Give it column names, or put "
        'them into uns["protein_names"].'
    )


def _read(
    adata: StoredAnnData, key: str, element: StoredTable | StoredMatrix, names: list[str], where: str
) -> StoredModality:
    slot = f'obsm["{key}"]'
    name = f"{where}, {slot}"
    if isinstance(element, StoredTable):
        table = element.read()
        if not table.index.astype(str).equals(adata.obs_names.astype(str)):
            raise ValueError(f"`{name}` must have the rows of the file, got others. Give them the names of the cells.")
        matrix: StoredMatrix = store_matrix(table.to_numpy())
    else:
        matrix = element
    largest = check_values(matrix, name)
    if matrix.shape != (len(adata.obs), len(names)):
        raise ValueError(f"`{name}` must have a row per cell, got shape {matrix.shape}. Write it again.")
    return StoredModality(matrix, pd.DataFrame(index=pd.Index(names)), adata.obs_names.astype(str), name, slot, largest)
