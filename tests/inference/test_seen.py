"""`sf.seen` takes objects as it takes files, and prints what the command prints."""

import sys

import pytest

import scfusion_fm as sf
from scfusion_fm.cli.main import main


def test_it_prints_what_the_command_prints(paired_file, model_dir, monkeypatch, capsys):
    found = sf.seen(paired_file, model_dir)
    monkeypatch.setattr(sys, "argv", ["scfusion", "seen", str(model_dir), str(paired_file)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().out == f"{found}\n"
    assert found.beyond_chance
    shown = found._repr_html_()
    assert shown.count("<tr>") == shown.count("</tr>") == len(str(found).splitlines())
    assert f"<td>{found.num_cells:,}, of which" in shown


def test_an_object_is_looked_up_as_its_file(paired_file, model_dir):
    mdata = sf.read_cells(paired_file).container
    assert sf.seen(mdata, str(model_dir)) == sf.seen(paired_file, model_dir)
    half = sf.seen(mdata["rna"][::2].copy(), sf.load(model_dir))
    assert half.num_cells == half.with_rna_fingerprint == mdata.n_obs // 2
    assert 0 < half.seen == half.seen_by_rna
    assert half.with_adt_fingerprint == 0
    with pytest.raises(ValueError, match="`modality` must be 'auto', 'rna' or 'adt', got 'atac'"):
        sf.seen(mdata, model_dir, modality="atac")
