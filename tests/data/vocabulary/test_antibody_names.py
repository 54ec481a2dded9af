"""Spellings of antibodies: what may be changed in a name without changing what it means."""

import pytest

from scfusion_fm.data.vocabulary.antibody_names import normalise_antibody, strip_antibody


def test_separators_between_digits_stay():
    assert normalise_antibody("CD3-2") == "cd3.2" != normalise_antibody("CD32")
    assert normalise_antibody("CD3 (5.1H11)") == "cd3.5.1h11" != normalise_antibody("CD35.1H11")


@pytest.mark.parametrize(
    "name", ["ADT_CD3", "CD3-CTCATTGTAACTCCT", "anti-human CD3", "TotalSeq-C0034 anti-human CD3 Antibody", "CD3_TotalC"]
)
def test_prefixes_suffixes_and_barcodes_are_cut(name):
    assert strip_antibody(name) == "CD3"
