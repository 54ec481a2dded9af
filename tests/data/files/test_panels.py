"""Absent is not zero: batches that lack features in a file joined with zeros are found, and hidden on demand."""

import warnings

import numpy as np
import pandas as pd
import pytest
from make_files import make_cells
from missing_values import WITHOUT_VALUE

from scfusion_fm.data.files.align import align_cells, open_aligned
from scfusion_fm.data.files.panels import find_group_columns, read_groups
from scfusion_fm.data.files.stack import StackedCells, stack_aligned
from scfusion_fm.data.vocabulary.reference import load_gene_table
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

PROTEINS = ["CD3", "CD4", "CD56", "CD14", "CD19", "HLA-DR"]
TABLE = load_gene_table()
GENES = list(TABLE.index[(TABLE.status == "current") & (TABLE.biotype == "protein_coding")][:60])
VOCABULARY = Vocabulary(GENES, list(TABLE.symbol[GENES]), list(TABLE.chromosome[GENES]), PROTEINS, GENES[:6])
SIZE = 25  # cells of a batch


def make_joined(lost_genes=30, lost_proteins=2, size=SIZE):
    """Give cells of two batches, of which the second lacks the last genes and proteins."""
    rng = np.random.default_rng(0)
    rna, adt = rng.poisson(3, (2 * size, len(GENES))) + 1, rng.poisson(9, (2 * size, len(PROTEINS))) + 1
    rna[size:, len(GENES) - lost_genes :] = 0
    adt[size:, len(PROTEINS) - lost_proteins :] = 0
    cells = make_cells(GENES, PROTEINS, rna, adt)
    cells.obs["batch"] = pd.Categorical(["one"] * size + ["two"] * size)
    return cells


def part_of(cells, rows, genes, proteins):
    """Give the cells of one batch, with the features that it measured."""
    rna, adt = cells.rna.counts[rows][:, :genes], cells.adt.counts[rows][:, :proteins]
    return make_cells(GENES[:genes], PROTEINS[:proteins], rna.toarray(), adt.toarray())


def test_a_joined_file_gives_what_its_parts_give():
    cells = make_joined()
    with pytest.warns(
        UserWarning, match=r"in the groups of 'batch', .* 'two' lacks 2 proteins \(CD19, HLA-DR\) and 30"
    ):
        joined = align_cells(cells, VOCABULARY, batch_key="batch")
    first = align_cells(part_of(cells, np.arange(SIZE), 60, 6), VOCABULARY)
    second = align_cells(part_of(cells, np.arange(SIZE, 2 * SIZE), 30, 4), VOCABULARY)
    rows = np.arange(SIZE)
    for part, shift in ((first, 0), (second, SIZE)):
        alone, together = part.as_counts(rows), joined.as_counts(rows + shift)
        assert alone.keys() == together.keys()
        assert all((alone[key] == together[key]).all() for key in alone)
    again = stack_aligned([joined, first], ["joined", "first"])
    assert (again.as_counts(rows + SIZE)["rna_observed"] == joined.as_counts(rows + SIZE)["rna_observed"]).all()
    assert again.as_counts(rows + 2 * SIZE)["rna_observed"].all()


def test_a_common_panel_holds_for_all_batches():
    with pytest.warns(UserWarning, match="'two' lacks"):
        joined = open_aligned(make_joined(), VOCABULARY, "batch")
    rna, adt = joined.panels.rna.all(0), joined.panels.adt.all(0)
    assert (rna.sum(), adt.sum()) == (30, 4)
    rna[0] = False
    counts = joined.keep_panel(rna, adt).read_all().as_counts(np.arange(2 * SIZE))
    assert (counts["rna_observed"] == rna).all()
    assert (counts["adt_observed"] == adt).all()


def test_a_joined_file_warns_and_stays_as_it_is():
    with pytest.warns(UserWarning, match=r"groups of 'batch' have no count .* 'two' lacks .* give `batch_key` 'batch'"):
        aligned = align_cells(make_joined(), VOCABULARY)
    assert not isinstance(aligned, StackedCells)
    assert aligned.rna_observed.all()
    with pytest.warns(UserWarning, match=r"'two' lacks 1 proteins \(HLA-DR\)\."):
        align_cells(make_joined(lost_genes=0, lost_proteins=1), VOCABULARY)


@pytest.mark.parametrize(
    "cells",
    [
        make_joined(lost_genes=3, lost_proteins=0),  # a donor without Y, a sample without a cell type
        make_joined(size=19),  # too few cells to tell
        make_joined(lost_genes=60, lost_proteins=0),  # cells without RNA
        make_joined(lost_genes=0, lost_proteins=0),
    ],
)
def test_what_chance_and_biology_explain_is_no_gap(cells):
    with warnings.catch_warnings(action="error"):
        for key in (None, "batch"):
            assert align_cells(cells, VOCABULARY, key).rna_observed.all()


def test_cells_without_a_batch_keep_the_panel_of_the_file():
    cells = make_joined()
    cells.obs.loc[cells.obs.index[[0, 49]], "batch"] = np.nan
    with pytest.warns(UserWarning, match="'two' lacks"):
        aligned = align_cells(cells, VOCABULARY, "batch")
    observed = aligned.as_counts(np.array([0, 48, 49]))["rna_observed"]
    assert observed.sum(1).tolist() == [60, 30, 60]


@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_a_missing_batch_is_no_batch(missing):
    groups = read_groups(pd.DataFrame({"batch": WITHOUT_VALUE[missing]}), "batch", "a.h5ad")
    assert (len(groups.names), groups.codes[1]) == (2, -1)


def test_columns_of_groups_are_found_and_a_missing_one_is_refused():
    obs = pd.DataFrame(columns=["Donor ID", "n_counts", "orig.ident", "rna:batch"])
    assert find_group_columns(obs) == ["rna:batch", "orig.ident", "Donor ID"]
    with pytest.raises(
        ValueError, match=r"`batch_key` must be a column of obs, got 'lane' for 'memory'; it has \['batch'"
    ):
        align_cells(make_joined(), VOCABULARY, "lane")
