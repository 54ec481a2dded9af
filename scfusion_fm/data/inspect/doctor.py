"""Examine files before they are used: what they hold, how it will be understood, and why a file is refused.

A file is refused here exactly when `scfusion prepare` or a model refuses it: the same functions read and align it.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray

from scfusion_fm.data.files.align import open_aligned
from scfusion_fm.data.files.copied import can_copy
from scfusion_fm.data.files.counts import CellsFile, StoredModality
from scfusion_fm.data.files.coverage import check_panel
from scfusion_fm.data.files.panels import GROUP_COLUMNS
from scfusion_fm.data.files.readers import Given, check_modality, closing, open_given, select_cells
from scfusion_fm.data.files.stored import StoredAnnData
from scfusion_fm.data.files.writers import find_unwritable
from scfusion_fm.data.fingerprints.cells import CellFingerprints, fingerprint_file
from scfusion_fm.data.fingerprints.shared import SharedCells, barcode_cores, compare_cells
from scfusion_fm.data.inspect.doctor_text import render_examination, render_html
from scfusion_fm.data.inspect.slots import SlotContent, describe_slots, is_constant
from scfusion_fm.data.locations import is_remote, suffix_of
from scfusion_fm.data.schema import Modality, as_text, read_categories
from scfusion_fm.data.vocabulary.names import MOUSE_ID
from scfusion_fm.data.vocabulary.reference import load_gene_table
from scfusion_fm.data.vocabulary.resolve import resolve_antibody_features, resolve_gene_features
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.notices import ScFusionWarning
from scfusion_fm.untrusted.text import show_text

NUM_EXAMPLES = 3
MOUSE_SYMBOL = r"[A-Z][a-z0-9]+.*"
KINDS = {".h5ad": "AnnData (h5ad)", ".h5mu": "MuData (h5mu)", ".h5": "10x h5"}
NO_LABEL = ("none", "na", "unknown", "unassigned", "")
# Columns of obs, in lower case without separators: CELLxGENE's and others that are common.
LABEL_COLUMNS = ["annotation", "annotations", "label", "labels", "cluster", "clusters", "leiden", "louvain"]
LABEL_COLUMNS += ["seuratclusters", "cellontologyclass", "authorcelltype", "predictedcelltype", "wnncluster"]

Verdict = Literal["ok", "warnings", "refused"]


@dataclass
class ModalityReport:
    """
    What one modality of a file holds.

    Attributes
    ----------
    name
        rna or adt.
    slot
        Where the counts were found.
    num_cells, num_features, median_counts
        Cells with counts, columns, and the median of counts over these cells.
    species
        human, mouse or unknown; of genes only.
    naming
        What kind of names `var_names` are.
    matches
        Features by the way in which their name was understood.
    examples
        Some names of each way that is not the plain one, with what they became.
    in_vocabulary, vocabulary_size
        Genes or proteins of the vocabulary that the file measures, and all that it has.
    count_share
        Share of the counts that are of these.
    """

    name: str
    slot: str
    num_cells: int
    num_features: int
    median_counts: float
    species: str = ""
    naming: str = ""
    matches: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    in_vocabulary: int = 0
    vocabulary_size: int = 0
    count_share: float = 0.0


@dataclass
class ColumnReport:
    """A column of obs with labels or groups of cells, its number of classes, and cells without one."""

    name: str
    role: Literal["labels", "groups"]
    num_classes: int
    num_missing: int


@dataclass
class FileReport:
    """
    What a file holds.

    Attributes
    ----------
    path, kind
        The file and its format.
    refusal
        Why it cannot be used; '' where it can.
    warnings
        What its user should know.
    num_cells, num_empty
        Cells, and those without any count.
    modalities, slots, columns
        Counts, what each slot holds, and columns of obs.
    """

    path: str
    kind: str
    refusal: str = ""
    warnings: list[str] = field(default_factory=list)
    num_cells: int = 0
    num_empty: int = 0
    modalities: list[ModalityReport] = field(default_factory=list)
    slots: list[SlotContent] = field(default_factory=list)
    columns: list[ColumnReport] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """Whether the file can be used."""
        if self.refusal:
            return "refused"
        return "warnings" if self.warnings else "ok"


@dataclass(repr=False)
class Examination:
    """
    All files, and pairs of them that seem to share cells.

    It prints as `scfusion doctor` does, and shows as HTML in a notebook.
    """

    files: list[FileReport]
    shared: list[SharedCells]

    @property
    def exit_code(self) -> int:
        """0: all files are fine; 1: there are warnings; 2: a file is refused."""
        return max({"ok": 0, "warnings": 1, "refused": 2}[file.verdict] for file in self.files)

    def to_dict(self) -> dict:
        """Give all of it for a JSON file."""
        files = [{"verdict": file.verdict, **asdict(file)} for file in self.files]
        return {"files": files, "shared_cells": [asdict(pair) for pair in self.shared]}

    def __repr__(self) -> str:
        return show_text(render_examination(self), keep="\n")

    def _repr_html_(self) -> str:
        return render_html(self)


def examine_files(
    given: Sequence[Given],
    vocabulary: Vocabulary,
    modality: Modality = "auto",
    batch_key: str | None = None,
    min_coverage: float | None = None,
) -> Examination:
    """
    Examine files or objects, and look for cells that are in two of them.

    Parameters
    ----------
    given
        Files, or AnnData or MuData in memory, backed or lazy; they are read only.
    vocabulary
        Of a model, or of an atlas to be.
    modality
        What a single AnnData holds: auto, rna or adt.
    batch_key
        Column of obs whose groups may have panels of their own.
    min_coverage
        As the commands of a model check it, whose vocabulary this is then; None for a vocabulary that is no model's.

    Raises
    ------
    ValueError
        If `modality` is none; what is wrong with a file is in its report.
    """
    check_modality(modality)
    how = _Reading(vocabulary, modality, batch_key, min_coverage)
    files, contents = [], []
    for one in given:
        files.append(_start(one))
        contents.append(_examine(files[-1], one, how))
    shared = []
    compared = [None if found is None else (barcode_cores(found[0]), found[1]) for found in contents if len(files) > 1]
    for i, first in enumerate(compared):
        for j, second in enumerate(compared[:i]):
            if first is None or second is None:
                continue
            found = compare_cells((files[j].path, *second), (files[i].path, *first))
            if found.is_suspicious:
                shared.append(found)
                files[i].warnings.append(found.describe(files[j].path))
                files[j].warnings.append(found.describe(files[i].path))
    return Examination(files, shared)


@dataclass(frozen=True)
class _Reading:
    """How files are read; see `examine_files`."""

    vocabulary: Vocabulary
    modality: Modality
    batch_key: str | None
    min_coverage: float | None


def _start(given: Given) -> FileReport:
    """Name a file or an object, and say of which kind it is."""
    if isinstance(given, str | Path):
        path = str(given) if is_remote(given) else str(Path(given).expanduser())
        return FileReport(path, KINDS.get(suffix_of(path), "zarr" if Path(path).is_dir() else "unknown format"))
    where = "backed by a file" if getattr(given, "isbacked", False) else "as an object"
    return FileReport("mdata" if isinstance(given, MuData) else "adata", f"{type(given).__name__} {where}")


def _examine(report: FileReport, given: Given, how: _Reading) -> tuple[pd.Index, CellFingerprints] | None:
    """Fill in the report; the cells' names and fingerprints, or None for a refused file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            names, prints, totals = _read(report, given, how)
        except ValueError as error:
            report.refusal = str(error)
            return None
    own = [str(w.message) for w in caught if w.category is ScFusionWarning]
    report.warnings += [message for message in own if message.startswith(report.path)]
    report.warnings += _find_oddities(report, totals, prints)
    return names, prints


