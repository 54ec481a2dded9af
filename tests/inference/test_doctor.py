"""`sf.doctor` takes objects as it takes files, and prints what the command prints."""

import re
import sys

import anndata as ad
import pytest
from make_files import make_adt, make_rna

import scfusion_fm as sf
from scfusion_fm.cli.main import main


def without_names(found):
    """Give the lines but for what the file is called."""
    return re.sub("mdata|adata|cells.h5mu|x.h5ad", "NAME", str(found)).replace("MuData (h5mu)", "KIND")


def test_it_prints_what_the_command_prints(paired_file, model_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scfusion", "doctor", str(paired_file), "--model", str(model_dir)])
    main()
    found = sf.doctor(paired_file, model=model_dir)
    assert capsys.readouterr().out == f"{found}\n"
    assert repr(found) == str(found)
    assert found.exit_code == 0


def test_an_object_is_examined_as_its_file_and_not_changed(paired_file, model_dir):
    mdata = sf.read_cells(paired_file).container
    before = {key: adata.X.copy() for key, adata in mdata.mod.items()}
    found = sf.doctor([mdata, mdata["rna"]], model=model_dir)
    assert [file.kind for file in found.files] == ["MuData as an object", "AnnData as an object"]
    assert found.shared[0].rna == mdata.n_obs
    alone = sf.doctor(mdata, model=model_dir)
    assert without_names(alone).replace("MuData as an object", "KIND") == without_names(
        sf.doctor(str(paired_file), model=model_dir)
    )
    for key, adata in mdata.mod.items():
        assert (before[key] != adata.X).nnz == 0


def test_a_backed_object_is_examined(tmp_path):
    make_rna().write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    found, expected = sf.doctor(backed), sf.doctor(tmp_path / "x.h5ad")
    backed.file.close()
    assert found.files[0].kind == "AnnData backed by a file"
    assert found.files[0].modalities == expected.files[0].modalities
    assert found.files[0].slots == expected.files[0].slots


def test_a_refused_object_is_told_of_and_not_raised():
    adt = make_adt()
    adt.X = adt.X * 0.5
    found = sf.doctor(adt)
    assert found.exit_code == 2
    assert "whole numbers" in found.files[0].refusal
    assert str(found).startswith("adata: REFUSED\nx `adata")
    assert "got list" in sf.doctor([[1, 2]]).files[0].refusal


def test_a_notebook_shows_a_table_in_which_names_are_text():
    adata = make_rna(["<b>CD4</b>", "CD3E", "LYZ", "GAPDH", "NKG7", "MS4A1"])
    adata.obs["cell_type"] = list("abababa")
    shown = sf.doctor(adata)._repr_html_()
    assert shown.count("<table>") == shown.count("</table>") == 1
    assert "&lt;b&gt;CD4&lt;/b&gt;" in shown
    assert "<b>CD4" not in shown
    assert "cell_type (2)" in shown
    assert "1 file: 1 usable with warnings" in shown


def test_coverage_is_a_matter_of_a_model(model_dir):
    with pytest.raises(ValueError, match="`min_coverage` is about a model, got none"):
        sf.doctor(make_rna(), min_coverage=0.5)
    found = sf.doctor(make_rna(["LYZ", "CD9", "A1BG"]), model=model_dir, min_coverage=1)
    assert "must measure at least 100.0% of what the model knows" in found.files[0].refusal
