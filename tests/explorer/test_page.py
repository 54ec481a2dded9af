"""`scfusion explore`: a page that holds what a file has of its cells, and shows it in a browser without a network."""

import base64
import csv
import gzip
import json
import re
import sys

import anndata as ad
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, DRIVER, Browser

import scfusion_fm as sf
from scfusion_fm.cli.main import main
from scfusion_fm.explorer import cells, page

TYPES = ["B", "T", '</script><b>"x"', "unknown"]
PROTEINS = ["CD3", "CD19", "CD4"]
MIDDLES = {"B": (0.0, 0.0), "T": (10.0, 0.0), TYPES[2]: (0.0, 10.0), "unknown": (10.0, 10.0)}
BLUE = (0, 114, 178)  # of the category with most cells


def make_cells(n=90):
    draw = np.random.default_rng(0)
    types = np.array([TYPES[int(i)] for i in draw.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])])
    obs = pd.DataFrame({"cell_type_pred": types}, index=[f"cell {i}" for i in range(n)])
    obs["cell_type_pred_probability"] = draw.random(n)
    obs["depth"] = np.arange(n)
    counts = draw.poisson(np.where(types == "B", 1, 20)[:, None] * [1, 0, 1] + 1).astype(np.float32)
    counts[:, 1] = draw.poisson(np.where(types == "B", 30, 1))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame({"feature_types": "Antibody Capture"}, index=PROTEINS))
    adata.obsm["X_umap"] = np.array([MIDDLES[t] for t in types]) + draw.normal(0, 0.5, (n, 2))
    predicted = pd.DataFrame(draw.normal(size=(n, 4)), obs.index, [*PROTEINS, "CD8"])
    for end, shift in (("", 0), ("_lower", -1), ("_upper", 1.5)):
        adata.obsm[f"protein_scfusion_ttt{end}"] = predicted + shift
    adata.obsm["protein_scfusion_ttt_upper"]["CD8"] = np.nan
    told = {"annotate": {"obs": "cell_type_pred"}, "predict-protein": {"undetermined": ["CD4"]}}
    adata.uns["scfusion_ttt"] = told
    return adata


@pytest.fixture(scope="module")
def adata():
    return make_cells()


