"""Spellings of gene names: what may be changed in a name without changing what it means."""

import re

ENSEMBL_ID = re.compile(r"(?P<gene_id>ENSG\d{11})(\.\d+)?(_PAR_Y)?")
MOUSE_ID = re.compile(r"ENSMUSG\d{11}")
# A human id inside a longer name, such as CCNL2_ENSG00000221978 or ENSG00000221978.5|CCNL2.
_JOINED_ID = re.compile(r"(?<![A-Za-z0-9])(ENSG\d{11})(?![A-Za-z0-9])", re.IGNORECASE)
_OTHER_ID = re.compile(r"ENS(?!G\d|T\d|E\d|P\d)[A-Z]+\d{6,}")
_SEPARATORS = r"[_\-.:|]+"
_HUMAN_PREFIX = re.compile(rf"(GRCh3[78]|hg19|hg38|human|homo[_ ]?sapiens){_SEPARATORS}(?=.)", re.IGNORECASE)
_MOUSE_PREFIX = re.compile(rf"(GRCm3[89]|mm9|mm10|mm39|mouse|mus[_ ]?musculus){_SEPARATORS}(?=.)", re.IGNORECASE)


def gene_spellings(name: str) -> list[str]:
    """Give the name without the prefix of its species or reference, and C1ORF112 as C1orf112."""
    bare = cut_human_prefix(name)
    return list(dict.fromkeys([bare, re.sub(r"^(C(?:\d+|X|Y))ORF(\d+)$", r"\1orf\2", bare)]))


def cut_human_prefix(name: str) -> str:
    """Cut `GRCh38_`, `hg19-`, `HUMAN_` and the like, as references of several species have them."""
    found = _HUMAN_PREFIX.match(name.strip())
    return name.strip()[found.end() :] if found else name.strip()


def find_joined_id(name: str) -> str:
    """Give the human Ensembl id that stands in a longer name; '' if there is none, several, or another species' one."""
    ids = {found.upper() for found in _JOINED_ID.findall(name.replace("_", " "))}
    return ids.pop() if len(ids) == 1 and not _OTHER_ID.search(name) else ""


def is_of_mouse(name: str) -> bool:
    """Tell whether a gene's name says that it is of mouse: by an id, or by the prefix of a reference."""
    return bool(MOUSE_ID.search(name) or _MOUSE_PREFIX.match(name.strip()))
