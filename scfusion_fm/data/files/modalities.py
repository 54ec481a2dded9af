"""Which matrix of a file holds the counts of which modality, and what becomes of everything else in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.data.files.columns import (
    MIN_LEAD,
    NOUNS,
    ColumnRoles,
    Role,
    cut_number,
    role_of_word,
    sort_columns,
)
from scfusion_fm.data.files.count_slots import find_counts
from scfusion_fm.data.files.counts import CellsFile, StoredModality
from scfusion_fm.data.files.obs import check_obs_names, merge_obs
from scfusion_fm.data.files.proteins_in_obsm import PROTEIN_OBSM_KEY, find_proteins
from scfusion_fm.data.files.stored import Elements, StoredAnnData, StoredColumns
from scfusion_fm.notices import warn

MIN_OWN = 0.3  # share of names that fit the name of a modality, where more fit the other
LABELS = {"rna": "RNA", "adt": "ADT"}


@dataclass(frozen=True)
class Block:
    """
    Hold counts of one kind.

    Attributes
    ----------
    role
        rna or adt.
    source
        Modality of a MuData; '' in an AnnData.
    rank
        0 where one expects them, 1 for columns of another modality, 2 for `obsm`.
    counts
        The counts.
    """

    role: str
    source: str
    rank: int
    counts: StoredModality


@dataclass
class Findings:
    """Hold the blocks of a file, and what a user must know of it."""

    wanted: tuple[str, ...]
    blocks: list[Block] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, modality: str) -> "Findings":
        """Begin with nothing."""
        return cls(("rna", "adt") if modality == "auto" else (modality,))

    def tell(self) -> None:
        """Warn of all that a user must know."""
        for message in dict.fromkeys(self.told):
            warn(message)

    def add(self, adata: StoredAnnData, where: str, source: str, role: Role, look_beside: bool) -> None:
        """
        Find the blocks of an AnnData.

        Parameters
        ----------
        adata
            The AnnData.
        where
            What to call it in errors.
        source
            Name of the modality.
        role
            What a user or the name of the modality says that it is.
        look_beside
            Whether proteins may stand in `obsm`.

        Raises
        ------
        ValueError
            If it holds no counts, or it cannot be told what they are of.
        """
        proteins = find_proteins(adata, where) if look_beside and "adt" in self.wanted else None
        beside = proteins.choose() if proteins else None
        try:
            found, told = find_counts(adata, where)
        except ValueError as error:
            if beside is None:
                self._add_apart(adata, where, source, role, error)
                return
            if self.wanted != ("adt",):
                raise ValueError(f"{error} The ADT of {beside.slot} can be read alone: {_ask_for('adt')}") from error
            self.blocks.append(Block("adt", source, 2, beside))
            return
        if not source and (beside is not None or (proteins is not None and proteins.unread)):
            role = "unknown"  # what a user says of a file with proteins beside is which part is wanted
        sorted_columns = sort_columns(found.var, where, role, "unknown" if beside is None else "rna")
        self.told += [f"{where}: {message}" for message in told + sorted_columns.told]
        self.told += _find_contradiction(role, sorted_columns, where, is_modality=bool(source))
        own = {name: _take(found, sorted_columns, name) for name in LABELS if len(sorted_columns.of(name))}
        self.blocks += [Block(name, source, int(role not in (name, "unknown")), block) for name, block in own.items()]
        if proteins is not None and "adt" not in own:
            if beside is None and proteins.unread and self.wanted == ("adt",):
                raise ValueError(f"`{where}` must hold adt counts, got none: {' '.join(set(proteins.unread.values()))}")
            if beside is None and PROTEIN_OBSM_KEY in proteins.unread:
                hint = f" The RNA can be read alone: {_ask_for('rna')}" if "rna" in self.wanted else ""
                raise ValueError(f"{proteins.unread[PROTEIN_OBSM_KEY]} Got this in {where!r}.{hint}")
            unread = [] if beside else [f"antibodies are not read: {reason}" for reason in proteins.unread.values()]
            self.told += [f"{where}: {message}" for message in proteins.told + list(dict.fromkeys(unread))]
            self.blocks += [] if beside is None else [Block("adt", source, 2, beside)]

    def _add_apart(self, adata: StoredAnnData, where: str, source: str, role: Role, error: ValueError) -> None:
        """Find blocks where the matrices hold counts in the columns of one kind only; raise `error` elsewhere."""
        if 0 in adata.shape:
            raise error
        try:
            sorted_columns = sort_columns(adata.var, where, role)
        except ValueError:
            raise error from None
        found: dict[str, StoredModality] = {}
        for name in LABELS:
            columns = sorted_columns.of(name)
            if 0 < len(columns) < len(adata.var):
                try:
                    found[name] = find_counts(_take_columns(adata, columns), where)[0]
                except ValueError:
                    continue
        wanted = [name for name in self.wanted if name in found]
        if not wanted:
            raise error
        if len(wanted) < len(self.wanted):
            hint = f"The {LABELS[wanted[0]]} can be read alone: {_ask_for(wanted[0])}"
            raise ValueError(f"{error} {hint}") from error
        self.blocks += [Block(name, source, int(role not in (name, "unknown")), found[name]) for name in wanted]


def select_modalities(mod: Mapping[str, StoredAnnData], obs: pd.DataFrame, modality: str, path: str) -> CellsFile:
    """
    Find the modalities of a MuData: by their names, by the types of their features, or by the names of these.

    Raises
    ------
    ValueError
        If a wanted modality is missing, there twice, without counts, or shares no cell with the other.
    """
    findings = Findings.start(modality)
    named = {key: role_of_word(key) for key in mod}
    roles = {key: {role} if role != "unknown" else _sort_softly(mod[key]) for key, role in named.items()}
    usable = [key for key in mod if roles[key] & set(LABELS)]
    asked = [key for key in usable if roles[key] & set(findings.wanted)]
    complete = all(any(role in roles[key] for key in asked) for role in findings.wanted)
    failed: dict[str, ValueError] = {}
    for key in asked if complete else usable:
        where = f"{path}, modality {key}"
        try:
            check_obs_names(mod[key].obs_names, where)
            findings.add(mod[key], where, key, named[key], look_beside=not complete)
        except ValueError as error:
            failed[key] = error
    _refuse_failed(failed, findings, roles, path)
    chosen = {role: block for role in findings.wanted if (block := _choose(role, findings, path)) is not None}
    if not chosen:
        raise ValueError(
            f"`path` must hold a modality named {' or '.join(findings.wanted)}, or one whose features are known, "
            f"got {sorted(mod)} in {path!r}. Rename the modalities."
        )
    for key in mod.keys() - set(usable) if modality == "auto" else ():
        what = " and ".join(NOUNS[role] for role in sorted(roles[key]))
        findings.told.append(f"{path}: modality {key} is left out: its {mod[key].shape[1]:,} features are {what}.")
    findings.tell()
    sources = dict.fromkeys(block.source for block in chosen.values())
    tables = {role: block.counts for role, block in chosen.items()}
    return _join(path, merge_obs(obs, {key: mod[key].obs for key in sources}), tables)


def select_features(adata: StoredAnnData, modality: str, path: str) -> CellsFile:
    """
    Find the modalities of an AnnData: by its feature types, proteins in `obsm`, or the names of the features.

    Raises
    ------
    ValueError
        If the modality is missing or unclear, or there are no counts.
    """
    findings = Findings.start(modality)
    findings.add(adata, path, "", "unknown" if modality == "auto" else role_of_word(modality), look_beside=True)
    tables = {block.role: block.counts for block in findings.blocks if block.role in findings.wanted}
    if not tables:
        raise ValueError(
            f"`path` must hold {' or '.join(findings.wanted)} counts, got none in {path!r}. Choose another `modality`."
        )
    findings.tell()
    return _join(path, adata.obs.set_axis(adata.obs_names.astype(str)), tables)


def _take_columns(adata: StoredAnnData, columns: NDArray[np.int64]) -> StoredAnnData:
    """Take some columns of an AnnData."""
    layers = {key: partial(_cut_layer, adata, key, columns) for key in adata.layers}
    X = None if adata.X is None else StoredColumns(adata.X, columns)  # type: ignore[arg-type]
    return StoredAnnData(adata.obs, adata.var.iloc[columns], X, Elements("layers", layers))


def _cut_layer(adata: StoredAnnData, key: str, columns: NDArray[np.int64]) -> StoredColumns:
    return StoredColumns(adata.layers[key], columns)  # type: ignore[arg-type]


def _take(found: StoredModality, sorted_columns: ColumnRoles, role: Role) -> StoredModality:
    """Take the columns of one role."""
    columns = sorted_columns.of(role)
    if len(columns) == len(found.var):
        return found
    var = found.var.iloc[columns]
    if role == "adt" and "antibody" not in var:
        # Readers append numbers to the names of antibodies that genes have too: KLRG1-1.
        genes = set(found.var.index[sorted_columns.of("rna")].astype(str))
        bases = [cut_number(name) for name in var.index.astype(str)]
        own = [base if base in genes else name for base, name in zip(bases, var.index.astype(str), strict=True)]
        var = var.assign(antibody=own)
    return replace(found, var=var, columns=columns)


def _sort_softly(adata: StoredAnnData) -> set[str]:
    """Tell what a modality holds whose name says nothing."""
    if len(adata.var) == 0:
        return {"unknown"}
    try:
        found = set(sort_columns(adata.var, "").roles)
    except ValueError:
        return {"unknown"}
    return found & set(LABELS) or found


def _refuse_failed(failed: dict[str, ValueError], findings: Findings, roles: Mapping[str, set], path: str) -> None:
    """Refuse a file of which a modality cannot be read, unless that is but a transform of another one."""
    read = {block.role for block in findings.blocks if block.rank == 0}
    for key, error in failed.items():
        if role_of_word(key) == "unknown" and roles[key] <= read:
            nouns = " and ".join(NOUNS[role] for role in roles[key])
            findings.told.append(f"{path}: modality {key} ({nouns}) is left out, since it holds no counts.")
            continue
        others = [role for role in findings.wanted if role in read and role not in roles[key]]
        hint = f" The {LABELS[others[0]]} can be read alone: {_ask_for(others[0])}" if others else ""
        raise ValueError(f"{error}{hint}") from error


def _choose(role: str, findings: Findings, path: str) -> Block | None:
    """Choose the block of a modality that stands where one expects it; say which others are left out."""
    found = sorted((block for block in findings.blocks if block.role == role), key=lambda block: block.rank)
    best = [block for block in found if block.rank == found[0].rank]
    if len(best) > 1:
        keys = [block.source for block in best]
        raise ValueError(f"`path` must name its {role} modality once, got {keys} in {path!r}. Remove one.")
    findings.told += [
        f"{path}: the {len(block.counts.var):,} {NOUNS[role]} of modality {block.source} are left out: those of "
        f"modality {best[0].source} are read."
        for block in found[1:]
    ]
    return best[0] if best else None


def _ask_for(role: str) -> str:
    return f"give `modality` {role} (--modality {role})."


def _join(path: str, obs: pd.DataFrame, tables: dict[str, StoredModality]) -> CellsFile:
    """Put all modalities on the cells of `obs`."""
    _check_overlap(tables, path, len(obs))
    tables = {name: table.put_in_order(obs.index) for name, table in tables.items()}
    return CellsFile(path, obs, tables.get("rna"), tables.get("adt"))


def _find_contradiction(role: str, sorted_columns: ColumnRoles, where: str, is_modality: bool) -> Sequence[str]:
    """Say that names speak against what a user or the name of a modality says."""
    if sorted_columns.rates is None or role not in LABELS or set(sorted_columns.roles) != {role}:
        return []
    genes, antibodies = sorted_columns.rates
    if (antibodies - genes if role == "rna" else genes - antibodies) < MIN_LEAD:
        return []
    if is_modality and (genes if role == "rna" else antibodies) < MIN_OWN:
        raise ValueError(
            f"`{where}` must hold what its name says, got {genes:.0%} human genes and {antibodies:.0%} known "
            f"antibodies among its {len(sorted_columns.roles):,} names. Rename the modality."
        )
    return [
        f"{where}: read as {role} as `modality` says, but {genes:.0%} of the {len(sorted_columns.roles):,} names "
        f"are human genes and {antibodies:.0%} known antibodies."
    ]


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
        warn(
            f"{path}: of {num_obs:,} cells {len(shared):,} are in both modalities, "
            f"{len(rna_names) - len(shared):,} in RNA only, {len(adt_names) - len(shared):,} in ADT only; "
            "all are kept.",
        )