def _read(report: FileReport, given: Given, how: _Reading) -> tuple[pd.Index, CellFingerprints, NDArray[np.float64]]:
    """Read a file block by block; the names of its cells, their fingerprints and their totals of RNA."""
    with closing():
        file = open_given(given)
        file.warn_lost()
        report.slots = describe_slots(file.parts)
        bad = [] if file.reader is None else find_unwritable(_tables(file.parts))
        if bad and not can_copy(file, Path(report.path)):  # a copy keeps what cannot be written anew
            report.warnings += [f"{report.path}: embed and its like refuse it: {error}" for error in bad]
        cells = select_cells(file, how.modality)
        rna, adt = (np.empty(0) if modality is None else _sum_cells(modality) for modality in (cells.rna, cells.adt))
        report.num_cells = len(cells.obs)
        report.columns = describe_columns(cells.obs)
        report.modalities = _describe_modalities(cells, rna, adt)
        aligned = open_aligned(cells, how.vocabulary, how.batch_key)
        report.num_empty = int((~(aligned.rna_present | aligned.adt_present)).sum())
        for found, share in zip(report.modalities, aligned.coverage, strict=True):
            found.in_vocabulary, found.vocabulary_size = share.measured, share.known
            found.count_share = share.count_share
        if how.min_coverage is not None:
            check_panel(aligned.coverage, cells.path, how.min_coverage)
        return cells.obs.index, fingerprint_file(aligned), rna


def _sum_cells(modality: StoredModality) -> NDArray[np.float64]:
    """Sum the counts of each cell."""
    return np.concatenate([np.asarray(block.sum(axis=1, dtype=np.float64)).ravel() for block in modality.blocks()])


