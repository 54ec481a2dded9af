"""Cells that are in two files are known by their barcodes."""

from scfusion_fm.data.fingerprints.shared import barcode_cores


def test_barcodes_are_cut_to_their_core():
    names = ["AAACCCAAGATTGTGA-1", "s1_AAACCCAAGATTGTGC-1-x", "sample_7", "17", "CD8_off_GACCCCCCTTCT"]
    assert barcode_cores(names) == {"AAACCCAAGATTGTGA", "AAACCCAAGATTGTGC", "sample_7", "GACCCCCCTTCT"}
