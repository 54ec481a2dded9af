"""Spellings of gene and antibody names: what may be changed in a name without changing what it means."""

import re

ENSEMBL_ID = re.compile(r"(?P<gene_id>ENSG\d{11})(\.\d+)?(_PAR_Y)?")
REFERENCE_PREFIX = re.compile(r"(GRCh38|GRCh37|hg38|hg19)_+")
MOUSE_ID = re.compile(r"ENSMUSG\d{11}")

_GREEK = str.maketrans("αβγδεκλμ", "abgdeklm")
_GREEK_WORDS = re.compile(r"(?<![a-z])(alpha|beta|gamma|delta|epsilon|kappa|lambda)(?![a-z])")
_ANTIBODY_PREFIX = re.compile(
    r"^((adt|prot|protein|ab|tot?al ?seq[ _-]?[abcd]?)[_:. -]+"
    r"|anti[_. -]*(human|hu)([/_ -]+(mouse|rat|ms)){0,2}[_. -]+"
    r"|anti[_. -]*(mouse|rat)[/_ -]+human[_. -]+"
    r"|anti[_. -]+(?!mouse|rat|ms)"
    r"|(human|hums|hu)[_. -]+)"
)
_ANTIBODY_SUFFIX = re.compile(
    r"([_. -]+(total ?seq[ _-]?[abcd]?|totala|totalb|totalc|ab|adt|prot|protein|pabo|recombinant|human)"
    r"|[_. -]+[abcd]?\d{4}"  # DNA barcode of the conjugate, such as A0034
    r"|[_. -]*\((clone|cl\.?)[:. ]*[^)]*\))$"
)
_CLONE_NUMBER = re.compile(r"(cd\d.*?)[._-]\d")
_HASHTAG = re.compile(r"hash[ _.-]?tag|^hto|^cmo\d|^lmo[ _.-]?\d|^hash[ _.-]?\d|^multi[ _.-]?seq|sample[ _.-]?tag")
_ISOTYPE = re.compile(
    r"isotype|(^|[ _.-])iso[ _.-]?(ctrl|control|ig)"
    r"|ig[gam].*(ctrl|control|[ _.-]iso$)|(ctrl|control).*ig[gam]"
    r"|^(anti[ _.-])?((mouse|rat|(armenian[ _.-]?)?hamster|goat|rabbit|m|r)[ _.-]*)?igg[ _.-]?[1-4][abc]?"
    r"([ _.,-]+(k|l|kappa|lambda|mouse|rat|hamster|fc))*$"
    r"|^igg[ _.-](mouse|rat|(armenian[ _.-]?)?hamster)|^(mouse|rat|hamster)[ _.-]*ig[gma]"
)
# What names another molecule, or the molecule of another species, wherever it stands in the name.
_VARIANT = re.compile(
    r"(?<![a-z])(v\d+|var|variant|iso\d|isoform|phospho|cleaved|active|activated|mouse|murine|rat|ms)(?![a-z])"
)


def gene_spellings(name: str) -> list[str]:
    """Give the name without the prefix of its reference, and C1ORF112 as C1orf112."""
    bare = REFERENCE_PREFIX.sub("", name.strip(), count=1) if REFERENCE_PREFIX.match(name.strip()) else name.strip()
    return list(dict.fromkeys([bare, re.sub(r"^(C(?:\d+|X|Y))ORF(\d+)$", r"\1orf\2", bare)]))


def normalise_antibody(name: str) -> str:
    """Give the form in which spellings of one antibody name agree.

    Lower case, Greek letters as a, b, g, ...; without prefix (`ADT_`, `anti-human`), suffix (`_TotalSeqB`,
    `-AB`, `_A0034`, `(clone ...)`) and separators. A separator between two digits stays, as '.': 'CD3-2' is
    clone 2 of CD3, not CD32.
    """
    text = _GREEK_WORDS.sub(lambda found: found[1][0], _strip_antibody(name))
    text = re.sub(r"(?<=\d)[\s._/,:-]+(?=\d)", ".", text)
    return re.sub(r"[\s_/,:|()+'-]+|(?<!\d)\.|\.(?!\d)", "", text)


def antibody_spellings(name: str) -> list[list[str]]:
    """Give groups of normalised spellings, to be tried one group after the other.

    First the whole name; then without its clone number (`CD4-1`, `cd3.2`); then its parts: `CD279 (PD-1)`,
    `CD194_CCR4`, `CD3_UCHT1`, BD's `CD3:UCHT1|CD3E|...`. Parts of one group must not contradict one another.
    A name that speaks of a variant or another species (`CD44 (v6)`, `CD29 (mouse)`) is not taken apart.
    """
    text = _strip_antibody(name)
    groups = [[normalise_antibody(name)]]
    if _VARIANT.search(text):
        return groups
    if found := _CLONE_NUMBER.fullmatch(text):
        groups.append([normalise_antibody(found[1])])
    for parts in (_split_parentheses(text), _split_separators(text)):
        if parts:
            groups.append([normalise_antibody(part) for part in parts])
    return groups


def is_isotype_control(name: str) -> bool:
    """Tell whether an antibody name is that of an isotype control."""
    return bool(_ISOTYPE.search(_strip_antibody(name)))


def is_hashtag(name: str) -> bool:
    """Tell whether a feature name is that of a sample tag (HTO, CMO, ...)."""
    return bool(_HASHTAG.search(name.strip().lower()) or _HASHTAG.search(_strip_antibody(name)))


def _strip_antibody(name: str) -> str:
    text = name.strip().lower().translate(_GREEK)
    for pattern in (_ANTIBODY_PREFIX, _ANTIBODY_SUFFIX):
        while (shorter := pattern.sub("", text)) != text and shorter:
            text = shorter
    return text


def _split_parentheses(text: str) -> list[str]:
    found = re.fullmatch(r"(?P<outer>[^()]+)\((?P<inner>[^()]+)\)", text)
    return [found["outer"], *re.split(r"[,;/]", found["inner"])] if found else []


def _split_separators(text: str) -> list[str]:
    if "|" in text:
        return text.split("|")[0].split(":")[:1]
    parts = re.split(r"[_:-]", text)
    # A second name or a clone (CCR4, UCHT1) has a digit; RABC in CD45-RABC is a part of the name.
    is_list = len(parts) > 1 and re.match(r"cd\d", parts[0])
    return parts if is_list and all(re.fullmatch(r"(?=.*\d).{3,}", part) for part in parts) else []
