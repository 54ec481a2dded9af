"""Pictures are drawn of objects and of runs, into axes that are given or new ones."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from make_files import make_adt, make_mudata, make_rna

import scfusion_fm as sf
from scfusion_fm.evaluation.report.text import PROTEIN_METRICS


@pytest.fixture
def adata():
    adata = make_rna()
    adata.obs["cell_type"] = pd.Categorical([*"aabbb", None, "a"])
    adata.obs["cell_type_pred"] = list("aabbaaa")
    adata.obs["probability"] = np.linspace(0, 1, 7)
    adata.obsm["X_scfusion_ttt"] = np.arange(14, dtype=np.float32).reshape(7, 2)  # a layout already
    adata.obsm["X_scfusion_ttt"][6] = np.nan
    yield adata
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_cell_types_have_colours_and_cells_without_one_are_grey(adata):
    _, ax = plt.subplots()
    assert sf.pl.umap(adata, color="cell_type", ax=ax) is ax
    assert texts(ax) == ["other cells (1)", "b (3)", "a (2)"]  # the last cell has no embedding
    assert sf.pl.umap(adata).figure is not ax.figure


def test_numbers_have_a_scale(adata):
    ax = sf.pl.umap(adata, color="probability")
    (scale,) = (other for other in ax.figure.axes if other is not ax)
    assert scale.get_ylabel() == "probability"


def test_confusions_leave_out_cells_without_a_label(adata):
    ax = sf.pl.confusion(adata)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a (3)", "b (3)"]
    assert [text.get_text() for text in ax.texts] == ["3", "1", "2"]


@pytest.fixture
def paired():
    """Cells whose proteins are predicted to be what was measured, but for the last, which was not measured."""
    mdata = make_mudata(rna=make_rna(), adt=make_adt())
    vocabulary = sf.build_vocabulary([sf.read_cells(mdata)])
    extractor = sf.ScFusionTTTFeatureExtractor(**vocabulary.to_dict(), patch_size=2)
    aligned = sf.align_cells(sf.read_cells(mdata), vocabulary)
    measured = extractor.normalise_adt(aligned.adt, aligned.adt_observed_in(np.arange(7)))
    names = [*extractor.protein_names, "CD999"]
    predicted = np.column_stack([measured, np.ones(7)])
    mdata.obsm["protein_scfusion_ttt"] = pd.DataFrame(predicted, index=mdata.obs_names, columns=names)
    yield mdata, SimpleNamespace(extractor=extractor)
    plt.close("all")


@pytest.mark.filterwarnings("ignore:1 of 5 antibodies")
def test_measured_proteins_are_brought_into_the_unit_of_the_predictions(paired):
    mdata, model = paired
    ax = sf.pl.protein(mdata, "CD4", model=model)
    dots = ax.collections[0].get_offsets()
    np.testing.assert_allclose(dots[:, 0], dots[:, 1], atol=1e-6)
    assert ax.get_title() == "CD4   (r = 1.00)"
    ax = sf.pl.proteins(mdata, model=model)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([1.0] * 4)
    with pytest.raises(ValueError, match="`name` must be a protein that was measured, got 'CD999'"):
        sf.pl.protein(mdata, "CD999", model=model)
    with pytest.raises(ValueError, match="`name` must be one of the predicted proteins, got 'X'"):
        sf.pl.protein(mdata, "X", model=model)
    with pytest.raises(ValueError, match="`model` must be given, got none"):
        sf.pl.proteins(mdata)
    mdata.uns["scfusion_ttt"] = {"predict-protein": {"obsm": "protein_scfusion_ttt", "unit": "deviations of something"}}
    with pytest.raises(ValueError, match="`key` must hold proteins in CLR to be drawn beside measured ones"):
        sf.pl.protein(mdata, "CD4", model=model)
    del mdata.uns["scfusion_ttt"]
    mdata.obsm["protein_scfusion_ttt"] = mdata.obsm["protein_scfusion_ttt"][["CD999"]]
    with pytest.raises(ValueError, match="`given` must hold proteins that were measured and predicted and vary"):
        sf.pl.proteins(mdata, model=model)


@pytest.fixture
def run(tmp_path):
    """What fine-tunings and a pretraining leave, as far as pictures need it."""
    rng = np.random.default_rng(0)
    layout, labels = rng.normal(size=(9, 2)), np.array(list("aaabbbccc"))
    np.savez(tmp_path / "embedding.npz", embedding=layout, labels=labels, split=np.array(["test", "train", "val"] * 3))
    pd.DataFrame({"label": list("ab"), "predicted": list("bb")}).to_csv(tmp_path / "test_predictions.csv", index=False)
    measured = rng.normal(size=(9, 2))
    names = np.array(["CD3", "CD4"])
    np.savez(tmp_path / "test_predictions.npz", measured=measured, predicted=measured, names=names)
    scores = {"pearson": [0.9, 0.8, 0.7, 0.6], "protein": [*names, *names]}
    methods = ["scFusionTTT"] * 2 + ["ridge"] * 2
    pd.DataFrame(scores).assign(method=methods).to_csv(tmp_path / "per_protein.csv", index=False)
    table = [{"method": method, **dict.fromkeys(PROTEIN_METRICS, 0.5)} for method in ("scFusionTTT", "ridge")]
    (tmp_path / "results.json").write_text(json.dumps({"table": table}))
    record = {"step": 1, "cells": 8, "split": "train", "loss": 1.0, "rna_loss": 1.0, "adt_loss": None}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record | {"cells_per_s": 1.0, "seconds": 1.0}) + "\n")
    yield tmp_path
    plt.close("all")


def test_runs_are_drawn_from_their_directories(run, atlas_path):
    assert texts(sf.pl.umap(run)) == ["other cells (6)", "a (1)", "b (1)", "c (1)"]
    assert [text.get_text() for text in sf.pl.confusion(str(run)).texts] == ["1", "1"]
    assert sf.pl.protein(run, "CD3").get_title() == "CD3   (r = 1.00)"
    assert sorted(texts(sf.pl.proteins(run))) == ["ridge (mean 0.65)", "scFusionTTT (mean 0.85)"]
    assert texts(sf.pl.losses(run)) == ["training"]
    assert sf.pl.overlap(atlas_path, features="proteins").get_title() == "Proteins"


def test_what_cannot_be_drawn_is_refused(run, adata, atlas_path):
    for draw, told in (
        (lambda: sf.pl.umap(adata, basis="X_pca"), "`basis` must be in obsm, got 'X_pca'"),
        (lambda: sf.pl.umap(adata, color="donor"), "`color` must be a column of obs, got 'donor'"),
        (lambda: sf.pl.confusion(adata, labels_key="x"), "`labels_key` must be a column of obs"),
        (lambda: sf.pl.proteins(adata), "`key` must be a table in obsm"),
        (lambda: sf.pl.losses(run, loss="x"), "`loss` must be one of loss, rna_loss, adt_loss, got 'x'"),
        (lambda: sf.pl.losses(run, loss="adt_loss"), "`loss` must be one that was logged, got 'adt_loss'"),
        (lambda: sf.pl.overlap(atlas_path, features="x"), "`features` must be 'genes' or 'proteins', got 'x'"),
        (lambda: sf.pl.report(run / "a.txt", annotation=run), "`output` must end in .html"),
        (lambda: sf.pl.report(run / "a.html"), "must name a run, got none"),
    ):
        with pytest.raises(ValueError, match=told):
            draw()
    assert not plt.get_fignums()
