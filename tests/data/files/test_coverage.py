"""How much of a model's panel a file measures is told, warned of and, if it is almost nothing, refused."""

import warnings

import numpy as np
import pytest
from make_files import make_cells

from scfusion_fm.data.files.align import open_aligned
from scfusion_fm.data.files.coverage import PanelCoverage, check_panel
from scfusion_fm.data.vocabulary.reference import load_gene_table
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary

SYMBOLS = load_gene_table().query("status == 'current' and biotype == 'protein_coding'").symbol.unique()[:200].tolist()


def test_shares_of_genes_and_of_counts_are_measured():
    vocabulary = build_vocabulary([make_cells(genes=SYMBOLS[:8], antibodies=["CD4", "CD19"])])
    counts = np.tile([3.0, 0, 1], (7, 1))
    cells = make_cells(genes=[*SYMBOLS[:2], SYMBOLS[9]], rna=counts, antibodies=["CD4"])
    genes, proteins = open_aligned(cells, vocabulary).coverage
    assert genes == PanelCoverage("genes", 2, 8, 0.75)
    assert (proteins.share, proteins.count_share) == (0.5, 1.0)
    assert genes.describe() == "2 of the model's 8 genes (25.0%) with 75% of the counts"


@pytest.mark.parametrize(
    ("measured", "counts", "outcome"),
    [
        (1000, 1.0, None),
        (300, 0.3, None),
        (299, 1.0, "warned"),
        (500, 0.29, "warned"),
        (10, 1.0, "warned"),
        (9, 1.0, "refused"),
    ],
)
def test_little_is_warned_of_and_almost_nothing_is_refused(measured, counts, outcome):
    found = [PanelCoverage("genes", measured, 1000, counts), PanelCoverage("proteins", 1, 1000, 1.0)]
    if outcome == "refused":
        with pytest.raises(ValueError, match=r"`a` must measure at least 1.0% of what the model knows, got 9 of"):
            check_panel(found, "a")
    elif outcome == "warned":
        with pytest.warns(UserWarning, match=f"a: the model knows little of this file: {measured} of"):
            check_panel(found, "a")
    else:
        check_panel(found, "a")


def test_the_floor_can_be_moved():
    nothing = [PanelCoverage("proteins", 1, 1000, 1.0)]
    with pytest.warns(UserWarning, match="knows little"):
        check_panel(nothing, "a", 0)
    with pytest.raises(ValueError, match=r"must measure at least 50\.0%"):
        check_panel([PanelCoverage("genes", 1, 3, 1.0)], "a", 0.5)
    for wrong in (-0.1, 2, float("nan")):
        with pytest.raises(ValueError, match=r"`min_coverage` must lie in \[0, 1\], got"):
            check_panel(nothing, "a", wrong)


def test_few_proteins_beside_genes_are_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_panel([PanelCoverage("genes", 9, 10, 1.0), PanelCoverage("proteins", 0, 1000, 0.0)], "a")
