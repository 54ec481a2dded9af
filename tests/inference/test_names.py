"""Genes and proteins have the names of the file, and no name stands for two of them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from scfusion_fm.inference.names import name_genes


def name(columns, places, ids=("ENSG1", "ENSG2", "ENSG3"), symbols=("A", "B", "A")):
    """Name the genes of a model whose genes a file has in these columns."""
    modality = SimpleNamespace(var=pd.DataFrame(index=columns))
    return name_genes(
        SimpleNamespace(
            vocabulary=SimpleNamespace(gene_ids=ids, gene_symbols=symbols),
            cells=SimpleNamespace(rna=modality),
            alignment=SimpleNamespace(rna=np.array(places)),
        )
    )


def test_genes_are_named_as_in_the_file():
    assert name(["hg19-B", "X"], [1, -1]) == ["A", "hg19-B", "ENSG3"]
    assert name(["ENSG2"], [1]) == ["ENSG1", "ENSG2", "ENSG3"]
    assert name(["B", "B.1"], [1, 1]) == ["A", "B", "ENSG3"]  # of columns that are summed, the first names


def test_a_name_that_a_file_has_twice_stands_for_one_gene():
    assert name(["A", "B", "A"], [0, 1, 2]) == ["A", "B", "ENSG3"]