def _tables(parts: StoredAnnData | dict[str, StoredAnnData]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Give the tables that commands write again."""
    for prefix, part in {"": parts}.items() if isinstance(parts, StoredAnnData) else parts.items():
        beginning = f"mod/{prefix}/" if prefix else ""
        yield f"{beginning}obs", part.obs
        yield f"{beginning}var", part.var
        if part.raw is not None:
            yield f"{beginning}raw/var", part.raw.var


def _describe_modalities(
    cells: CellsFile, rna_totals: NDArray[np.float64], adt_totals: NDArray[np.float64]
) -> list[ModalityReport]:
    reports = []
    if cells.rna is not None:
        report = _start_report("rna", cells.rna, rna_totals)
        genes = resolve_gene_features(cells.rna.var)
        report.naming, report.species = name_genes(cells.rna.var.index), guess_species(cells.rna.var, genes)
        symbols = load_gene_table().symbol.reindex(genes.gene_id).fillna("").to_numpy()
        _count_matches(report, genes, symbols, plain=("id", "symbol"))
        reports.append(report)
    if cells.adt is not None:
        report = _start_report("adt", cells.adt, adt_totals)
        antibodies = resolve_antibody_features(cells.adt.var)
        _count_matches(report, antibodies, antibodies.protein.to_numpy(), plain=("table",))
        reports.append(report)
    return reports


def _start_report(name: str, modality: StoredModality, totals: NDArray[np.float64]) -> ModalityReport:
    totals = totals[totals > 0]
    median = float(np.median(totals)) if len(totals) else 0.0
    return ModalityReport(name, modality.slot, len(totals), len(modality.var), median)


def _count_matches(report: ModalityReport, found: pd.DataFrame, became: np.ndarray, plain: tuple[str, ...]) -> None:
    matches = found["match"].to_numpy(dtype=object)
    report.matches = {str(kind): int(count) for kind, count in found["match"].value_counts().items()}
    for kind in (kind for kind in report.matches if kind not in plain):
        rows = np.flatnonzero(matches == kind)
        is_lost = report.name == "adt" and kind in ("unknown", "isotype", "hashtag")  # a panel is short: name all
        shown = rows if is_lost else rows[:NUM_EXAMPLES]
        report.examples[kind] = [
            f"{found.index[i]} = {became[i]}" if became[i] and became[i] != found.index[i] else str(found.index[i])
            for i in shown
        ]


def name_genes(names: pd.Index) -> str:
    """Say what kind of names genes have: Ensembl ids, with or without version, symbols, or a mixture."""
    texts = names.astype(str)
    has_id = texts.str.contains(r"ENS[A-Z]*G\d{6,}").mean()
    if 0.02 < has_id < 0.98:
        return f"mixed, {has_id:.0%} Ensembl ids"
    if has_id <= 0.02:
        return "symbols"
    has_version = texts.str.contains(r"ENS[A-Z]*G\d{6,}\.\d").mean()
    return "Ensembl ids with version" if has_version > 0.5 else "Ensembl ids"


def guess_species(var: pd.DataFrame, genes: pd.DataFrame) -> str:
    """Say whose genes these are, by ids in any column or else by the names."""
    texts = [var.index.astype(str).to_series(), *(as_text(var[c]) for c in var if var[c].dtype.kind not in "biuf")]
    if any(text.str.contains(MOUSE_ID).mean() > 0.5 for text in texts):
        return "mouse"
    resolved = (genes["match"] != "unknown").mean()
    if resolved < 0.5 and texts[0].str.fullmatch(MOUSE_SYMBOL).mean() > 0.5:
        return "mouse"
    return "human" if resolved >= 0.5 else "unknown"


def describe_columns(obs: pd.DataFrame) -> list[ColumnReport]:
    """Find the columns that hold labels, and those that hold donors, batches or the like."""
    reports = []
    for column in obs.columns:
        plain = "".join(c for c in str(column).lower() if c.isalnum())
        is_label = plain.startswith("celltype") or plain in LABEL_COLUMNS
        if not is_label and plain not in GROUP_COLUMNS:
            continue
        texts = pd.Series(read_categories(obs[column]), dtype=object).fillna("")
        is_missing = texts.str.lower().isin(NO_LABEL)
        role: Literal["labels", "groups"] = "labels" if is_label else "groups"
        reports.append(ColumnReport(str(column), role, texts[~is_missing].nunique(), int(is_missing.sum())))
    return reports


def _find_oddities(report: FileReport, rna_totals: NDArray[np.float64], prints: CellFingerprints) -> list[str]:
    """Find what is allowed but seldom meant: cells that are there twice, and totals that are all the same."""
    found = []
    for name, values in (("RNA", prints.rna), ("ADT", prints.adt)):
        known = values[values != 0]
        copies = len(known) - len(np.unique(known))
        if copies:
            found.append(f"{report.path}: {copies:,} cells have the same {name} counts as another cell of the file.")
    if is_constant(rna_totals[rna_totals > 0]):
        found.append(
            f"{report.path}: all cells have the same RNA total, {rna_totals.max():,.0f}: these may be "
            "rounded normalised values and not counts."
        )
    return found
