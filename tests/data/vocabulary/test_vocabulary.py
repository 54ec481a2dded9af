import gzip
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from make_files import ANTIBODIES, GENES, make_cells

from scfusion_fm.data.vocabulary.names import antibody_spellings, normalise_antibody
from scfusion_fm.data.vocabulary.reference import load_antibody_table, load_gene_table
from scfusion_fm.data.vocabulary.resolve import (
    resolve_antibodies,
    resolve_antibody_features,
    resolve_gene_features,
    resolve_genes,
)
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary, build_vocabulary

CHROMOSOMES = [*map(str, range(1, 23)), "X", "Y", "MT"]
CD4 = "ENSG00000010610"
TABLES = files("scfusion_fm.data.vocabulary") / "tables"


def test_gene_table_is_in_genome_order():
    table = load_gene_table()
    order = list(zip(table.chromosome.map(CHROMOSOMES.index), table.start, table.index, strict=True))
    assert order == sorted(order)
    assert table.index.is_unique
    assert table.index.str.fullmatch(r"ENSG\d{11}").all()
    assert (table.chromosome.drop_duplicates() == CHROMOSOMES).all()


def test_tables_are_small_and_their_genes_exist():
    assert sum(Path(str(TABLES / name)).stat().st_size for name in ("human_genes.tsv.gz", "human_antibodies.tsv")) < 2e6
    antibodies = load_antibody_table()
    ids = {gene for genes in antibodies.gene_ids for gene in genes.split(";") if gene}
    assert ids <= set(load_gene_table().index)
    proteins = antibodies[antibodies.protein != ""]
    assert (proteins.groupby("protein").gene_ids.nunique() == 1).all()
    assert (proteins.gene_ids != "").all()


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


@pytest.mark.parametrize(
    ("name", "protein", "match"),
    [
        ("CD3", "CD3", "table"),
        ("cd3.2", "CD3", "table"),
        ("CD3e", "CD3", "table"),
        ("CD3-2", "CD3", "normalised"),
        ("CD32", "CD32", "table"),
        ("CD4-1", "CD4", "normalised"),
        ("CD41", "CD41", "table"),
        ("cd45ra", "CD45RA", "table"),
        ("CD45RA_TotalSeqC", "CD45RA", "normalised"),
        ("CD45_RO", "CD45RO", "normalised"),
        ("cd45.2", "CD45", "table"),
        ("B220 (CD45R)", "CD45R", "table"),
        ("CLA", "CLA", "table"),
        ("PD-1", "CD279", "table"),
        ("ADT_CD19", "CD19", "normalised"),
        ("anti-human CD8a", "CD8a", "normalised"),
        ("anti-human/mouse integrin β7", "Integrin b7", "normalised"),
        ("TCR\N{GREEK SMALL LETTER ALPHA}/β", "TCRab", "normalised"),
        ("TCRb", "TCRab", "table"),
        ("HLA.DR-AB", "HLA-DR", "table"),
        ("CD8a-A0080", "CD8a", "normalised"),
        ("CD4 (clone RPA-T4)", "CD4", "normalised"),
        ("Hu.CD4-RPA.T4", "CD4", "normalised"),
        ("CD3_UCHT1_TotalSeqB", "CD3", "normalised"),
        ("CD19:SJ25C1|CD19|AHS0030|pAbO", "CD19", "normalised"),
        ("PTPRC", "CD45", "gene_symbol"),
        ("CD3D", "CD3", "gene_symbol"),
        ("HLA-DRA", "HLA-DR", "gene_symbol"),
        ("HLA-A", "", "unknown"),
        ("CD16-32", "", "unknown"),
        ("CD21-CD35(CR2-CR1)", "", "unknown"),
        ("CD29 (mouse)", "", "unknown"),
        ("CD44 (v6)", "", "unknown"),
        ("CD44_v6", "", "unknown"),
        ("CD45-RABC", "", "unknown"),
        ("CD66_d", "", "unknown"),
        ("anti-mouse CD4", "", "unknown"),
        ("FITC", "", "unknown"),
        ("", "", "unknown"),
        ("IgG1", "", "isotype"),
        ("MouseIgG2bkIsotype_TotalSeqB", "", "isotype"),
        ("Rat IgG2c, κ isotype Ctrl", "", "isotype"),
        ("IgG-1", "", "isotype"),
        ("IgG", "IgG", "table"),
        ("Hashtag1", "", "hashtag"),
        ("HTO_A", "", "hashtag"),
        ("anti-human Hashtag 3", "", "hashtag"),
        ("CMO301", "", "hashtag"),
    ],
)
def test_antibody_names_resolve(name, protein, match):
    assert resolve_antibodies([name]).iloc[0].tolist() == [protein, match]


def test_every_protein_resolves_to_itself_and_controls_to_none():
    table = load_antibody_table()
    proteins = sorted(set(table.protein) - {""})
    assert resolve_antibodies(proteins).protein.tolist() == proteins
    controls = table.antibody[table.is_isotype_control == "true"]
    assert (resolve_antibodies(list(controls))["match"] == "isotype").all()


