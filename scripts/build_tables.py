"""Build the gene and antibody tables of the package from tables of facts.

Usage: python scripts/build_tables.py SOURCE_DIR

SOURCE_DIR holds `human_genes_grch38.tsv.gz` and `antibody_to_gene.tsv`; the two results go to
`scfusion_fm/data/vocabulary/tables/`, whose README states sources, columns and rules. Same input, same bytes.
"""

import argparse
import gzip
import re
from pathlib import Path

import pandas as pd

TABLES_DIR = Path(__file__).resolve().parents[1] / "scfusion_fm" / "data" / "vocabulary" / "tables"
CHROMOSOMES = [*map(str, range(1, 23)), "X", "Y", "MT"]
GENE_COLUMNS = {
    "ensembl_id": "gene_id",
    "symbol": "symbol",
    "chrom": "chromosome",
    "start": "start",
    "biotype": "biotype",
    "status": "status",
    "previous_symbols": "previous_symbols",
    "alias_symbols": "aliases",
}

# Tags that no human protein answers to, and antibodies against mouse antigens.
NOT_A_HUMAN_PROTEIN = {
    "Allophycocyanin",
    "Anti-PE",
    "Biotin",
    "CD29 (mouse)",
    "FITC",
    "HA.11",
    "His Tag",
    "Ly.49C-Ly.49I-AB",
    "Phycoerythrin",
}
# Names that the source lacks: of Stephenson 2021 and Hao 2021, BioLegend's cocktails, and common words. Those of
# the second list mean this only with these very separators: there a number stands for a lost Greek letter.
MORE_NAMES = {
    "CD45R0": "PTPRC",
    "CEACAM1/5/6": "CEACAM1;CEACAM5;CEACAM6",
    "E-selectin": "SELE",
    "Igkappa": "IGKC",
    "Iglambda": "IGLC1;IGLC2;IGLC3",
    "L-selectin": "SELL",
    "P-selectin": "SELP",
    "PECAM": "PECAM1",
    "TCR-A--TCR-B": "TRAC;TRBC1;TRBC2",
    "TCR-G--TCR-D": "TRDC;TRGC1;TRGC2",
}
AS_WRITTEN = {"Fc?RI?": "FCER1A", "TCR-1": "TRDC;TRGC1;TRGC2", "TCR-2": "TRAC;TRBC1;TRBC2"}
# Names whose genes the source leaves out, or files under a gene of another nomenclature.
GENES_OF_NAME = {
    "CD209/CD299 (DC-SIGN/L-SIGN)": "CD209;CLEC4M",
    "MICA/MICB": "MICA;MICB",
    "TCR Vb13": "TRBV6-5",
    "TCR Vbeta13.1": "TRBV6-5",
    "pan-HLA class I": "HLA-A;HLA-B;HLA-C",
}
# A chain that reaches the cell surface in its complex only is that complex.
COMPLEX_OF_GENES = {
    "CD3E": "CD3E;CD3D;CD3G",
    "FCGR2A": "FCGR2A;FCGR2B;FCGR2C",
    "TRBC1;TRBC2": "TRAC;TRBC1;TRBC2",
    "TRGC1;TRGC2": "TRDC;TRGC1;TRGC2",
}
# Isoforms and epitopes of one gene that answer to different cells: (genes, pattern of the name, protein).
EPITOPES = [
    ("PTPRC", r"^CD45 ?RA", "CD45RA"),
    ("PTPRC", r"^CD45 ?R[O0]", "CD45RO"),
    ("PTPRC", r"^CD45 ?RB", "CD45RB"),
    ("PTPRC", r"B220", "CD45R"),
    ("SELPLG", r"^CLA$", "CLA"),
    ("PODXL", r"^TRA-1-60-R$", "TRA-1-60-R"),
    ("PODXL", r"^TRA-1-81$", "TRA-1-81"),
]
# The protein's name where no CD number gives one.
PROTEIN_OF_GENES = {
    "ADGRG1": "GPR56",
    "ANXA5": "Annexin V",
    "B2M": "B2M",
    "C3AR1": "C3aR",
    "C5AR2": "C5L2",
    "CD8A": "CD8a",
    "CD209;CLEC4M": "CD209-CD299",
    "CD8B": "CD8b",
    "CDH11": "Cadherin 11",
    "CRLF2": "TSLPR",
    "DRD4": "DRD4",
    "FCER1A": "FceRIa",
    "FCGR3B": "CD16b",
    "FCRL3": "CD307c",
    "FLT4": "VEGFR3",
    "FOLH1": "PSMA",
    "FOLR2": "FOLR2",
    "GYPA": "CD235a",
    "GYPA;GYPB": "CD235ab",
    "HLA-A": "HLA-A2",
    "HLA-A;HLA-B;HLA-C": "HLA-ABC",
    "HLA-DQA1;HLA-DQB1": "HLA-DQ",
    "HLA-DRA;HLA-DRB1": "HLA-DR",
    "HLA-DRA;HLA-DRB1;HLA-DPA1;HLA-DPB1;HLA-DQA1;HLA-DQB1": "HLA-DR-DP-DQ",
    "IGHG1;IGHG2;IGHG3;IGHG4": "IgG",
    "IGKC": "Ig kappa",
    "IGLC1;IGLC2;IGLC3": "Ig lambda",
    "IL2RG": "CD132",
    "ITGA5": "CD49e",
    "ITGAL;ITGB2": "CD11a-CD18",
    "ITGB7": "Integrin b7",
    "LGALS3": "Galectin-3",
    "LGALS9": "Galectin-9",
    "LGR5": "LGR5",
    "LRRC32": "GARP",
    "LTBR": "LTBR",
    "MAPK3": "ERK1",
    "MAPT": "Tau Phospho (Thr181)",
    "MERTK": "MERTK",
    "MET": "c-Met",
    "MICA;MICB": "MICA-MICB",
    "MUC1": "MUC1",
    "NOTCH1": "Notch1",
    "NOTCH2": "Notch2",
    "NOTCH3": "Notch3",
    "OLR1": "LOX-1",
    "PDPN": "Podoplanin",
    "PODXL": "Podocalyxin",
    "RELA": "p65",
    "RORC": "RORg",
    "SIGLEC10": "Siglec-10",
    "SIGLEC8": "Siglec-8",
    "TACSTD2": "TROP2",
    "TGFB1": "LAP",
    "TGFBR2": "TGFBR2",
    "TIGIT": "TIGIT",
    "TIMD4": "TIM-4",
    "TNFRSF25": "DR3",
    "TPSAB1": "Tryptase",
    "TRAC;TRBC1;TRBC2": "TCRab",
    "TRAV1-2": "TCRVa7.2",
    "TRAV10": "TCRVa24",
    "TRAV10;TRAJ18": "TCRVa24-Ja18",
    "TRBV6-5": "TCRVb13.1",
    "TRDC;TRGC1;TRGC2": "TCRgd",
    "TRDV2": "TCRVd2",
    "TRGV9": "TCRVg9",
    "VTCN1": "B7-H4",
}
# Complexes that the symbol of each of their genes means, and those that only the first gene's symbol means.
COMPLEX_OF_ANY_SYMBOL = {"CD3", "CD158f", "HLA-DQ", "HLA-DR", "Ig lambda", "IgA", "TCRab", "TCRgd"}
COMPLEX_OF_FIRST_SYMBOL = {"CD16", "CD32", "CD158", "CD158b"}
# HLA-A2 is one allele of HLA-A, phosphorylated tau one state of MAPT.
NOT_OF_ITS_SYMBOL = {"HLA-A2", "Tau Phospho (Thr181)"}
# Genes with several proteins: the one that the bare symbol means.
PROTEIN_OF_SYMBOL = {"PTPRC": "CD45", "SELPLG": "CD162", "PODXL": "Podocalyxin"}


