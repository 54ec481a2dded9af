"""Find the genes and antibodies of a file in a vocabulary."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import CellsFile, StoredModality
from scfusion_fm.data.schema import Cells, ModalityCounts, as_text
from scfusion_fm.data.vocabulary.antibodies import find_mouse_antigens
from scfusion_fm.data.vocabulary.guess import guess_names
from scfusion_fm.data.vocabulary.names import MOUSE_ID, is_of_mouse
from scfusion_fm.data.vocabulary.resolve import resolve_antibody_features, resolve_gene_features
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.notices import warn

MIN_HUMAN = 0.05  # below it the file is not of human genes: a few names are the same in every species
MIN_MOUSE = 3, 0.05  # number and share of antigens that only mice have, from which on a panel is one for mice
NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Alignment:
    """
    Say where each feature of a file stands in a vocabulary.

    Attributes
    ----------
    rna, adt
        (n_features,) place in the vocabulary, -1 for none; None where the file lacks the modality.
    num_genes, num_proteins
        Size of the vocabulary.
    """

    rna: NDArray[np.int64] | None
    adt: NDArray[np.int64] | None
    num_genes: int
    num_proteins: int

    @property
    def rna_observed(self) -> NDArray[np.bool_]:
        """(num_genes,) whether the file measures the gene."""
        return _observed(self.rna, self.num_genes)

    @property
    def adt_observed(self) -> NDArray[np.bool_]:
        """(num_proteins,) whether the file measures the protein."""
        return _observed(self.adt, self.num_proteins)

    def align_rna(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Give RNA counts of the file over the genes of the vocabulary; columns that mean the same are summed."""
        assert self.rna is not None
        return _collect(counts, self.rna, self.num_genes)

    def align_adt(self, counts: sp.csr_matrix) -> NDArray[np.float32]:
        """Give ADT counts of the file over the proteins of the vocabulary, dense."""
        assert self.adt is not None
        return _collect(counts, self.adt, self.num_proteins).toarray()

    def read(
        self, cells: Cells | CellsFile, start: int, stop: int
    ) -> tuple[sp.csr_matrix, NDArray[np.float64], NDArray[np.float32]]:
        """Read neighbouring cells: RNA counts (B, G), library sizes over all genes of the file (B,), ADT (B, P)."""
        number = stop - start
        rna = sp.csr_matrix((number, self.num_genes), dtype=np.float32)
        adt = np.zeros((number, self.num_proteins), dtype=np.float32)
        totals = np.zeros(number)
        if cells.rna is not None:
            counts = cells.rna.read(start, stop)
            totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
            rna = self.align_rna(counts)
        if cells.adt is not None:
            adt = self.align_adt(cells.adt.read(start, stop))
        return rna, totals, adt


def match_features(cells: Cells | CellsFile, vocabulary: Vocabulary) -> Alignment:
    """Find the genes and antibodies of a file in a vocabulary.

    Raises
    ------
    ValueError
        If no gene or no antibody of the file is in the vocabulary, the file is of mouse, or two features that
        mean the same hold identical counts.

    Notes
    -----
    Warns, with numbers, of names that do not resolve and of several features that are summed into one. Isotype
    controls and hashtags are left out without a warning.
    """
    rna = adt = None
    if cells.rna is not None:
        rna = _match_genes(cells.rna.var, cells.path, vocabulary)
        _tell_sums(cells.rna, rna, vocabulary.gene_symbols, f"{cells.path}, gene")
    if cells.adt is not None:
        adt = _match_antibodies(cells.adt.var, cells.path, vocabulary)
        _tell_sums(cells.adt, adt, vocabulary.protein_names, f"{cells.path}, protein")
    return Alignment(rna, adt, vocabulary.num_genes, vocabulary.num_proteins)


def _observed(targets: NDArray[np.int64] | None, size: int) -> NDArray[np.bool_]:
    observed = np.zeros(size, dtype=bool)
    if targets is not None:
        observed[targets[targets >= 0]] = True
    return observed


def _match_genes(var: pd.DataFrame, path: str, vocabulary: Vocabulary) -> np.ndarray:
    """Give for each gene of the file its place in the vocabulary, or -1."""
    _check_human(var, path)
    genes = resolve_gene_features(var)
    is_unknown = (genes["match"] == "unknown").to_numpy()
    targets = _locate(genes.gene_id, vocabulary.gene_ids)
    examples = _examples(genes.index[is_unknown])
    if 1 - is_unknown.mean() < MIN_HUMAN:
        raise ValueError(
            f"`{path}` must name its genes by human Ensembl ids or symbols, got {len(genes):,} genes "
            f"of which {(~is_unknown).sum():,} resolve; unknown are {examples}. {guess_names(genes.index)}"
        )
    if (targets < 0).all():
        raise ValueError(
            f"`{path}` must share genes with the vocabulary ({vocabulary.num_genes:,} genes), got none "
            f"of its {len(genes):,} genes there, for example {_examples(genes.index)}. "
            "Use a model with another vocabulary."
        )
    if is_unknown.any():
        _warn(
            f"{path}: {is_unknown.sum():,} of {len(genes):,} genes do not resolve and are left out "
            f"(their counts stay in the library size): {examples}. "
            f"{(targets >= 0).sum():,} are in the vocabulary."
        )
    of_mouse = pd.Index([name for name in genes.index[is_unknown] if is_of_mouse(name)])
    if len(of_mouse):
        _warn(
            f"{path}: {len(of_mouse):,} of {len(genes):,} genes are of mouse ({_examples(of_mouse)}) and left out: "
            "cells of mice are read by their few counts of human genes; remove them."
        )
    return targets


