"""Names of genes and antibodies, and the vocabulary of a model."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np
import pandas as pd

from .names import (
    ENSEMBL_ID,
    antibody_spellings,
    gene_spellings,
    is_hashtag,
    is_isotype_control,
    normalise_antibody,
)
from .schema import Cells

GENE_ID_COLUMNS = ("gene_ids", "feature_id", "ensembl_id", "gene_id")
GENE_NAME_COLUMNS = ("feature_name", "gene_name", "gene_symbols", "symbol")
ANTIBODY_NAME_COLUMNS = ("antibody", "feature_name", "gene_ids", "feature_id")


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
        return {name: list(values) for name, values in asdict(self).items()}

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
    runs = [name for i, name in enumerate(chromosomes) if i == 0 or chromosomes[i - 1] != name]
    repeated = sorted({name for name in runs if runs.count(name) > 1})
    if repeated:
        raise ValueError(
            "`gene_chromosomes` must keep the genes of a chromosome together, "
            f"got chromosome {repeated[0]} in several places. Sort the genes by chromosome and start."
        )


@lru_cache(maxsize=1)
def load_gene_table() -> pd.DataFrame:
    """Load the human genes in genome order: chromosome 1..22, X, Y, MT, then start, then id.

    Returns
    -------
    Table with index `gene_id` (Ensembl, no version) and columns symbol, chromosome, start, biotype, status
    ('current', 'alt_locus', 'retired'), previous_symbols and aliases (';' between them). It is cached: copy
    it before changing it.
    """
    with (
        files("scfusion_fm.data").joinpath("tables/human_genes.tsv.gz").open("rb") as raw,
        gzip.open(raw) as file,
    ):
        table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, index_col="gene_id")
    return table.astype({"start": "int64"})


@lru_cache(maxsize=1)
def load_antibody_table() -> pd.DataFrame:
    """Load the names of antibodies with the protein and the genes that each stands for; cached."""
    with files("scfusion_fm.data").joinpath("tables/human_antibodies.tsv").open("rb") as file:
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)


@lru_cache(maxsize=1)
def _gene_lookups() -> tuple[dict[str, str], dict[str, str], dict[str, str], frozenset[str]]:
    """Map symbols, previous symbols and aliases to ids; name the symbols that several genes carry."""
    genes = load_gene_table().reset_index()
    # Of genes with the same symbol: live before retired, coding before other, then the older (lower) id.
    rank = pd.DataFrame(
        {
            "retired": genes.status == "retired",
            "not_current": genes.status != "current",
            "not_coding": genes.biotype != "protein_coding",
            "gene_id": genes.gene_id,
        }
    )
    ranked = genes.loc[rank.sort_values(list(rank.columns)).index]
    symbols = ranked.drop_duplicates("symbol")
    by_symbol = dict(zip(symbols.symbol, symbols.gene_id, strict=True))
    others = []
    for column in ("previous_symbols", "aliases"):
        rows = ranked[ranked[column] != ""]
        pairs = ((n, i) for names, i in zip(rows[column], rows.gene_id, strict=True) for n in names.split(";"))
        lookup: dict[str, str] = {}
        for name, gene_id in pairs:
            lookup.setdefault(name, gene_id)
        others.append(lookup)
    shared = frozenset(genes.symbol[genes.symbol.duplicated()])
    return by_symbol, others[0], others[1], shared


def resolve_genes(names: Sequence[str]) -> pd.DataFrame:
    """Find the Ensembl id of each name.

    Parameters
    ----------
    names
        Ensembl ids with or without version, or symbols.

    Returns
    -------
    One row per name, columns `gene_id` ('' if unresolved) and `match` ('id', 'versioned_id', 'symbol',
    'previous', 'alias' or 'unknown').

    Notes
    -----
    Ids go before symbols, those before previous symbols and aliases. Letter case counts ('Cd3e' is a
    mouse gene), except in names like C1ORF112, whose official form is C1orf112. Prefixes of 10x
    references with several species ('GRCh38_', 'hg19_') are cut. 'HLA.A', as R writes column names, is
    HLA-A. 'SYMBOL-1' is SYMBOL only if SYMBOL is in `names` too and several genes carry it: then a reader
    has appended the number to make names unique.
    """
    texts = [str(name) for name in names]
    given = set(texts)
    results = [_resolve_gene(text, given) for text in texts]
    return pd.DataFrame(results, columns=["gene_id", "match"], index=pd.Index(texts, name="name"))


def _resolve_gene(name: str, given: set[str]) -> tuple[str, str]:
    known_ids = _known_gene_ids()
    by_symbol, by_previous, by_alias, shared = _gene_lookups()
    spellings = gene_spellings(name)
    for spelling in spellings:
        if spelling in known_ids:
            return spelling, "id"
        found = ENSEMBL_ID.fullmatch(spelling)
        if found and found["gene_id"] in known_ids:
            return found["gene_id"], "versioned_id"
    for lookup, match in ((by_symbol, "symbol"), (by_previous, "previous"), (by_alias, "alias")):
        for spelling in spellings:
            if spelling in lookup:
                return lookup[spelling], match
    dashed = spellings[0].replace(".", "-")
    if dashed in by_symbol and spellings[0].rpartition(".")[0] not in by_symbol:
        return by_symbol[dashed], "symbol"
    base, dash, number = name.rpartition("-")
    if dash and number.isdigit() and base in given and base in shared:
        return by_symbol[base], "symbol"
    return "", "unknown"


@lru_cache(maxsize=1)
def _known_gene_ids() -> frozenset[str]:
    return frozenset(load_gene_table().index)


@lru_cache(maxsize=1)
def _antibody_lookups() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Map exact names, normalised names and gene symbols to proteins; '' for isotype controls."""
    table = load_antibody_table()
    names = table[table.kind == "name"]
    exact = dict(zip(names.antibody, names.protein, strict=True))
    normalised: dict[str, str] = {}
    for name, protein in exact.items():
        key = normalise_antibody(name)
        known = normalised.setdefault(key, protein)
        assert known == protein, f"{name!r} reads {key!r}, which is {known!r} and {protein!r}"
    for protein in names.protein[names.protein != ""].unique():
        exact.setdefault(protein, protein)
        normalised.setdefault(normalise_antibody(protein), protein)
    symbols = table[table.kind == "gene_symbol"]
    return exact, normalised, dict(zip(symbols.antibody, symbols.protein, strict=True))