def build_gene_table(source: pd.DataFrame) -> pd.DataFrame:
    """Select the columns of the gene table and sort it by chromosome, start and id."""
    genes = source[list(GENE_COLUMNS)].rename(columns=GENE_COLUMNS)
    order = pd.DataFrame(
        {
            "chromosome": genes.chromosome.map(CHROMOSOMES.index),
            "start": genes.start.astype(int),
            "gene_id": genes.gene_id,
        }
    )
    return genes.loc[order.sort_values(["chromosome", "start", "gene_id"]).index]


def assign_genes(name: str, gene_symbols: str, complexes: dict[frozenset[str], str]) -> str:
    """Give the ordered genes of the protein that an antibody name stands for."""
    genes = GENES_OF_NAME.get(name, gene_symbols)
    genes = COMPLEX_OF_GENES.get(genes, genes)
    return complexes.setdefault(frozenset(genes.split(";")), genes)


def choose_protein_name(genes: str, names: list[str]) -> str:
    """Name a protein: our choice, else its shortest CD name, else its shortest name."""
    if genes in PROTEIN_OF_GENES:
        return PROTEIN_OF_GENES[genes]
    clean = {re.sub(r"-AB$|_TotalSeqB$| ?\(.*\)$", "", name) for name in names}
    cd_names = {name for name in clean if re.fullmatch(r"CD\d+[a-zA-Z]*\d?", name)}
    by_style = sorted(cd_names, key=lambda name: (not re.fullmatch(r"CD\d+[a-z]*\d?", name), len(name), name))
    return (by_style or sorted(clean, key=lambda name: (name.islower(), len(name), name)))[0]


