"""From the names that files use to Ensembl ids of genes and names of proteins."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from scfusion_fm.data.schema import as_text
from scfusion_fm.data.vocabulary.antibodies import resolve_antibodies
from scfusion_fm.data.vocabulary.names import ENSEMBL_ID, cut_human_prefix, find_joined_id, gene_spellings, is_of_mouse
from scfusion_fm.data.vocabulary.reference import load_gene_table

GENE_ID_COLUMNS = ("gene_ids", "feature_id", "ensembl_id", "gene_id")


GENE_NAME_COLUMNS = ("feature_name", "gene_name", "gene_symbols", "symbol")


_SHORTEST_ID = len("ENSG00000000000")
_PREFIX_STARTS = ("gr", "hg", "hu", "ho", "mm", "mo", "mu")  # of those of `names`


ANTIBODY_NAME_COLUMNS = ("antibody", "feature_name", "gene_ids", "feature_id")


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
    mouse gene), except in names like C1ORF112, whose official form is C1orf112. Prefixes of species and
    references ('GRCh38_', 'hg19-', 'HUMAN_') are cut, and an id is found inside a longer name
    ('CD4_ENSG00000010610', 'ENSG00000010610.15|CD4'; match 'versioned_id'). What has the prefix or the id
    of another species is unknown. 'HLA.A', as R writes column names, is HLA-A. 'SYMBOL-1' is SYMBOL only if
    SYMBOL is in `names` too and several genes carry it: then a reader has appended the number to make names
    unique.
    """
    texts = [str(name) for name in names]
    given = set(texts)
    results = [_resolve_gene(text, given) for text in texts]
    return pd.DataFrame(results, columns=["gene_id", "match"], index=pd.Index(texts, name="name"))


def _resolve_gene(name: str, given: set[str]) -> tuple[str, str]:
    known_ids = _known_gene_ids()
    by_symbol, by_previous, by_alias, shared = _gene_lookups()
    if name in known_ids:
        return name, "id"
    if name in by_symbol and len(name) < _SHORTEST_ID and name[:2].lower() not in _PREFIX_STARTS:
        return by_symbol[name], "symbol"  # most names: nothing can be cut from them, and no id stands in them
    if is_of_mouse(name):
        return "", "unknown"
    spellings = gene_spellings(name)
    for spelling in spellings:
        if spelling in known_ids:
            return spelling, "id"
        found = ENSEMBL_ID.fullmatch(spelling)
        if found and found["gene_id"] in known_ids:
            return found["gene_id"], "versioned_id"
    joined = find_joined_id(name)
    if joined:
        return (joined, "versioned_id") if joined in known_ids else ("", "unknown")
    for lookup, match in ((by_symbol, "symbol"), (by_previous, "previous"), (by_alias, "alias")):
        for spelling in spellings:
            if spelling in lookup:
                return lookup[spelling], match
    dashed = spellings[0].replace(".", "-")
    if dashed in by_symbol and spellings[0].rpartition(".")[0] not in by_symbol:
        return by_symbol[dashed], "symbol"
    base, dash, number = name.rpartition("-")
    if dash and number.isdigit() and base in given and cut_human_prefix(base) in shared:
        return by_symbol[cut_human_prefix(base)], "symbol"
    return "", "unknown"


@lru_cache(maxsize=1)
def _known_gene_ids() -> frozenset[str]:
    return frozenset(load_gene_table().index)


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
    sources = [as_text(var[column]) for column in GENE_ID_COLUMNS if column in var]
    sources.append(var.index.astype(str).to_series())
    sources += [as_text(var[column]) for column in GENE_NAME_COLUMNS if column in var]
    return _first_resolving([resolve_genes(list(source)) for source in sources], "gene_id", var.index)


def resolve_antibody_features(var: pd.DataFrame) -> pd.DataFrame:
    """Resolve the antibodies of a feature table: by name, else by its columns antibody, feature_name or id.

    Returns
    -------
    As `resolve_antibodies`, one row per row of `var`, with the names of the file as index.
    """
    sources = [var.index.astype(str).to_series()]
    sources += [as_text(var[column]) for column in ANTIBODY_NAME_COLUMNS if column in var]
    return _first_resolving([resolve_antibodies(list(source)) for source in sources], "protein", var.index)


def _first_resolving(candidates: list[pd.DataFrame], column: str, index: pd.Index) -> pd.DataFrame:
    values = candidates[0][column].to_numpy(dtype=object)
    matches = candidates[0]["match"].to_numpy(dtype=object)
    for candidate in candidates[1:]:
        is_better = (matches == "unknown") & (candidate["match"] != "unknown").to_numpy()
        values = np.where(is_better, candidate[column].to_numpy(dtype=object), values)
        matches = np.where(is_better, candidate["match"].to_numpy(dtype=object), matches)
    return pd.DataFrame({column: values, "match": matches}, index=index.astype(str))