def resolve_antibodies(names: Sequence[str]) -> pd.DataFrame:
    """Find the protein that each antibody name stands for.

    Parameters
    ----------
    names
        Names as in the file.

    Returns
    -------
    One row per name, columns `protein` ('' if none) and `match`: 'table' (the exact name), 'normalised'
    (after the rules of `scfusion_fm.data.names.antibody_spellings`), 'gene_symbol' (of the coding gene),
    'isotype', 'hashtag' or 'unknown'.
    """
    texts = [str(name) for name in names]
    results = [_resolve_antibody(text) for text in texts]
    return pd.DataFrame(results, columns=["protein", "match"], index=pd.Index(texts, name="name"))


def _resolve_antibody(name: str) -> tuple[str, str]:
    exact, normalised, by_symbol = _antibody_lookups()
    if name in exact:
        return exact[name], "table" if exact[name] else "isotype"
    if is_hashtag(name):
        return "", "hashtag"
    if is_isotype_control(name):
        return "", "isotype"
    for keys in antibody_spellings(name):
        proteins = {normalised[key] for key in keys if key in normalised}
        if len(proteins) == 1:
            (protein,) = proteins
            return protein, "normalised" if protein else "isotype"
        if proteins:  # the parts of the name contradict one another
            return "", "unknown"
    if name in by_symbol:
        return by_symbol[name], "gene_symbol"
    return "", "unknown"


def resolve_gene_features(var: pd.DataFrame) -> pd.DataFrame:
    """Resolve the genes of a feature table: by its id column where that resolves, else by a name.

    Parameters
    ----------
    var
        Index: names in the file. Id columns: gene_ids, feature_id, ensembl_id, gene_id; name columns:
        feature_name, gene_name, gene_symbols, symbol.

    Returns
    -------
    As `resolve_genes`, one row per row of `var`, with the names of the file as index.
    """
    sources = [var[column].astype(str) for column in GENE_ID_COLUMNS if column in var]
    sources.append(var.index.astype(str).to_series())
    sources += [var[column].astype(str) for column in GENE_NAME_COLUMNS if column in var]
    return _first_resolving([resolve_genes(list(source)) for source in sources], "gene_id", var.index)


def resolve_antibody_features(var: pd.DataFrame) -> pd.DataFrame:
    """Resolve the antibodies of a feature table: by name, else by its columns antibody, feature_name or id.

    Returns
    -------
    As `resolve_antibodies`, one row per row of `var`, with the names of the file as index.
    """
    sources = [var.index.astype(str).to_series()]
    sources += [var[column].astype(str) for column in ANTIBODY_NAME_COLUMNS if column in var]
    return _first_resolving([resolve_antibodies(list(source)) for source in sources], "protein", var.index)


def _first_resolving(candidates: list[pd.DataFrame], column: str, index: pd.Index) -> pd.DataFrame:
    values = candidates[0][column].to_numpy(dtype=object)
    matches = candidates[0]["match"].to_numpy(dtype=object)
    for candidate in candidates[1:]:
        is_better = (matches == "unknown") & (candidate["match"] != "unknown").to_numpy()
        values = np.where(is_better, candidate[column].to_numpy(dtype=object), values)
        matches = np.where(is_better, candidate["match"].to_numpy(dtype=object), matches)
    return pd.DataFrame({column: values, "match": matches}, index=index.astype(str))


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
