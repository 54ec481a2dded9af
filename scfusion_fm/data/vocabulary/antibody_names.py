"""Spellings of antibody names: what may be changed in a name without changing what it means."""

import re

_GREEK = str.maketrans("αβγδεκλμζΑΒΓΔ", "abgdeklmzabgd")
_GREEK_WORDS = re.compile(r"(?<![a-z])(alpha|beta|gamma|delta|epsilon|kappa|lambda)(?![a-z])")
_ANTIBODY_PREFIX = re.compile(
    r"^((adt|cite|prot|protein|ab|antibody([_. -]capture)?|multipro|tot?al ?seq\W?[ _-]?[abcd]?)[_:. -]+"
    r"|(tot?al ?seq\W?[ _-]?)?[abcd]?0\d{3}[_:. -]+"  # barcode of the conjugate, such as C0034
    r"|anti[_. -]*(human|hu)([/_ -]+(mouse|rat|ms)){0,2}[_. -]+"
    r"|anti[_. -]*(mouse|rat)[/_ -]+human[_. -]+"
    r"|anti[_. -]+(?!mouse|rat|ms)"
    r"|(human|hu(ms)?(rt)?)([/_ -]+(mouse|rat|ms)){0,2}[_. -]+)",
    re.IGNORECASE,
)
_ANTIBODY_SUFFIX = re.compile(
    r"([_. -]+(tot?al ?seq\W?[ _-]?[abcd]?|total[abcd]|ts[abcd]|ab|antibody|adt|prot|protein|pabo|recombinant)"
    r"|[_. -]+human([/_ -]+(mouse|rat)){0,2}|[_. -]*\(((mouse|rat)[/, ]+)?human([/, ]+(mouse|rat))?\)"
    r"|[_. -]+(tot?al ?seq\W?[ _-]?)?[abcd]?0\d{3}"
    r"|[_. -]+[acgtn]{8,}"  # the barcode itself
    r"|[_. -]+\d{6}"  # catalogue number
    r"|[_. -]*[(\[](clone|cl\.?)[:. ]*[^)\]]*[)\]])$",
    re.IGNORECASE,
)
_HASHTAG = re.compile(
    r"hash[ _.-]?tag|^hto|^cmo\d|^lmo[ _.-]?\d|^(cell)?hash[ _.-]?\d|^multi[ _.-]?seq|sample[ _.-]?tag"
)
_ISOTYPE = re.compile(
    r"isotype|(^|[ _.-])iso[ _.-]?(ctrl|control|ig)"
    r"|ig[gam].*(ctrl|control|[ _.-]iso$)|(ctrl|control).*ig[gam]"
    r"|^(anti[ _.-])?((mouse|rat|rag|(armenian[ _.-]?)?hamster|goat|rabbit|m|r)[ _.-]*)?igg[ _.-]?[1-4][abc]?"
    r"([ _.,-]+(k|l|kappa|lambda|mouse|rat|hamster|fc|(mopc|rtk|mpc|htk|x)[ _.-]?\d+))*$"
    r"|^igg[ _.-](mouse|rat|(armenian[ _.-]?)?hamster)|^(mouse|rat|hamster)[ _.-]*ig[gma]"
    r"|^(mopc|rtk|htk|mpc)[ _.-]?\d+$"
)
# What names another molecule, or the molecule of another species, wherever it stands in the name.
_VARIANT = re.compile(
    r"(?<![a-z])(v\d+|ps\d+|var|variant|iso\d|isoform|phospho\w*|cleaved|active|activated|mouse|murine|rat|ms)(?![a-z])"
)
# Alleles and antigens that mice have and people do not; some look like a clone number or an alias of a human gene.
_MOUSE_ANTIGEN = re.compile(
    r"(?<![a-z0-9])(cd45[ ._]?[12]|cd90[ ._][12]|cd229[ ._]1|cd16[ ._]2|thy[ ._-]?1[ ._-][12]|nk[ ._-]?1[ ._-]1"
    r"|(?<!b.)ly[ ._-]?\d\w*(?<!ly9)(?<!ly75)|lyt[ ._-]?\d|lyb[ ._-]?\d|qa[ ._-]?[12]|(?<!b7.)h[ ._-]?2[a-z]*"
    r"|i[ ._-]a|i[ ._-]e|m(cd|ly)\d+|cd301[ab]|cd16[ ._/-]32|cd21[ ._/-](cd)?35|f4[ ._/-]80|ter[ ._-]?119\w*"
    r"|siglec[ ._-]?h|amm\d{4})(?![a-z0-9])"
)
# Clones against mouse antigens, as catalogues name them; those that bind both species are not here.
_MOUSE_CLONE = re.compile(
    r"(?<![a-z0-9])(gk1\.5|rm4[.-][45]|53[.-][67]\.[37]|5h10[.-]1|17a2|145[.-]2c11|500a2|6d5|1d3|30[.-]f11|mel[.-]14|2b8"
    r"|pk136|n418|bm8|rb6[.-]8c5|1a8|hk1\.4|pc61(\.5)?|3c7|37\.51|h1\.2f3|29f\.1a12|rmp1[.-](14|30)|j43|10f\.9g2|mih5|ty25"
    r"|uc10[.-]4[bf]\w+|c9b7w|rmt3[.-]23|1g9|dta[.-]1|ox[.-]86|17b5|a7r34|2\.4g2|29[.-]2l17|4b12|cxcr3[.-]173|l138d7"
    r"|53[.-]2\.1|30[.-]h12|h57[.-]597|gl[.-]?[13]|uc7[.-]13d5|rmm[.-]1|11[.-]26c(\.2a)?|7g6|b3b4|hmb1[.-]1|dx5|r1[.-]2"
    r"|yn1[./]1\.7\.4|mec13\.3|g8\.8|16[.-]10a1|3[./]23|m5[./]114(\.15\.2)?|29a1\.4|16a11|2e7|ter[.-]119|c068c2|sa203g11|p84"
    r")(?![a-z0-9])"
)
_MULTIMER = re.compile(r"(tetra|dextra|penta|multi|strepta)mer|pmhc")
_DYE = re.compile(
    r"(?<![a-z0-9])((bv|buv|bb|af|alexa\W?fluor\W?|qdot\W?|pacific\W?\w+|cf|dylight\W?)\d{3}"
    r"|fitc|percp|apc|pe|cy\d|streptavidin|biotin)(?![a-z0-9])"
)
_LIGAND = re.compile(r"[\s_.-]*\b(ligand)\b")
_RECEPTOR = re.compile(r"[\s_.-]*\b(receptor)\b")
ATOM = re.compile(r"[^\s_/,;:|()\[\]{}+.'*-]+")