@pytest.fixture(scope="module")
def written(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("explore") / "cells.h5ad"
    adata.write_h5ad(path)
    return sf.explore(path, path.with_suffix(".html"))


def read_page(path):
    """Give what a page knows of its cells, and how to get at the numbers of a field."""
    text = path.read_text()
    told = json.loads(re.search(r'id="cells">(.*?)</script>', text, re.S)[1])

    def numbers(field):
        packed = re.search(rf'id="{field["blob"]}">(.*?)</script>', text)[1]
        steps = np.frombuffer(gzip.decompress(base64.b64decode(packed)), "<u2" if field.get("fine") else "u1")
        if field["kind"] == "label":
            return [None if step == 255 else field["categories"][step] for step in steps]
        found = field["low"] + steps * (field["high"] - field["low"]) / (65534 if field["fine"] else 254)
        return np.where(steps == (65535 if field["fine"] else 255), np.nan, found)

    return told, {(field["kind"], field["name"]): numbers(field) for field in told["fields"]}


def test_page_holds_what_the_file_has(adata, written):
    told, fields = read_page(written)
    assert (told["title"], told["n"], told["layout"]) == ("cells.h5ad", 90, "X_umap")
    assert fields["label", "cell_type_pred"] == list(adata.obs["cell_type_pred"])
    np.testing.assert_allclose(fields["number", "depth"], adata.obs["depth"], atol=0.001)
    logs = np.log1p(adata.X)
    for i, name in enumerate(PROTEINS):
        clr = (logs - logs.mean(1, keepdims=True))[:, i]
        np.testing.assert_allclose(fields["measured", name], clr, atol=np.ptp(clr) / 254 + 0.1)  # tails are cut
    np.testing.assert_allclose(fields["width", "CD3"], 2.5, atol=1e-5)
    assert ("predicted", "CD8") in fields
    assert ("width", "CD8") not in fields  # it has no intervals
    notes = {field["name"]: field["note"] for field in told["fields"] if field["kind"] == "predicted"}
    assert notes == {"CD3": "", "CD19": "", "CD4": cells.UNDETERMINED, "CD8": ""}
    assert any("1 of the 4 predicted proteins" in note for note in told["notes"])


def test_page_loads_nothing(written):
    text = written.read_text()
    assert re.findall(r"(?:src|href)\s*=\s*[\"']", text) == []
    assert "default-src 'none'" in text
    assert text.count("</script>") == 3 + text.count('type="text/plain"')  # none of a name of the data
    assert written.stat().st_size < 100_000


def test_large_files_are_sampled_and_proteins_bounded(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_VALUES", 40 * 3 * 2)
    told, fields = read_page(sf.explore(adata, tmp_path / "page.html", max_cells=40))
    assert told["n"] == 40
    assert "A random sample of 40 of 90 cells is shown." in told["notes"]
    assert "2 of 4 proteins are in the page, measured and variable ones first." in told["notes"]
    assert {name for kind, name in fields if kind == "predicted"} == {"CD3", "CD19"}


def test_cells_without_counts_and_results_are_told(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "compute_umap", lambda embedding: embedding[:, :2])  # which has tests of its own
    part = ad.AnnData(obs=adata.obs.copy(), obsm={"X_scfusion_ttt": np.random.default_rng(0).normal(size=(90, 5))})
    part.obsm["X_scfusion_ttt"][:3] = np.nan
    with pytest.warns(sf.ScFusionWarning, match="measured proteins are left out"):
        told, fields = read_page(sf.explore(part, tmp_path / "page.html"))
    assert told["layout"] == "UMAP of X_scfusion_ttt"
    assert "3 of 90 cells have no embedding and are not shown." in told["notes"]
    assert {kind for kind, _ in fields} == {"label", "number"}
    part.obsm["X_scfusion_ttt"][3:] = np.nan
    with pytest.raises(ValueError, match=r"`basis` must hold at least 4 cells, got 0 in obsm\['X_scfusion_ttt'\]"):
        sf.explore(part, tmp_path / "page.html")


@pytest.mark.parametrize(
    ("settings", "output", "message"),
    [
        ({"basis": "X_none"}, "page.html", r"`basis` must be in obsm, got 'X_none'; it has \[\]"),
        ({}, "page.txt", "`output` must end in .html"),
        ({}, "none/page.html", "`output` must be in a directory that exists"),
        ({"max_cells": 3}, "page.html", r"`max_cells` must lie in \[4, 1000000\], got 3"),
    ],
)
def test_mistakes_are_refused(settings, output, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sf.explore(ad.AnnData(np.ones((5, 2), dtype=np.float32)), tmp_path / output, **settings)


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
def test_cells_are_selected_in_a_browser(adata, written, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(written)
        browser.wait(lambda: browser.run("return document.body.dataset.ready"))

        def told(selector="#selection"):
            return browser.run(f"return document.querySelector('{selector}').innerText")

        # Draw around the B cells.
        rows = np.flatnonzero(adata.obs["cell_type_pred"] == "B")
        browser.screenshot(tmp_path / "before.png")
        shift = browser.run("const r = document.getElementById('plot').getBoundingClientRect(); return [r.left, r.top]")
        points = np.array(browser.run(f"return {rows.tolist()}.map(explorer.toPixel)")) + shift
        assert near(tmp_path / "before.png", points[0], BLUE)
        (left, top), (right, bottom) = points.min(0) - 12, points.max(0) + 12
        browser.drag((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
        browser.wait(lambda: "download CSV" in told())
        assert browser.run("return explorer.selectedRows()") == rows.tolist()
        assert f"{len(rows)} cells selected" in told()
        assert "100.0 %" in told()
        assert re.search(r"proteins above the other cells, measured\s+.*\n?\s*CD19", told())

        # Download them.
        browser.run("document.getElementById('download').click()")
        file = tmp_path / "selection.csv"
        browser.wait(file.exists)
        table = list(csv.DictReader(file.read_text().splitlines()))
        assert [row["cell"] for row in table] == list(adata.obs_names[rows])
        assert {row["cell_type_pred"] for row in table} == {"B"}

        # A category is selected by a click, whatever it is called; a protein is coloured by.
        browser.run("document.querySelectorAll('#legend li button')[2].click()")
        third = (adata.obs["cell_type_pred"] == TYPES[2]).sum()
        browser.wait(lambda: f"{third} cells selected" in told())
        assert TYPES[2] in told()
        browser.run("const m = document.getElementById('field'); m.value = 'predicted'; m.onchange()")
        browser.run("const p = document.getElementById('protein'); p.value = 'CD4'; p.onchange()")
        browser.wait(lambda: "CD4, predicted" in told("#legend"))
        assert cells.UNDETERMINED in told("#legend")
        assert browser.complaints() == []


def near(picture, place, colour):
    """Tell whether a pixel has a colour, but for how transparent points are."""
    pixel = matplotlib.image.imread(picture)[int(place[1]), int(place[0]), :3] * 255
    return np.abs(pixel - colour).max() < 60


def test_command_says_how_large_the_page_is(written, monkeypatch, capsys):
    written.unlink()
    monkeypatch.setattr(sys, "argv", ["scfusion", "explore", str(written.with_suffix(".h5ad"))])
    main()
    assert re.search(r"wrote .*cells\.html, 0\.\d MiB; open it in a browser", capsys.readouterr().out)
