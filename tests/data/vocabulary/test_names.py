"""Spellings: what may be changed in a name without changing what it means."""

from scfusion_fm.data.vocabulary.names import antibody_spellings, normalise_antibody


def test_separators_between_digits_stay():
    assert normalise_antibody("CD3-2") == "cd3.2" != normalise_antibody("CD32")
    assert antibody_spellings("CD4-1") == [["cd4.1"], ["cd4"]]
