"""The tables of human genes and antibodies that ship with the package."""

import gzip
from functools import lru_cache
from importlib.resources import files

import pandas as pd


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
        files("scfusion_fm.data.vocabulary").joinpath("tables/human_genes.tsv.gz").open("rb") as raw,
        gzip.open(raw) as file,
    ):
        table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, index_col="gene_id")
    return table.astype({"start": "int64"})


@lru_cache(maxsize=1)
def load_antibody_table() -> pd.DataFrame:
    """Load the names of antibodies with the protein and the genes that each stands for; cached."""
    with files("scfusion_fm.data.vocabulary").joinpath("tables/human_antibodies.tsv").open("rb") as file:
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