def build_antibody_table(source: pd.DataFrame, gene_ids: dict[str, str]) -> pd.DataFrame:
    """Map every antibody name, and the coding genes' symbols, to one protein each."""
    kept = source[~source.antibody.isin(NOT_A_HUMAN_PROTEIN)]
    more = pd.DataFrame((MORE_NAMES | AS_WRITTEN).items(), columns=["antibody", "gene_symbol"])
    kept = pd.concat([kept, more.assign(is_isotype_control="false")], ignore_index=True)
    complexes: dict[frozenset[str], str] = {}
    kept["kind"] = kept.antibody.isin(AS_WRITTEN).map({True: "as_written", False: "name"})
    kept["gene_symbols"] = [
        "" if is_control else assign_genes(name, genes, complexes)
        for name, genes, is_control in zip(
            kept.antibody, kept.gene_symbol, kept.is_isotype_control == "true", strict=True
        )
    ]
    names_of_genes = kept.groupby("gene_symbols").antibody.apply(list).to_dict()
    kept["protein"] = [
        name_protein(name, genes, names_of_genes) for name, genes in zip(kept.antibody, kept.gene_symbols, strict=True)
    ]
    table = pd.concat([kept, build_symbol_rows(kept)], ignore_index=True)
    table["gene_ids"] = [";".join(gene_ids[gene] for gene in genes.split(";") if gene) for genes in table.gene_symbols]
    check_antibody_table(table)
    columns = ["antibody", "kind", "protein", "gene_symbols", "gene_ids", "is_isotype_control"]
    return table[columns].sort_values(["kind", "antibody"], ascending=[False, True])


def name_protein(name: str, genes: str, names_of_genes: dict[str, list[str]]) -> str:
    """Give the protein of an antibody name; '' for an isotype control."""
    if not genes:
        return ""
    epitopes = [
        protein for gene, pattern, protein in EPITOPES if gene == genes and re.search(pattern, name, re.IGNORECASE)
    ]
    others = [protein for gene, _, protein in EPITOPES if gene == genes]
    plain = [
        other
        for other in names_of_genes[genes]
        if not any(gene == genes and re.search(pattern, other, re.IGNORECASE) for gene, pattern, _ in EPITOPES)
    ]
    protein = epitopes[0] if epitopes else choose_protein_name(genes, plain)
    assert epitopes or protein not in others, f"{name}: the plain name of {genes} is that of an epitope"
    return protein


def build_symbol_rows(names: pd.DataFrame) -> pd.DataFrame:
    """Give the symbols of coding genes their protein where there is only one answer."""
    genes_of_protein = dict(zip(names.protein, names.gene_symbols, strict=True))
    protein_of_symbol = dict(PROTEIN_OF_SYMBOL)
    for protein, joined in sorted(genes_of_protein.items()):
        genes = joined.split(";")
        if len(genes) == 1 and protein and protein not in NOT_OF_ITS_SYMBOL:
            protein_of_symbol.setdefault(genes[0], protein)
    for protein in sorted(COMPLEX_OF_ANY_SYMBOL | COMPLEX_OF_FIRST_SYMBOL):
        genes = genes_of_protein[protein].split(";")
        for gene in genes if protein in COMPLEX_OF_ANY_SYMBOL else genes[:1]:
            protein_of_symbol.setdefault(gene, protein)
    rows = [
        (symbol, "gene_symbol", protein, genes_of_protein[protein], "false")
        for symbol, protein in sorted(protein_of_symbol.items())
    ]
    return pd.DataFrame(rows, columns=["antibody", "kind", "protein", "gene_symbols", "is_isotype_control"])


def check_antibody_table(table: pd.DataFrame) -> None:
    """Assert that a protein has one set of genes, and that names are unique."""
    proteins = table[table.protein != ""]
    assert proteins.groupby("protein").gene_symbols.nunique().max() == 1, "two gene sets share a protein name"
    assert not table.duplicated(["antibody", "kind"]).any(), "an antibody name repeats"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write tab-separated text, compressed without a time stamp where the name ends on .gz."""
    content = table.to_csv(sep="\t", index=False, lineterminator="\n").encode()
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0) if path.suffix == ".gz" else content)
    print(f"{path.name}: {len(table):,} rows, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source_dir", type=Path)
    source_dir = parser.parse_args().source_dir
    genes, antibodies = (
        pd.read_csv(source_dir / name, sep="\t", dtype=str, keep_default_na=False)
        for name in ("human_genes_grch38.tsv.gz", "antibody_to_gene.tsv")
    )
    genes = build_gene_table(genes)
    live = genes[genes.status != "retired"].drop_duplicates("symbol")
    gene_ids = dict(zip(live.symbol, live.gene_id, strict=True))
    for symbols, ids in zip(antibodies.gene_symbol, antibodies.ensembl_id, strict=True):
        gene_ids |= dict(zip(symbols.split(";"), ids.split(";"), strict=True))
    write_table(genes, TABLES_DIR / "human_genes.tsv.gz")
    write_table(build_antibody_table(antibodies, gene_ids), TABLES_DIR / "human_antibodies.tsv")


if __name__ == "__main__":
    main()
