"""Cells of an atlas over a vocabulary: those of the files, whether they are in memory or read when they are used."""

import numpy as np
import pytest

from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.files.stack import stack_aligned
from scfusion_fm.data.stream.atlas_cells import is_atlas, load_atlas_cells, open_atlas_cells
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def other_vocabulary(atlas_path):
    """Some genes and proteins of the atlas in another order, and some that it lacks."""
    own = Atlas(atlas_path).vocabulary.to_dict()
    genes, proteins = [3, 1, 8, 5], [2, 0]
    kept = {key: [own[key][i] for i in genes] for key in own if key.startswith("gene")}
    kept["gene_ids"][1] = "ENSG00000000000"
    kept |= {key: [own[key][i] for i in proteins] for key in own if key.startswith("protein")}
    return Vocabulary(**own | kept)


@pytest.mark.parametrize("memory", [0, 1e9], ids=["from disk", "in memory"])
def test_cells_of_an_atlas_are_those_of_its_files(memory, atlas_path, paired_file, other_vocabulary):
    for vocabulary in (Atlas(atlas_path).vocabulary, other_vocabulary):
        found = load_atlas_cells(open_atlas_cells(atlas_path, vocabulary), memory)
        assert isinstance(found.adt, np.ndarray) == (memory > 0)
        expected = align_cells(read_cells(paired_file), vocabulary)
        rows = np.random.default_rng(0).permutation(len(found.obs))[:50]
        names = [name.removeprefix("tiny:") for name in found.obs.index[rows]]
        places = expected.obs.index.get_indexer(names)
        wanted, given = expected.as_counts(places), found.as_counts(rows)
        assert wanted.keys() == given.keys()
        for key in wanted:
            np.testing.assert_array_equal(given[key], wanted[key])
    assert set(found.obs["dataset"]) == {"tiny"}


def test_an_atlas_stands_below_files_whether_it_is_in_memory_or_not(atlas_path, paired_file):
    vocabulary = Atlas(atlas_path).vocabulary
    file = align_cells(read_cells(paired_file), vocabulary)
    on_disk = open_atlas_cells(atlas_path, vocabulary)
    stacks = [stack_aligned([file, part], ["cells", None]) for part in (on_disk, load_atlas_cells(on_disk, 1e9))]
    rows = np.random.default_rng(0).permutation(len(stacks[0].obs))[:70]
    for some in (rows, slice(100, 200), rows[:0]):
        assert (stacks[0].rna[some] != stacks[1].rna[some]).nnz == 0
        np.testing.assert_array_equal(stacks[0].adt[some], stacks[1].adt[some])
    assert stacks[0].obs["dataset"].unique().tolist() == ["cells", "tiny"]
    with pytest.raises(ValueError, match="`names` must differ from those of the data sets of an atlas"):
        stack_aligned([file, on_disk], ["tiny", None])


def test_what_is_no_atlas_and_what_shares_nothing_is_told(atlas_path, paired_file, other_vocabulary):
    assert is_atlas(atlas_path)
    assert not is_atlas(paired_file)
    assert not is_atlas(paired_file.parent)
    names = {"gene_ids": [f"ENSG0000000000{i}" for i in range(4)], "protein_names": ["none", "other"]}
    strange = Vocabulary(**other_vocabulary.to_dict() | names)
    with pytest.raises(ValueError, match="`data` must share genes or proteins with the model, got none of the"):
        open_atlas_cells(atlas_path, strange)
