"""Adapters to the benchmarks of others run on small files in their formats, and give what these expect."""

import re
import sys
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import yaml
from launch import ROOT
from make_cells import ANTIBODIES, make_modalities

COMPONENT = ROOT / "benchmarks/open_problems"


def run_component(par: dict) -> None:
    """Run the script as viash does: with other settings in the place of its own."""
    script = (COMPONENT / "script.py").read_text()
    given = f"## VIASH START\npar = {par!r}\nmeta = {{'name': 'scfusion_ttt'}}\n## VIASH END"
    script = re.sub(r"## VIASH START.*?## VIASH END", lambda _: given, script, flags=re.S)
    exec(compile(script, "script.py", "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="module")
def task_files(tmp_path_factory) -> dict[str, str]:
    """Write the files of the task: counts and normalised values of training cells, and the RNA of test cells."""
    directory, paths = tmp_path_factory.mktemp("task"), {}
    for part, seed in (("train", 0), ("test", 1)):
        for name, kind, adata in zip(("mod1", "mod2"), ("GEX", "ADT"), make_modalities(120, seed), strict=True):
            logs = np.log1p(adata.X.toarray())
            adata.layers = {"counts": adata.X, "normalized": 3 + 2 * (logs - logs.mean(1, keepdims=True))}
            del adata.X
            adata.obs["batch"] = adata.obs["donor"]
            adata.var["hvg"], adata.var["hvg_score"] = True, 1.0
            adata.uns = {"dataset_id": "made/up", "modality": kind, "normalization_id": "log_cp10k"}
            paths[f"input_{part}_{name}"] = str(directory / f"{part}_{name}.h5ad")
            adata.write_h5ad(paths[f"input_{part}_{name}"])
    return paths


def test_component_of_open_problems_predicts_in_the_units_of_the_task(task_files, model_dir, tmp_path):
    config = yaml.safe_load((COMPONENT / "config.vsh.yaml").read_text())
    assert {"name", "label", "summary", "description", "info", "resources", "engines", "runners"} <= config.keys()
    own = {argument["name"].lstrip("-"): argument.get("default") for argument in config["arguments"]}
    par = own | task_files | {"model": str(model_dir), "epochs": 1, "output": str(tmp_path / "prediction.h5ad")}
    del par["input_test_mod2"]
    with warnings.catch_warnings(action="ignore"):
        run_component(par)
    found, truth = ad.read_h5ad(par["output"]), ad.read_h5ad(task_files["input_test_mod2"])
    assert found.shape == truth.shape
    assert list(found.obs_names) == list(truth.obs_names)
    assert list(found.var_names) == ANTIBODIES
    assert found.uns == {"dataset_id": "made/up", "method_id": config["name"]}
    predicted, wanted = found.layers["normalized"].toarray(), truth.layers["normalized"]
    errors = [np.square(guess - wanted).mean() for guess in (predicted, wanted.mean(0))]
    assert errors[0] < 0.7 * errors[1]
    swapped = par | {"input_train_mod1": par["input_train_mod2"], "input_train_mod2": par["input_train_mod1"]}
    with pytest.raises(SystemExit, match="99"):
        run_component(swapped)


def test_adapter_to_cz_benchmarks_gives_a_row_for_each_cell(model_dir, tmp_path, monkeypatch, capsys):
    adata = make_modalities(60, 0)[0]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cz_benchmarks

    arguments = ["embed", str(model_dir), str(tmp_path / "cells.h5ad"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["cz_benchmarks.py", *arguments])
    cz_benchmarks.main()
    embedding, told = np.load(tmp_path / "out.npy"), yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert told == yaml.safe_load(capsys.readouterr().out)
    assert told["representation"] == {"kind": "cell embedding", "cells": 60, "width": embedding.shape[1]}
    assert embedding.dtype == np.float32
    adata.X = sp.diags((np.arange(60) != 3).astype(np.float32)) @ adata.X
    told = re.escape("`adata` must have counts in every cell, got 1 cells without")
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=told):
        cz_benchmarks.embed_for_tasks(adata, model_dir)
