"""The models that come with the package: whole, small, with a card, and sensible on the demo file."""

import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
from launch import ROOT

import scfusion_fm as sf
from scfusion_fm.comparison.study_figures import load_figures
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS
from scfusion_fm.inference.model_files import find_model, list_shipped, verify_model
from scfusion_fm.inference.ship import FIGURES, LARGEST_SHIPPED

NAME = "scfusion-human-blood"
NAMES = [NAME, f"{NAME}-proteins", f"{NAME}-types"]
NUM_CELLS = 300

# The demo has a part of the genes.
pytestmark = pytest.mark.filterwarnings("ignore::scfusion_fm.ScFusionWarning")


@pytest.fixture(scope="module")
def cells():
    """Some of the demo's cells, and a file of them."""
    with warnings.catch_warnings(action="ignore"):
        return mudata.read_h5mu(ROOT / "data" / "demo_teaseq_pbmc.h5mu")[:NUM_CELLS].copy()


@pytest.fixture
def rna(cells):
    return cells["rna"].copy()


def test_these_models_come_with_the_package():
    assert list(list_shipped()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_whole_small_and_tells_of_itself(name):
    path = find_model(name)
    verify_model(path)
    assert sum(file.stat().st_size for file in path.iterdir()) <= LARGEST_SHIPPED
    assert not list(path.glob("*.py"))
    assert (path / SEEN_CELLS).is_file()
    card = (path / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        "CC BY 4.0",
        "GPL-3",
        "## Figures by study",
        "## Limits",
        "Estimated, not measured",
    ):
        assert part in card
    figures = load_figures(path / FIGURES)
    assert {figure.kind for figure in figures} == {"model", "baseline"}
    for figure in figures:
        assert figure.study in card
        assert figure.low <= figure.mean <= figure.high


def test_types_of_the_demo_are_right_and_shuffled_genes_are_unknown(rna):
    random, mixed = np.random.default_rng(0), rna.copy()
    values = mixed.X.toarray()
    values[:50] = random.permuted(values[:50], axis=1)
    mixed.X = values
    called = sf.annotate(mixed, NAMES[2], reject_rate=0.05, copy=True).obs["cell_type_pred"].astype(str)
    assert (called[:50] == "unknown").mean() > 0.5
    assert (called[50:] == "unknown").mean() < 0.1
    assert (called[50:] == rna.obs["cell_type_coarse"].astype(str)[50:]).mean() > 0.85


def test_proteins_of_the_demo_follow_what_was_measured(cells, rna):
    found = sf.predict_protein(rna, NAMES[1], proteins=["CD3", "CD4", "CD8a", "CD14", "CD19"], copy=True)
    predicted = pd.DataFrame(found.obsm["protein_scfusion_ttt"], index=rna.obs_names)
    counts = np.log1p(cells["adt"].to_df())
    names = {name: next(c for c in counts if c.upper().split("-")[0] == name.upper()) for name in predicted}
    r = [np.corrcoef(predicted[name], counts[column])[0, 1] for name, column in names.items()]
    assert np.mean(r) > 0.5


def test_cells_of_the_demo_were_seen_and_embedded(cells, rna):
    assert sf.seen(cells, NAME).seen == NUM_CELLS  # by their proteins; of the genes, the demo has a part
    embedding = sf.embed(rna, NAME, copy=True).obsm["X_scfusion_ttt"]
    is_b = (rna.obs["cell_type_coarse"] == "B").to_numpy()
    within, between = (
        np.linalg.norm(embedding[is_b].mean(0) - x.mean(0)) for x in (embedding[is_b][::2], embedding[~is_b])
    )
    assert between > 3 * within
