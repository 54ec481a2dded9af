"""Bad files at the command line: one clear line, exit code 2, nothing half-written, nothing overwritten."""

import json
import sys
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pytest
from make_cells import GENES, make_modalities, write_h5mu

from scfusion_fm.cli.main import main
from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.prepare.job import prepare_atlas


def rna_with(change):
    def make(path):
        adata = make_modalities(30, seed=9)[0]
        adata.X = adata.X.toarray()
        change(adata)
        adata.write_h5ad(path)

    return make


def normalise(adata):
    adata.X = np.log1p(adata.X / adata.X.sum(1, keepdims=True) * 1e4)


def rename(names):
    def change(adata):
        adata.var_names = names(adata)

    return change


def put(value):
    def change(adata):
        adata.X[3, 2] = value

    return change


def repeat_a_gene(adata):
    names = list(adata.var_names)
    names[1] = names[0]
    adata.X[:, 1] = adata.X[:, 0]
    adata.var_names = names


def truncate(path):
    write_h5mu(path.with_suffix(".whole.h5mu"), 20, seed=1)
    path.write_bytes(path.with_suffix(".whole.h5mu").read_bytes()[:3000])


def other_cells(path):
    rna, adt = make_modalities(20, seed=1)[0], make_modalities(20, seed=2)[1]
    with warnings.catch_warnings(action="ignore"):
        md.MuData({"rna": rna, "adt": adt}).write(path)


BAD = {
    "normalised": ("in.h5ad", rna_with(normalise), "whole"),
    "negative": ("in.h5ad", rna_with(put(-1)), "negative"),
    "fractional": ("in.h5ad", rna_with(put(0.5)), "whole"),
    "not a number": ("in.h5ad", rna_with(put(np.nan)), "nan|finite"),
    "mouse": ("in.h5ad", rna_with(rename(lambda a: [f"ENSMUSG{i:011d}" for i in range(a.n_vars)])), "mouse"),
    "no known gene": ("in.h5ad", rna_with(rename(lambda a: [f"thing{i}" for i in range(a.n_vars)])), "gene"),
    "the same column twice": ("in.h5ad", rna_with(repeat_a_gene), "identical|twice|same"),
    "truncated": ("in.h5mu", truncate, "in.h5mu"),
    "no HDF5": ("in.h5ad", lambda path: path.write_text("cells"), "in.h5ad"),
    "other cells": ("in.h5mu", other_cells, "cell"),
    "missing": ("in.h5ad", lambda path: None, "in.h5ad"),
    "unknown kind": ("in.csv", lambda path: path.write_text("a,b"), "in.csv"),
}


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scfusion", *map(str, arguments)])
    with warnings.catch_warnings(action="ignore"), pytest.raises(SystemExit) as exit_info:
        main()
    return exit_info.value.code


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["prepare", "embed"])
def test_bad_file_is_refused(command, case, model_dir, monkeypatch, tmp_path, capsys):
    name, make, message = BAD[case]
    source = tmp_path / name
    make(source)
    before = sorted(tmp_path.rglob("*"))
    if command == "prepare":
        config = tmp_path.parent / f"{tmp_path.name}.yaml"
        config.write_text(f"output: {tmp_path}/out.zarr\ngenes: sources\nsources: [{{path: {source}}}]\n")
        code = call(monkeypatch, "prepare", "--config", config)
    else:
        code = call(monkeypatch, "embed", model_dir, source, tmp_path / f"out{source.suffix}")
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert printed.startswith("error: ")
    assert any(word in printed.lower() for word in message.lower().split("|")), printed
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", BAD)
def test_doctor_refuses_the_same_files_for_the_same_reason(case, monkeypatch, tmp_path, capsys):
    name, make, message = BAD[case]
    make(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    config = PrepareConfig(tmp_path.parent / f"{tmp_path.name}.zarr", [SourceConfig(tmp_path / name)])
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=r"`") as refusal:
        prepare_atlas(config, report=lambda line: None)
    assert call(monkeypatch, "doctor", tmp_path / name, "--json") == 2
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["verdict"] == "refused"
    assert file["refusal"] == str(refusal.value)
    assert any(word in file["refusal"].lower() for word in message.lower().split("|"))
    assert sorted(tmp_path.rglob("*")) == before


def test_existing_output_is_left_alone(model_dir, monkeypatch, tmp_path, capsys):
    make_modalities(20, seed=3)[0].write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "out.h5ad").write_text("precious")
    assert call(monkeypatch, "embed", model_dir, tmp_path / "in.h5ad", tmp_path / "out.h5ad") == 2
    assert (tmp_path / "out.h5ad").read_text() == "precious"
    config = tmp_path / "data.yaml"
    config.write_text(f"output: {tmp_path}/out.h5ad\nsources: [{{path: {tmp_path}/in.h5ad}}]\n")
    assert call(monkeypatch, "prepare", "--config", config) == 2
    assert (tmp_path / "out.h5ad").read_text() == "precious"
    assert "`output` must not exist yet" in capsys.readouterr().err


def test_unknown_antibodies_and_genes_are_told_and_left_out(model_dir, monkeypatch, tmp_path, capsys):
    rna, adt = make_modalities(30, seed=4)
    rna.var_names = ["mystery", *rna.var_names[1:]]
    adt.var_names = ["enigma", *adt.var_names[1:]]
    with warnings.catch_warnings(action="ignore"):
        md.MuData({"rna": rna, "adt": adt}).write(tmp_path / "in.h5mu")
    monkeypatch.setattr(sys, "argv", ["scfusion", "embed", str(model_dir), f"{tmp_path}/in.h5mu", f"{tmp_path}/o.h5mu"])
    with warnings.catch_warnings(action="default"):
        main()
    printed = capsys.readouterr().err
    assert f"1 of {len(GENES)} genes do not resolve" in printed
    assert "mystery" in printed
    assert "enigma" in printed
    with warnings.catch_warnings(action="ignore"):
        assert ad.AnnData(md.read_h5mu(tmp_path / "o.h5mu").obsm["X_scfusion_ttt"]).n_obs == 30