def strip_antibody(name: str) -> str:
    """Cut prefixes (`ADT_`, `anti-human`) and suffixes (`_TotalSeqB`, `-A0034`, a barcode, `(clone ...)`)."""
    text = name.strip().translate(_GREEK)
    for pattern in (_ANTIBODY_PREFIX, _ANTIBODY_SUFFIX):
        while (shorter := pattern.sub("", text)) != text and shorter:
            text = shorter
    return text


def first_of_bd(name: str) -> str:
    """Give the name of `CD3:UCHT1|CD3E|AHS0231|pAbO`, as BD writes name, clone, gene and barcode."""
    return name.split("|")[0].split(":")[0] if name.count("|") > 1 else name


def normalise_antibody(name: str) -> str:
    """Give the form in which spellings of one antibody name agree.

    Lower case, Greek letters as a, b, g, ...; without prefix, suffix and separators. A separator between two
    digits stays, as '.': 'CD3-2' is clone 2 of CD3, not CD32.
    """
    return normalise_bare(strip_antibody(name))


def normalise_bare(text: str) -> str:
    """Give the normalised form of a name, or of a part of one, whose prefix and suffix are cut."""
    text = _GREEK_WORDS.sub(lambda found: found[1][0], text.lower())
    text = re.sub(r"(?<=\d)[\s._/,:;|()\[\]{}+'-]+(?=\d)", ".", text)
    return re.sub(r"[\s_/,:;|()\[\]{}+'-]+|(?<!\d)\.|\.(?!\d)", "", text)


def shorten_words(text: str) -> str:
    """Write 'ligand' as l and 'receptor' as r, as symbols do."""
    return _RECEPTOR.sub("r", _LIGAND.sub("l", text))


def is_isotype_control(text: str) -> bool:
    """Tell whether a stripped antibody name is that of an isotype control."""
    return bool(_ISOTYPE.search(text.lower()))


def is_hashtag(name: str) -> bool:
    """Tell whether a feature name is that of a sample tag (HTO, CMO, ...)."""
    return bool(_HASHTAG.search(name.strip().lower()) or _HASHTAG.search(strip_antibody(name).lower()))


def is_mouse_antigen(text: str) -> bool:
    """Tell whether a stripped name is that of an antigen or allele of mice (CD45.2, Ly-6C, H-2Kb, ...)."""
    return bool(_MOUSE_ANTIGEN.search(text.lower()))


def is_of_another_molecule(text: str) -> bool:
    """Tell whether a stripped name speaks of a variant, a mouse clone, a multimer or a dye."""
    patterns = (_VARIANT, _MOUSE_CLONE, _MULTIMER, _DYE)
    return any(pattern.search(text.lower()) for pattern in patterns)
