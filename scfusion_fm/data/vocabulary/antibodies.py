"""From the names of antibodies to the proteins that they bind, or to nothing: unknown is better than wrong."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from scfusion_fm.data.vocabulary.antibody_names import (
    ATOM,
    first_of_bd,
    is_hashtag,
    is_isotype_control,
    is_mouse_antigen,
    is_of_another_molecule,
    normalise_antibody,
    normalise_bare,
    shorten_words,
    strip_antibody,
)
from scfusion_fm.data.vocabulary.reference import load_antibody_table, load_gene_table

MIN_ALIAS = 3  # characters; shorter ones (T4, R2, OK) say too little
MAX_ATOMS = 6  # of one name inside a longer one
# Names of families, which aliases give to one member, an isotype, and words.
FAMILIES = {"fcgr", "ilra", "jam", "kir2dl", "klr", "mhc", "siglec", "sirp", "vegfr", "iga1", "bit", "end", "tor"}
# What follows these names is a chain, an allele or a peptide more often than a clone.
_NEVER_CUT = re.compile(
    r"tcr.*|tr[abdg][vjc].*|hla.*|ig(?![mde]$).*|cd1[a-e]?|cd158"
    r"|mr1|b2m|mic[ab]+|cadherin|integrin.*|folate.*|lox"
)
_THEIR_CLONES = re.compile(
    r"ip26|b1|b3|b6|6b11|3c10|h131|bb7\.2|w6[.]?32|l243|ln3|g46\.6|tu3[69]|tu149|tu169|3d12|26\.5|51\.1|l161|hi149|sk9"
    r"|ia6\.2|mhm88|g20\.127|m1310g05|hpma4|hpdm1|fib504|of5a12|2m2"
)
_MOUSE_SYMBOL = re.compile(r"[A-Z][a-z0-9]*[a-z][a-z0-9]*")  # Itgax is ITGAX of mice
_LIKE_A_CLONE = re.compile(r"\d+[a-z]\d+")  # genes have aliases that are clones: 1F5, 4F9
_CLONE = re.compile(r"(?=.*[a-z])(?=.*\d)[a-z0-9.]{2,20}")
_LIST_SEPARATOR = re.compile(r"[/|,;+]|--")


@dataclass(frozen=True)
class _Lookups:
    """
    Say what names mean.

    Attributes
    ----------
    exact, normalised
        Names of the table, as written and normalised; '' for isotype controls.
    as_written
        Names, in lower case, that mean something only with these very separators.
    symbols
        Exact gene symbols to proteins.
    genes
        Normalised symbols, previous symbols and aliases to (proteins with that gene, the one that the symbol alone
        means or '').
    others
        Normalised symbols of all other genes.
    """

    exact: dict[str, str]
    normalised: dict[str, str]
    as_written: dict[str, str]
    symbols: dict[str, str]
    genes: dict[str, tuple[frozenset[str], str]]
    others: frozenset[str]


@lru_cache(maxsize=1)
def _lookups() -> _Lookups:
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
    written = table[table.kind == "as_written"]
    as_written = {name.lower(): protein for name, protein in zip(written.antibody, written.protein, strict=True)}
    symbols = table[table.kind == "gene_symbol"]
    by_symbol = dict(zip(symbols.antibody, symbols.protein, strict=True))
    genes, others = _gene_names(table, by_symbol)
    return _Lookups(exact, normalised, as_written, by_symbol, genes, others)


def _gene_names(
    table: pd.DataFrame, by_symbol: dict[str, str]
) -> tuple[dict[str, tuple[frozenset[str], str]], frozenset[str]]:
    """Map normalised names of the genes of the table to their proteins; name the symbols of all other genes."""
    proteins: dict[str, set[str]] = {}
    for symbols, protein in zip(table.gene_symbols, table.protein, strict=True):
        for symbol in filter(None, symbols.split(";")):
            proteins.setdefault(symbol, set()).add(protein)
    genes = load_gene_table()
    genes = genes[genes.status != "retired"]
    is_ours = genes.symbol.isin(proteins.keys())
    others = frozenset(normalise_bare(symbol) for symbol in genes.symbol[~is_ours])
    found: dict[str, tuple[frozenset[str], str]] = {}
    for column in ("symbol", "previous_symbols", "aliases"):
        level: dict[str, tuple[frozenset[str], str]] = {}
        ambiguous = set(others) | FAMILIES
        for symbol, names in zip(genes.symbol[is_ours], genes[column][is_ours], strict=True):
            meaning = (frozenset(proteins[symbol]), by_symbol.get(symbol, ""))
            for name in filter(None, names.split(";")):
                key = normalise_bare(name)
                if len(key) < MIN_ALIAS or _LIKE_A_CLONE.fullmatch(key) or level.setdefault(key, meaning) != meaning:
                    ambiguous.add(key)
        found |= {key: meaning for key, meaning in level.items() if key not in ambiguous and key not in found}
    return found, others


def resolve_antibodies(names: Sequence[str]) -> pd.DataFrame:
    """Find the protein that each antibody name stands for.

    Parameters
    ----------
    names
        Names as in the file.

    Returns
    -------
    One row per name, columns `protein` ('' if none) and `match`: 'table' (the exact name), 'normalised'
    (another spelling of a name of the table), 'gene_symbol' (symbol, previous symbol or alias of the coding gene),
    'isotype', 'hashtag' or 'unknown'.

    Notes
    -----
    Prefixes, suffixes and barcodes are cut from a name; what is left is looked up as a whole, then as a list: a
    known name first, then synonyms of it, clones and clone numbers (`CD279_PD-1`, `CD3-UCHT1`, `CD4.1`, BD's
    `CD3:UCHT1|CD3E|...`). A list whose members mean different proteins is unknown, as is one with a word that is
    neither a synonym nor like a clone, one of a variant or of another species (`CD44 (v6)`, `CD45.2`), of a dye or
    of a multimer, and everything behind a name that presents peptides or has many alleles (HLA, CD1, TCR, ...).
    """
    texts = [str(name) for name in names]
    results = [_resolve_antibody(text) for text in texts]
    return pd.DataFrame(results, columns=["protein", "match"], index=pd.Index(texts, name="name"))


def find_mouse_antigens(names: Sequence[str]) -> list[str]:
    """Give those of the names that are antigens or alleles of mice only (CD45.2, Ly-6C, H-2Kb, ...)."""
    known = _lookups().exact
    return [name for name in map(str, names) if name not in known and is_mouse_antigen(strip_antibody(name))]


@lru_cache(maxsize=1 << 17)
def _resolve_antibody(name: str) -> tuple[str, str]:
    lookups = _lookups()
    if name in lookups.exact:
        return lookups.exact[name], "table" if lookups.exact[name] else "isotype"
    text = strip_antibody(first_of_bd(name))
    if is_hashtag(name):
        return "", "hashtag"
    if is_isotype_control(text):
        return "", "isotype"
    if is_mouse_antigen(name.partition("|")[2]):  # BD's numbers begin with AMM
        return "", "unknown"
    if text in lookups.exact or text.lower() in lookups.as_written:
        protein = lookups.exact.get(text) or lookups.as_written.get(text.lower(), "")
        return protein, "normalised" if protein else "isotype"
    if is_mouse_antigen(text):
        return "", "unknown"
    protein, match = _read_whole(text)
    if not match and not is_of_another_molecule(text):
        protein, match = _read_list(text)
    return protein, match or "unknown"


def _read_whole(text: str) -> tuple[str, str]:
    """Look a name up as a whole; ('', 'unknown') is final, ('', '') is not."""
    lookups = _lookups()
    for key in (normalise_bare(text), normalise_bare(shorten_words(text.lower()))):
        if key in lookups.normalised:
            protein = lookups.normalised[key]
            return protein, "normalised" if protein else "isotype"
        if _MOUSE_SYMBOL.fullmatch(text) and text.upper() in lookups.symbols:
            return "", "unknown"
        if key in lookups.genes and not is_of_another_molecule(text):
            protein = lookups.genes[key][1]
            return protein, "gene_symbol" if protein else "unknown"
        if key in lookups.others and len(key) >= MIN_ALIAS:
            return "", "unknown"
    return "", ""


def _read_list(text: str) -> tuple[str, str]:
    """Read a name that is followed by synonyms, clones or a clone number."""
    meanings: list[tuple[frozenset[str], str]] = []
    match, head = "", ""
    for key, before, meaning, kind in _split(shorten_words(text.lower())):
        if not meaning:
            if not meanings or not _is_harmless(key, before, head):
                return "", ""
        else:
            meanings.append(meaning)
            match, head = match or kind, head or key
    if not meanings:
        return "", ""
    shared = frozenset.intersection(*(proteins for proteins, _ in meanings))
    protein = next((alone for _, alone in meanings if alone in shared), "")
    if not protein and len(meanings) > 1 and len(shared) == 1:
        (protein,) = shared
    return protein, match if protein else ""


def _split(text: str) -> Iterator[tuple[str, str, tuple[frozenset[str], str] | None, str]]:
    """Yield the known names in a text and what lies between them.

    Each as (normalised, separators before it, its meaning or None, kind of match).
    """
    spans = [found.span() for found in ATOM.finditer(text)]
    unknown: int | None = None
    place, end = 0, len(spans)
    while place < end:
        known = None
        for last in range(min(end, place + MAX_ATOMS), place, -1):
            key = normalise_bare(text[spans[place][0] : spans[last - 1][1]])
            known = _meaning(key)
            if known:
                break
        if known and unknown is not None:
            yield _unknown_part(text, spans, unknown, place)
            unknown = None
        if known:
            yield key, _before(text, spans, place), *known
            place = last
        else:
            unknown = place if unknown is None else unknown
            place += 1
    if unknown is not None:
        yield _unknown_part(text, spans, unknown, end)


def _unknown_part(text: str, spans: list[tuple[int, int]], first: int, end: int) -> tuple[str, str, None, str]:
    return normalise_bare(text[spans[first][0] : spans[end - 1][1]]), _before(text, spans, first), None, ""


def _before(text: str, spans: list[tuple[int, int]], place: int) -> str:
    return text[spans[place - 1][1] if place else 0 : spans[place][0]]


def _meaning(key: str) -> tuple[tuple[frozenset[str], str], str] | None:
    lookups = _lookups()
    if len(key) < MIN_ALIAS:
        return None
    if lookups.normalised.get(key):
        protein = lookups.normalised[key]
        return (frozenset([protein]), protein), "normalised"
    return (lookups.genes[key], "gene_symbol") if key in lookups.genes else None


def _is_harmless(part: str, before: str, head: str) -> bool:
    """Tell whether a part of a name may be cut: a clone, a clone number, a word that says nothing."""
    lookups = _lookups()
    if part in ("human", "recombinant", "clone", "cell", "cells"):
        return True
    if _LIST_SEPARATOR.search(before) and part in lookups.others:
        return False
    if _NEVER_CUT.fullmatch(head):
        return bool(_THEIR_CLONES.fullmatch(part.removeprefix("clone")))
    if re.fullmatch(r"[1-5]", part):
        return bool(re.fullmatch(r"[._-]", before))
    digits = part.replace(".", "")
    if digits.isdigit():
        return len(digits) >= 3 and f"cd{digits}" not in lookups.genes and f"cd{digits}" not in lookups.normalised
    return bool(_CLONE.fullmatch(part))
