"""The vocabulary of a model: of files or of the tables, in genome order, and consistent."""

import pytest
from make_files import ANTIBODIES, GENES, make_cells

from scfusion_fm.data.vocabulary.reference import load_antibody_table, load_gene_table
from scfusion_fm.data.vocabulary.resolve import (
    resolve_genes,
)
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary, build_vocabulary

CD4 = "ENSG00000010610"


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
