"""Bring the counts of a file onto a vocabulary."""

import warnings

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .names import MOUSE_ID
from .schema import AlignedCells, Cells, ModalityCounts
from .vocabulary import Vocabulary, resolve_antibody_features, resolve_gene_features

MIN_HIT_RATE = 0.05  # below it the file is not of human genes: a few names are the same in every species
NUM_EXAMPLES = 5


def align_cells(cells: Cells, vocabulary: Vocabulary) -> AlignedCells:
    """Select and order the counts of a file as a vocabulary does.

    Parameters
    ----------
    cells
        As `read_cells` gives them.
    vocabulary
        Genes and proteins, in the order of the result.

    Returns
    -------
    Counts over the vocabulary with marks of what was measured.

    Raises
    ------
    ValueError
        If no gene or no antibody of the file is in the vocabulary, the file is of mouse, or two features that
        mean the same hold identical counts.

    Notes
    -----
    Warns, with numbers, of names that do not resolve, of several features that are summed into one, and of
    cells without any count. Isotype controls and hashtags are left out without a warning.
    """
    num_obs = len(cells.obs)
    rna = sp.csr_matrix((num_obs, vocabulary.num_genes), dtype=np.float32)
    adt = sp.csr_matrix((num_obs, vocabulary.num_proteins), dtype=np.float32)
    rna_observed = np.zeros(vocabulary.num_genes, dtype=bool)
    adt_observed = np.zeros(vocabulary.num_proteins, dtype=bool)
    totals = np.zeros(num_obs)
    if cells.rna is not None:
        targets = _match_genes(cells, vocabulary)
        rna, rna_observed = _collect(cells.rna, targets, vocabulary.gene_symbols, f"{cells.path}, gene")
        totals = np.asarray(cells.rna.counts.sum(axis=1, dtype=np.float64)).ravel()
    if cells.adt is not None:
        targets = _match_antibodies(cells, vocabulary)
        adt, adt_observed = _collect(cells.adt, targets, vocabulary.protein_names, f"{cells.path}, protein")
    aligned = AlignedCells(
        obs=cells.obs,
        rna=rna,
        rna_observed=rna_observed,
        rna_present=_presence(cells.rna, num_obs),
        rna_total_counts=totals,
        adt=adt.toarray(),
        adt_observed=adt_observed,
        adt_present=_presence(cells.adt, num_obs),
    )
    _warn_empty_cells(aligned, cells.path)
    return aligned


def _match_genes(cells: Cells, vocabulary: Vocabulary) -> np.ndarray:
    """Give for each gene of the file its place in the vocabulary, or -1."""
    _check_human(cells.rna.var, cells.path)
    genes = resolve_gene_features(cells.rna.var)
    is_unknown = (genes["match"] == "unknown").to_numpy()
    targets = _locate(genes.gene_id, vocabulary.gene_ids)
    examples = _examples(genes.index[is_unknown])
    if 1 - is_unknown.mean() < MIN_HIT_RATE:
        raise ValueError(
            f"`{cells.path}` must name its genes by human Ensembl ids or symbols, got {len(genes):,} genes "
            f"of which {(~is_unknown).sum():,} resolve; unknown are {examples}. {_hint(genes.index)}"
        )
    if (targets < 0).all():
        raise ValueError(
            f"`{cells.path}` must share genes with the vocabulary ({vocabulary.num_genes:,} genes), got none "
            f"of its {len(genes):,} genes there, for example {_examples(genes.index)}. "
            "Use a model with another vocabulary."
        )
    if is_unknown.any():
        _warn(
            f"{cells.path}: {is_unknown.sum():,} of {len(genes):,} genes do not resolve and are left out "
            f"(their counts stay in the library size): {examples}. "
            f"{(targets >= 0).sum():,} are in the vocabulary."
        )
    return targets


def _match_antibodies(cells: Cells, vocabulary: Vocabulary) -> np.ndarray:
    """Give for each antibody of the file its place in the vocabulary, or -1."""
    _check_human(cells.adt.var, cells.path)
    antibodies = resolve_antibody_features(cells.adt.var)
    is_unknown = (antibodies["match"] == "unknown").to_numpy()
    targets = _locate(antibodies.protein, vocabulary.protein_names)
    if (antibodies.protein == "").all():
        raise ValueError(
            f"`{cells.path}` must name known antibodies, got {len(antibodies):,} of which none resolves to a "
            f"protein: {_examples(antibodies.index)}. Use names like CD3 or the symbol of the coding gene."
        )
    if (targets < 0).all():
        raise ValueError(
            f"`{cells.path}` must share proteins with the vocabulary ({vocabulary.num_proteins:,} proteins), "
            f"got none of {_examples(antibodies.index)} there. Use a model with another vocabulary."
        )
    if is_unknown.any():
        _warn(
            f"{cells.path}: {is_unknown.sum():,} of {len(antibodies):,} antibodies do not resolve and are "
            f"left out: {', '.join(antibodies.index[is_unknown])}."
        )
    return targets