def _match_antibodies(var: pd.DataFrame, path: str, vocabulary: Vocabulary) -> np.ndarray:
    """Give for each antibody of the file its place in the vocabulary, or -1."""
    _check_human(var, path)
    _check_human_panel(var.index, path)
    antibodies = resolve_antibody_features(var)
    is_unknown = (antibodies["match"] == "unknown").to_numpy()
    targets = _locate(antibodies.protein, vocabulary.protein_names)
    if (antibodies.protein == "").all():
        raise ValueError(
            f"`{path}` must name known antibodies, got {len(antibodies):,} of which none resolves to a "
            f"protein: {_examples(antibodies.index)}. Use names like CD3 or the symbol of the coding gene."
        )
    if (targets < 0).all():
        raise ValueError(
            f"`{path}` must share proteins with the vocabulary ({vocabulary.num_proteins:,} proteins), "
            f"got none of {_examples(antibodies.index)} there. Use a model with another vocabulary."
        )
    if is_unknown.any():
        _warn(
            f"{path}: {is_unknown.sum():,} of {len(antibodies):,} antibodies do not resolve and are "
            f"left out: {', '.join(antibodies.index[is_unknown])}."
        )
    return targets


def _check_human(var: pd.DataFrame, path: str) -> None:
    columns = [
        var.index.to_series(),
        *(var[column] for column in var.columns if var[column].dtype.kind not in "biuf"),
    ]
    for column in columns:
        texts = as_text(column)
        is_mouse = texts.str.contains(MOUSE_ID).to_numpy()
        if is_mouse.mean() > 0.5:
            raise ValueError(
                f"`{path}` must be of human cells, got mouse genes such as "
                f"{texts.iloc[is_mouse.argmax()]!r}. Mouse is not supported; "
                "map the genes to human orthologues first if that is what you want."
            )


def _check_human_panel(names: pd.Index, path: str) -> None:
    """Refuse a panel for mice, most of whose names (CD4, CD19) people have too."""
    of_mice = find_mouse_antigens(names)
    least, share = MIN_MOUSE
    if len(of_mice) >= least and len(of_mice) >= share * len(names):
        raise ValueError(
            f"`{path}` must be of human cells, got {len(of_mice):,} antibodies against antigens that only mice have "
            f"({_examples(pd.Index(of_mice))}). Mouse is not supported; remove these antibodies if the cells are human."
        )


def _locate(values: pd.Series, vocabulary: Sequence[str]) -> np.ndarray:
    return pd.Index(vocabulary, dtype=object).get_indexer(values.to_numpy(dtype=object))


def _collect(counts: sp.csr_matrix, targets: NDArray[np.int64], size: int) -> sp.csr_matrix:
    """Sum the columns of a file into those of the vocabulary."""
    columns = np.flatnonzero(targets >= 0)
    place = (np.ones(len(columns), dtype=np.float32), (columns, targets[columns]))
    aligned = sp.csr_matrix(counts @ sp.csr_matrix(place, shape=(len(targets), size)))
    aligned.sort_indices()
    return aligned


def _tell_sums(
    modality: ModalityCounts | StoredModality, targets: NDArray[np.int64], names: Sequence[str], what: str
) -> None:
    """Warn of columns that will be summed, and refuse two of them that are copies."""
    sizes = np.bincount(targets[targets >= 0], minlength=len(names))
    repeated = np.flatnonzero(sizes > 1)
    if len(repeated) == 0:
        return
    _check_copies(modality, targets, repeated, names, what)
    merged = ", ".join(f"{names[i]} ({sizes[i]})" for i in repeated[:NUM_EXAMPLES])
    more = f" and {len(repeated) - NUM_EXAMPLES:,} more" if len(repeated) > NUM_EXAMPLES else ""
    _warn(f"{what}: {sizes[repeated].sum():,} columns share {len(repeated):,} name(s) and were summed: {merged}{more}.")


def _check_copies(
    modality: ModalityCounts | StoredModality,
    targets: NDArray[np.int64],
    repeated: NDArray[np.int64],
    names: Sequence[str],
    what: str,
) -> None:
    """Refuse two non-empty columns that mean the same and hold the same counts in all cells: one is a copy."""
    columns = np.flatnonzero(np.isin(targets, repeated))
    digests = [hashlib.blake2b(digest_size=16) for _ in columns]
    empty = [digest.digest() for digest in digests]
    start = 0
    for block in modality.blocks():
        by_column = block[:, columns].tocsc()
        by_column.sort_indices()
        for i, digest in enumerate(digests):
            entries = slice(by_column.indptr[i], by_column.indptr[i + 1])
            digest.update((by_column.indices[entries].astype(np.int64) + start).tobytes())
            digest.update(by_column.data[entries].tobytes())
        start += block.shape[0]
    seen: dict[tuple[int, bytes], str] = {}
    for column, digest, nothing in zip(columns, digests, empty, strict=True):
        key, name = (targets[column], digest.digest()), str(modality.var.index[column])
        if key in seen and digest.digest() != nothing:
            raise ValueError(
                f"{what} `{names[targets[column]]}` must not be counted twice, got features {seen[key]!r} and "
                f"{name!r} with identical counts in all cells. Remove one of them."
            )
        seen[key] = name


def _examples(names: pd.Index) -> str:
    return ", ".join(map(str, names[:NUM_EXAMPLES])) + (", ..." if len(names) > NUM_EXAMPLES else "")


def _warn(message: str) -> None:
    warn(message)
