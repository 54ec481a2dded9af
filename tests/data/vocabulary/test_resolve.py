"""Names of genes and antibodies resolve to what they mean, or to nothing."""

import pandas as pd
import pytest

from scfusion_fm.data.vocabulary.names import cut_human_prefix, is_of_mouse
from scfusion_fm.data.vocabulary.reference import load_gene_table
from scfusion_fm.data.vocabulary.resolve import (
    _PREFIX_STARTS,
    _SHORTEST_ID,
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
        (f"CD4_{CD4}", CD4, "versioned_id"),
        (f"{CD4}_CD4", CD4, "versioned_id"),
        (f"{CD4}|CD4", CD4, "versioned_id"),
        (f"{CD4}.15_CD4", CD4, "versioned_id"),
        (f"GRCh38_{CD4}.15", CD4, "versioned_id"),
        ("ENSG00000182378.15_PLCXD1_PAR_Y", "ENSG00000182378", "versioned_id"),
        (f"{CD4}-{CD4}", CD4, "versioned_id"),
        (f"{CD4}_ENSG00000182378", "", "unknown"),
        (f"{CD4}_ENSMUSG00000023274", "", "unknown"),
        ("CD4_ENSG00000000000", "", "unknown"),
        ("HUMAN_CD4", CD4, "symbol"),
        ("hg19-CD4", CD4, "symbol"),
        ("GRCh38-HLA-A", "ENSG00000206503", "symbol"),
        ("human_HLA.A", "ENSG00000206503", "symbol"),
        ("MOUSE_CD4", "", "unknown"),
        ("mm10___CD4", "", "unknown"),
        ("GRCm38-CD4", "", "unknown"),
        ("RP11-34P13.7", "ENSG00000238009", "previous"),
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


@pytest.mark.parametrize(
    "style", ["{symbol}_{id}", "{id}_{symbol}", "{id}|{symbol}", "{id}.5_{symbol}", "{id}.12_PAR_Y", "GRCh38______{id}"]
)
def test_names_with_an_id_in_them_resolve_as_the_id(style):
    genes = load_gene_table().iloc[::40]
    names = [style.format(symbol=symbol, id=gene) for gene, symbol in zip(genes.index, genes.symbol, strict=True)]
    assert resolve_genes(names).gene_id.tolist() == genes.index.tolist()


@pytest.mark.parametrize("prefix", ["HUMAN_", "hg19-", "hg19_", "GRCh38_", "GRCh38-", "GRCh38______", "human."])
def test_names_with_the_prefix_of_their_species_resolve_as_without(prefix):
    symbols = [*load_gene_table().symbol.iloc[::40], "HLA-A", "MT-CO1", "HLA.A", "SEPT1", "C1ORF112"]
    plain, prefixed = (resolve_genes(names) for names in (symbols, [prefix + symbol for symbol in symbols]))
    assert prefixed.gene_id.tolist() == plain.gene_id.tolist()
    assert (plain["match"] != "unknown").mean() > 0.99


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


def test_nothing_can_be_cut_from_names_that_are_looked_up_as_they_are():
    symbols = load_gene_table().symbol
    plain = symbols[(symbols.str.len() < _SHORTEST_ID) & ~symbols.str[:2].str.lower().isin(_PREFIX_STARTS)]
    assert len(plain) > 10_000
    assert all(cut_human_prefix(name) == name and not is_of_mouse(name) for name in plain)