def _check_human(var: pd.DataFrame, path: str) -> None:
    columns = [
        var.index.to_series(),
        *(var[column] for column in var.columns if var[column].dtype.kind not in "biuf"),
    ]
    for column in columns:
        texts = column.astype(str)
        is_mouse = texts.str.contains(MOUSE_ID).to_numpy()
        if is_mouse.mean() > 0.5:
            raise ValueError(
                f"`{path}` must be of human cells, got mouse genes such as "
                f"{texts.iloc[is_mouse.argmax()]!r}. Mouse is not supported; "
                "map the genes to human orthologues first if that is what you want."
            )


def _hint(names: pd.Index) -> str:
    """Say what unknown names look like."""
    texts = names.astype(str)
    if texts.str.fullmatch(r"\d+").mean() > 0.5:
        return "They look like row numbers or Entrez ids: give symbols or Ensembl ids."
    if texts.str.fullmatch(r"[A-Z][a-z0-9].*").mean() > 0.5:
        return "They look like mouse symbols (Cd3e, not CD3E): mouse is not supported."
    if texts.str.match(r"N[MR]_|ENST").mean() > 0.5:
        return "They look like transcripts: sum them per gene."
    if texts.str.match(r"ENS[A-Z]+\d").mean() > 0.5:
        return "They look like genes of another species."
    return 'Give symbols or Ensembl ids as var_names or in var["gene_ids"].'


def _locate(values: pd.Series, vocabulary: tuple[str, ...]) -> np.ndarray:
    return pd.Index(vocabulary, dtype=object).get_indexer(values.to_numpy(dtype=object))


def _collect(
    modality: ModalityCounts, targets: np.ndarray, names: tuple[str, ...], what: str
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Sum the columns of a modality into those of the vocabulary."""
    columns = np.flatnonzero(targets >= 0)
    sizes = np.bincount(targets[columns], minlength=len(names))
    repeated = np.flatnonzero(sizes > 1)
    if len(repeated):
        _check_copies(modality, targets, repeated, names, what)
        merged = ", ".join(f"{names[i]} ({sizes[i]})" for i in repeated[:NUM_EXAMPLES])
        more = f" and {len(repeated) - NUM_EXAMPLES:,} more" if len(repeated) > NUM_EXAMPLES else ""
        _warn(
            f"{what}: {sizes[repeated].sum():,} columns share {len(repeated):,} name(s) and were summed: "
            f"{merged}{more}."
        )
    place = sp.csr_matrix(
        (np.ones(len(columns), dtype=np.float32), (columns, targets[columns])),
        shape=(len(targets), len(names)),
    )
    counts = sp.csr_matrix(modality.counts @ place)
    counts.sort_indices()
    return counts, sizes > 0


def _check_copies(
    modality: ModalityCounts, targets: np.ndarray, repeated: np.ndarray, names: tuple[str, ...], what: str
) -> None:
    """Refuse two non-empty columns that mean the same and hold the same counts: one is a copy."""
    counts = modality.counts.tocsc()
    counts.sort_indices()
    for target in repeated:
        seen: dict[bytes, str] = {}
        for column in np.flatnonzero(targets == target):
            entries = slice(counts.indptr[column], counts.indptr[column + 1])
            content = counts.indices[entries].tobytes() + counts.data[entries].tobytes()
            name = str(modality.var.index[column])
            if content and content in seen:
                raise ValueError(
                    f"{what} `{names[target]}` must not be counted twice, got features {seen[content]!r} and "
                    f"{name!r} with identical counts in all cells. Remove one of them."
                )
            seen[content] = name


def _presence(modality: ModalityCounts | None, num_obs: int) -> np.ndarray:
    return np.zeros(num_obs, dtype=bool) if modality is None else modality.present.copy()


def _warn_empty_cells(aligned: AlignedCells, path: str) -> None:
    is_empty = ~(aligned.rna_present | aligned.adt_present)
    if is_empty.any():
        _warn(f"{path}: {is_empty.sum():,} of {len(is_empty):,} cells have no count in any modality, and are kept.")


def _examples(names: pd.Index) -> str:
    return ", ".join(map(str, names[:NUM_EXAMPLES])) + (", ..." if len(names) > NUM_EXAMPLES else "")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
