"""Spellings of gene names: what may be changed in a name without changing what it means."""

import re

ENSEMBL_ID = re.compile(r"(?P<gene_id>ENSG\d{11})(\.\d+)?(_PAR_Y)?")
REFERENCE_PREFIX = re.compile(r"(GRCh38|GRCh37|hg38|hg19)_+")
MOUSE_ID = re.compile(r"ENSMUSG\d{11}")


def gene_spellings(name: str) -> list[str]:
    """Give the name without the prefix of its reference, and C1ORF112 as C1orf112."""
    bare = REFERENCE_PREFIX.sub("", name.strip(), count=1) if REFERENCE_PREFIX.match(name.strip()) else name.strip()
    return list(dict.fromkeys([bare, re.sub(r"^(C(?:\d+|X|Y))ORF(\d+)$", r"\1orf\2", bare)]))
