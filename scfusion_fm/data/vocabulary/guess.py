"""Guess what names are that no look-up knows."""

import pandas as pd

from scfusion_fm.data.vocabulary.names import is_of_mouse
from scfusion_fm.data.vocabulary.resolve import resolve_genes


def guess_names(names: pd.Index) -> str:
    """Say what names that are no known genes look like, and what to do."""
    texts = names.astype(str)
    if pd.Series(texts).map(is_of_mouse).mean() > 0.5:
        return "They are genes of mouse by their prefix: mouse is not supported."
    if texts.str.fullmatch(r"\d+").mean() > 0.5:
        return "They look like row numbers or Entrez ids: give symbols or Ensembl ids."
    if texts.str.fullmatch(r"[A-Z][a-z0-9].*").mean() > 0.5:
        return "They look like mouse symbols (Cd3e, not CD3E): mouse is not supported."
    if (resolve_genes(list(texts.str.upper()))["match"] == "symbol").mean() > 0.5:
        return "They look like symbols in lower case: write them as they are (CD3E, C1orf112)."
    if texts.str.match(r"N[MR]_|ENST").mean() > 0.5:
        return "They look like transcripts: sum them per gene."
    if texts.str.contains(r"ENSG\d").mean() > 0.5:
        return "They look like human Ensembl ids that are no longer in use, or damaged: give symbols beside them."
    if texts.str.match(r"ENS[A-Z]+\d").mean() > 0.5:
        return "They look like genes of another species."
    return 'Give symbols or Ensembl ids as var_names or in var["gene_ids"].'