@pytest.mark.parametrize(
    "change", [str.lower, str.upper, "ADT_{}".format, "{}_TotalSeqB".format, "{} (clone X1)".format]
)
def test_spellings_of_a_known_name_never_mean_another_protein(change):
    table = load_antibody_table()
    names = table[(table.kind == "name") & (table.protein != "")]
    found = resolve_antibodies([change(name) for name in names.antibody]).protein.to_numpy()
    assert not np.any((found != "") & (found != names.protein.to_numpy()))
    assert np.mean(found != "") > 0.95


def test_separators_between_digits_stay():
    assert normalise_antibody("CD3-2") == "cd3.2" != normalise_antibody("CD32")
    assert antibody_spellings("CD4-1") == [["cd4.1"], ["cd4"]]


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


def test_vocabulary_from_files_holds_what_resolves_in_genome_order():
    one = make_cells(genes=["CD8A", "CD4", "nothing"], antibodies=["CD4", "IgG1"])
    two = make_cells(genes=["MT-CO1", CD4], antibodies=["CD45RO", "CD45RA"])
    vocabulary = build_vocabulary([one, two])
    assert vocabulary.gene_symbols == ("CD8A", "CD4", "MT-CO1")
    assert vocabulary.gene_chromosomes == ("2", "12", "MT")
    assert vocabulary.protein_names == ("CD45RA", "CD45RO", "CD4")
    assert vocabulary.protein_gene_ids == (*resolve_genes(["PTPRC", "PTPRC"]).gene_id, CD4)
    assert (vocabulary.num_genes, vocabulary.num_proteins) == (3, 3)
    assert build_vocabulary([two, one]) == vocabulary


def test_whole_vocabulary_needs_no_file():
    vocabulary = build_vocabulary(None, genes="protein_coding", proteins="all")
    assert 20_000 < vocabulary.num_genes < 21_000
    biotypes = load_gene_table().loc[list(vocabulary.gene_ids), "biotype"]
    assert set(biotypes.str.replace("[A-Z]_gene", "", regex=True)) == {"protein_coding", "IG_", "TR_"}
    assert vocabulary.num_proteins > 300
    assert set(vocabulary.protein_names) == set(load_antibody_table().protein) - {""}


def test_vocabulary_comes_back_from_its_dict_with_the_same_fingerprint():
    vocabulary = build_vocabulary([make_cells(genes=GENES, antibodies=ANTIBODIES)])
    again = Vocabulary(**vocabulary.to_dict())
    assert again == vocabulary
    assert again.fingerprint() == vocabulary.fingerprint()
    fewer = {name: values[:-1] for name, values in vocabulary.to_dict().items()}
    assert Vocabulary(**fewer).fingerprint() != vocabulary.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gene_symbols": ["A"]}, r"`gene_symbols` must be as long as `gene_ids` \(3\), got 1"),
        ({"gene_chromosomes": ["1"]}, "`gene_chromosomes` must be as long as `gene_ids`"),
        ({"protein_gene_ids": []}, r"`protein_gene_ids` must be as long as `protein_names` \(1\), got 0"),
        ({"gene_ids": ["a", "b", "a"]}, "`gene_ids` must be unique, got 'a' twice"),
        ({"gene_ids": ["a", "b", ""]}, "`gene_ids` must hold non-empty text, got ''"),
        (
            {"gene_chromosomes": ["1", "2", "1"]},
            "`gene_chromosomes` must keep the genes of a chromosome together",
        ),
    ],
)
def test_inconsistent_vocabulary_is_refused(change, message):
    good = {
        "gene_ids": ["a", "b", "c"],
        "gene_symbols": ["A", "B", "C"],
        "gene_chromosomes": ["1", "1", "2"],
        "protein_names": ["P"],
        "protein_gene_ids": ["a"],
    }
    Vocabulary(**good)
    with pytest.raises(ValueError, match=message):
        Vocabulary(**good | change)


def test_vocabulary_that_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match=r"`genes` must be one of .*, got 'everything'"):
        build_vocabulary(None, genes="everything", proteins="all")
    with pytest.raises(ValueError, match="`proteins` must be one of"):
        build_vocabulary(None, genes="protein_coding", proteins="none")
    with pytest.raises(ValueError, match="`cells` must hold at least one file"):
        build_vocabulary([], genes="protein_coding")
    with pytest.raises(ValueError, match="got 1 files where no name resolves"):
        build_vocabulary([make_cells(genes=["x", "y"])])


def test_tables_are_rebuilt_byte_for_byte(shared_data: Path, tmp_path: Path):
    script = Path(__file__).parents[3] / "scripts" / "build_tables.py"
    copy = tmp_path / "scripts" / script.name
    copy.parent.mkdir()
    tables = tmp_path / "scfusion_fm" / "data" / "vocabulary" / "tables"
    tables.mkdir(parents=True)
    copy.write_text(script.read_text())
    subprocess.run([sys.executable, copy, shared_data], check=True, capture_output=True)
    for name in ("human_genes.tsv.gz", "human_antibodies.tsv"):
        built = (tables / name).read_bytes()
        shipped = (TABLES / name).read_bytes()
        unpack = gzip.decompress if name.endswith(".gz") else bytes
        assert unpack(built) == unpack(shipped)
