"""Names of genes and antibodies, and the vocabulary of a model."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

from scfusion_fm.data.schema import Cells
from scfusion_fm.data.vocabulary.reference import load_antibody_table, load_gene_table
from scfusion_fm.data.vocabulary.resolve import resolve_antibody_features, resolve_gene_features


@dataclass(frozen=True)
class Vocabulary:
    """Fix which genes and proteins a model knows, and in which order.

    Attributes
    ----------
    gene_ids
        Ensembl ids in genome order.
    gene_symbols, gene_chromosomes
        One per gene.
    protein_names
        Identities of the antibody table, in the order of their first coding gene.
    protein_gene_ids
        Ensembl id of the first coding gene, one per protein.
    """

    gene_ids: Sequence[str]
    gene_symbols: Sequence[str]
    gene_chromosomes: Sequence[str]
    protein_names: Sequence[str]
    protein_gene_ids: Sequence[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name, reference in (
            ("gene_symbols", "gene_ids"),
            ("gene_chromosomes", "gene_ids"),
            ("protein_gene_ids", "protein_names"),
        ):
            found, expected = len(getattr(self, name)), len(getattr(self, reference))
            if found != expected:
                raise ValueError(f"`{name}` must be as long as `{reference}` ({expected}), got {found}.")
        for name in ("gene_ids", "protein_names"):
            _check_unique(getattr(self, name), name)
        _check_contiguous(self.gene_chromosomes)

    @property
    def num_genes(self) -> int:
        """Number of genes."""
        return len(self.gene_ids)

    @property
    def num_proteins(self) -> int:
        """Number of proteins."""
        return len(self.protein_names)

    def to_dict(self) -> dict[str, list[str]]:
        """Give the five lists, such that `Vocabulary(**vocabulary.to_dict())` is the same again."""
        return {field.name: list(getattr(self, field.name)) for field in fields(self)}

    def fingerprint(self) -> str:
        """Give the SHA-256 of the content in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _check_unique(values: Sequence[str], name: str) -> None:
    seen: set[str] = set()
    for value in values:
        if not isinstance(value, str) or not value:
            raise ValueError(f"`{name}` must hold non-empty text, got {value!r}.")
        if value in seen:
            raise ValueError(f"`{name}` must be unique, got {value!r} twice.")
        seen.add(value)


def _check_contiguous(chromosomes: Sequence[str]) -> None:
    runs = Counter(name for i, name in enumerate(chromosomes) if i == 0 or chromosomes[i - 1] != name)
    repeated = sorted(name for name, times in runs.items() if times > 1)
    if repeated:
        raise ValueError(
            "`gene_chromosomes` must keep the genes of a chromosome together, "
            f"got chromosome {repeated[0]} in several places. Sort the genes by chromosome and start."
        )


def build_vocabulary(
    cells: Iterable[Cells] | None,
    genes: Literal["sources", "protein_coding"] = "sources",
    proteins: Literal["sources", "all"] = "sources",
) -> Vocabulary:
    """Build the vocabulary of a model.

    Parameters
    ----------
    cells
        The files; needed where `genes` or `proteins` is 'sources'.
    genes
        'sources': every gene that resolves in at least one file. 'protein_coding': all current human
        protein-coding genes and the gene segments of antigen receptors.
    proteins
        'sources': every protein that resolves in at least one file. 'all': every protein of the table.

    Raises
    ------
    ValueError
        If an option is unknown, files are needed and missing, or neither gene nor protein resolves.
    """
    for name, value, allowed in (
        ("genes", genes, ("sources", "protein_coding")),
        ("proteins", proteins, ("sources", "all")),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
    sources = list(cells or ())
    if "sources" in (genes, proteins) and not sources:
        raise ValueError("`cells` must hold at least one file where the vocabulary comes from 'sources', got none.")
    gene_ids = _coding_genes() if genes == "protein_coding" else _genes_of(sources)
    names = set(_protein_genes()) if proteins == "all" else _proteins_of(sources)
    if not gene_ids and not names:
        raise ValueError(
            f"`cells` must hold human genes or antibodies, got {len(sources)} files where no name resolves. "
            "Use Ensembl ids or symbols of human genes."
        )
    return order_vocabulary(gene_ids, names)


def _coding_genes() -> set[str]:
    table = load_gene_table()
    is_receptor = table.biotype.str.fullmatch(r"(IG|TR)_[A-Z]_gene")
    return set(table.index[(table.status != "retired") & (is_receptor | (table.biotype == "protein_coding"))])


def _genes_of(sources: list[Cells]) -> set[str]:
    found = [resolve_gene_features(cells.rna.var).gene_id for cells in sources if cells.rna is not None]
    return {gene_id for ids in found for gene_id in ids if gene_id}


def _proteins_of(sources: list[Cells]) -> set[str]:
    found = [resolve_antibody_features(cells.adt.var).protein for cells in sources if cells.adt is not None]
    return {protein for names in found for protein in names if protein}


@lru_cache(maxsize=1)
def _protein_genes() -> dict[str, str]:
    """Map every protein to the id of its first coding gene."""
    table = load_antibody_table()
    table = table[table.protein != ""].drop_duplicates("protein")
    return dict(zip(table.protein, table.gene_ids.str.split(";").str[0], strict=True))


def order_vocabulary(gene_ids: set[str], proteins: set[str]) -> Vocabulary:
    """Make a vocabulary of these genes and proteins, all in genome order."""
    table = load_gene_table()
    position = {gene_id: i for i, gene_id in enumerate(table.index)}
    selected = table[table.index.isin(gene_ids)]
    protein_genes = _protein_genes()
    names = sorted(proteins, key=lambda name: (position[protein_genes[name]], name))
    return Vocabulary(
        gene_ids=selected.index.tolist(),
        gene_symbols=selected.symbol.tolist(),
        gene_chromosomes=selected.chromosome.tolist(),
        protein_names=names,
        protein_gene_ids=[protein_genes[name] for name in names],
    )
