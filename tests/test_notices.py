"""Warnings stand at the line of the caller, and have a category of their own."""

import sys
import warnings

import pytest
from make_cells import make_modalities

import scfusion_fm
from scfusion_fm import notices
from scfusion_fm.notices import ScFusionWarning


def test_warning_stands_at_the_line_of_the_user(tmp_path):
    adata = make_modalities(20, seed=1)[0]
    adata.var_names = ["mystery", *adata.var_names[1:]]
    adata.write_h5ad(tmp_path / "in.h5ad")
    vocabulary = scfusion_fm.build_vocabulary(None, "protein_coding", "all")
    cells = scfusion_fm.read_cells(tmp_path / "in.h5ad")
    with pytest.warns(scfusion_fm.ScFusionWarning, match="1 of .* genes do not resolve") as caught:
        scfusion_fm.align_cells(cells, vocabulary)
    assert {w.filename for w in caught} == {__file__}


def test_all_warnings_can_be_switched_off():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScFusionWarning)
        notices.warn("nobody hears this")  # warnings are errors in tests


def test_lines_and_bars_can_be_switched_off(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for verbosity in (0, 1):
        notices.settings.verbosity = verbosity
        notices.tell("hello")
        with notices.progress(2, description="reading") as bar:
            bar.update(2)
        told = capsys.readouterr().err
        assert ("hello" in told, "reading" in told) == (verbosity == 1, verbosity == 1)
    for name, value in (("verbosity", 2), ("verbosity", True), ("loudness", 1)):
        with pytest.raises(ValueError, match="must be 0 or 1"):
            setattr(notices.settings, name, value)
