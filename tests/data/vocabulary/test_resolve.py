"""Names of genes and antibodies resolve to what they mean, or to nothing."""

import pandas as pd
import pytest

from scfusion_fm.data.vocabulary.reference import load_gene_table
from scfusion_fm.data.vocabulary.resolve import (
    resolve_antibody_features,
    resolve_gene_features,
    resolve_genes,
)

CD4 = "ENSG00000010610"


@pytest.mark.parametrize(
    ("name", "gene_id", "match"),
    [
        (CD4, CD4, "id"),
        (f"{CD4}.15", CD4, "versioned_id"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378", "versioned_id"),
        ("CD4", CD4, "symbol"),
        ("GRCh38_CD4", CD4, "symbol"),
        (f"GRCh38______{CD4}", CD4, "id"),
        ("hg19_CD4", CD4, "symbol"),
        (" CD4 ", CD4, "symbol"),
        ("C1ORF112", "ENSG00000000460", "symbol"),  # the symbol is C1orf112
        ("FAM46C", "ENSG00000183508", "previous"),
        ("MATR3", "ENSG00000015479", "symbol"),  # two genes carry it: the older id
        ("SDHD", "ENSG00000204370", "symbol"),
        ("HLA-A", "ENSG00000206503", "symbol"),
        ("HLA.A", "ENSG00000206503", "symbol"),  # as R writes column names
        ("MT.CO1", "ENSG00000198804", "symbol"),
        ("CD4.1", "", "unknown"),
        ("Cd4", "", "unknown"),
        ("cd4", "", "unknown"),
        ("mm10_Cd4", "", "unknown"),
        ("ENSMUSG00000023274", "", "unknown"),
        ("ENSG00000000000", "", "unknown"),
        ("CD4-1", "", "unknown"),
        ("1-Mar", "", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_gene_names_resolve(name, gene_id, match):
    assert resolve_genes([name]).iloc[0].tolist() == [gene_id, match]


def test_a_number_that_made_names_unique_is_cut_only_from_shared_symbols():
    table = load_gene_table()
    shared = set(table.symbol[table.symbol.duplicated()])
    symbol = next(s for s in sorted(shared) if resolve_genes([f"{s}-1"])["match"].item() == "unknown")
    assert resolve_genes([symbol, f"{symbol}-1"])["match"].tolist() == ["symbol", "symbol"]
    assert resolve_genes(["CD4", "CD4-1"])["match"].tolist() == ["symbol", "unknown"]


def test_an_id_wins_over_a_symbol_and_a_symbol_over_older_names():
    table = load_gene_table()
    older = {n for c in ("previous_symbols", "aliases") for names in table[c] for n in names.split(";") if n}
    live = table[table.status != "retired"]
    contested = sorted(older & set(live.symbol))[:200]
    assert (resolve_genes(contested)["match"] == "symbol").all()
    assert (resolve_genes(list(table.index[:200]))["match"] == "id").all()


def test_id_column_goes_first_and_the_name_fills_its_gaps():
    var = pd.DataFrame({"gene_ids": [CD4, "", "AC1", "nan"]}, index=["CD8A", "CD3E", "MS4A1", "nothing"])
    features = resolve_gene_features(var)
    assert features.gene_id.tolist() == [CD4, *resolve_genes(["CD3E", "MS4A1"]).gene_id, ""]
    assert features["match"].tolist() == ["id", "symbol", "symbol", "unknown"]
    assert features.index.tolist() == var.index.tolist()


def test_names_in_columns_are_used_where_the_index_says_nothing():
    genes = pd.DataFrame({"feature_name": ["CD4"]}, index=["0"])
    assert resolve_gene_features(genes).gene_id.tolist() == [CD4]
    antibodies = pd.DataFrame({"antibody": ["CD4", "CD8"]}, index=["0", "CD19"])
    assert resolve_antibody_features(antibodies).protein.tolist() == ["CD4", "CD19"]
