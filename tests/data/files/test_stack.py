"""Cells of several files together: each keeps what its own file measured."""

import dataclasses

import numpy as np
import pytest
from make_cells import write_h5mu

pytest.importorskip("torch")
from scfusion_fm.data.files.stack import stack_aligned
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor


@pytest.fixture(scope="module")
def two_files(model_dir, tmp_path_factory):
    extractor = load_extractor(model_dir)
    folder = tmp_path_factory.mktemp("stack")
    cells = [read_aligned(write_h5mu(folder / f"{i}.h5mu", 12, seed=50 + i), extractor)[1] for i in range(2)]
    genes = np.arange(len(extractor.gene_ids)) < 10
    second = dataclasses.replace(cells[1], rna_observed=genes, rna=cells[1].rna.multiply(genes).tocsr())
    return extractor, cells[0], second


def test_stacked_cells_give_the_inputs_of_their_own_file(two_files):
    extractor, first, second = two_files
    both = stack_aligned([first, second], ["a", "b"])
    assert list(both.obs["dataset"]) == ["a"] * 12 + ["b"] * 12
    assert both.obs.index.is_unique
    rows = np.arange(12)
    for part, shift in ((first, 0), (second, 12)):
        alone, together = (extractor(**x.as_counts(r)) for x, r in ((part, rows), (both, rows + shift)))
        assert alone.keys() == together.keys()
        assert all((alone[k] == together[k]).all() for k in alone)
    assert both.rna_observed.all()


def test_files_that_do_not_fit_are_refused(two_files):
    _, first, second = two_files
    with pytest.raises(ValueError, match=r"`names` must name each of the 2 files differently, got \['a', 'a'\]"):
        stack_aligned([first, second], ["a", "a"])
    narrow = dataclasses.replace(second, rna=second.rna[:, :5])
    with pytest.raises(ValueError, match="`parts` must have one vocabulary"):
        stack_aligned([first, narrow], ["a", "b"])
