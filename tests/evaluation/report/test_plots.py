import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.report import plots


@pytest.fixture
def quick_layout(monkeypatch):
    """Two dimensions of the embedding instead of the UMAP, whose compilation takes long."""
    monkeypatch.setattr(plots, "compute_umap", lambda embedding, seed=0: np.asarray(embedding)[:, :2])


@pytest.fixture
def records():
    step = np.arange(1, 101)
    train = pd.DataFrame({"step": step, "split": "train", "loss": 5.0 / step, "rna_loss": 3.0 / step})
    val = train.iloc[9::10].assign(split="val")
    return pd.concat([train, val]).assign(adt_loss=np.nan)


def read_texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def read_legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def fits_on_the_page(figure: Figure) -> bool:
    """Return whether all that is drawn, text included, lies within the picture's edges."""
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(drawn.min) > -0.02 and drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02


def test_the_check_of_the_edges_sees_what_is_cut_off(records):
    figure = plots.plot_losses(records)
    assert fits_on_the_page(figure)
    figure.axes[0].set_ylabel("a label that is much longer than the figure is high, " * 3)
    assert not fits_on_the_page(figure)


def test_losses_get_one_panel_each_and_none_where_there_is_no_value(records):
    figure = plots.plot_losses(records)
    assert [axes.get_title() for axes in figure.axes] == ["Total loss", "RNA loss"]
    assert fits_on_the_page(figure)


def test_both_curves_show_the_recorded_values(records):
    figure = plots.plot_losses(records.sample(frac=1, random_state=0))
    raw, smooth, val = figure.axes[0].lines
    np.testing.assert_allclose(raw.get_xydata(), records.loc[records["split"] == "train", ["step", "loss"]])
    np.testing.assert_allclose(val.get_xydata(), records.loc[records["split"] == "val", ["step", "loss"]])
    assert len(smooth.get_xdata()) == 100
    assert read_legend(figure) == ["training (mean of 3 records)", "validation"]


def test_the_running_mean_does_not_lag(records):
    records = records.assign(loss=records["step"].astype(float))
    smooth = plots.plot_losses(records).axes[0].lines[1].get_xydata()
    np.testing.assert_allclose(smooth[1:-1, 0], smooth[1:-1, 1])


def test_a_run_without_validation_or_with_one_step_can_be_plotted(records):
    figure = plots.plot_losses(records[records["split"] == "train"].head(1))
    assert read_legend(figure) == ["training"]
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_losses_that_are_not_there_are_refused(records):
    with pytest.raises(ValueError, match="`metrics` must have the column 'adt_loss'"):
        plots.plot_losses(records.drop(columns="adt_loss"))
    with pytest.raises(ValueError, match="`metrics` must hold at least one loss"):
        plots.plot_losses(records.assign(loss=np.nan, rna_loss=np.nan))


def test_umap_keeps_groups_apart_and_repeats_itself():
    labels = np.repeat([0, 1], 30)
    embedding = np.random.default_rng(0).normal(size=(60, 5)) + 50 * labels[:, None]
    positions = plots.compute_umap(embedding, seed=3)
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(positions, plots.compute_umap(embedding, seed=3))
    assert plots.compute_umap(embedding[:4]).shape == (4, 2)


def test_a_umap_of_hardly_any_cells_is_refused():
    with pytest.raises(ValueError, match="at least 4 cells, got 3"):
        plots.compute_umap(np.zeros((3, 2)))


@pytest.mark.usefixtures("quick_layout")
def test_every_cell_type_is_in_the_legend_with_its_count_and_a_style_of_its_own():
    labels = np.repeat([f"type {i:02d}" for i in range(30)], np.arange(30, 0, -1))
    embedding = np.random.default_rng(0).normal(size=(len(labels), 3))
    figure = plots.plot_umap(embedding, labels, "title")
    assert read_legend(figure) == [f"type {i:02d} ({30 - i})" for i in range(30)]
    groups = figure.axes[0].collections
    styles = {(group.get_facecolor().tobytes(), group.get_paths()[0].vertices.tobytes()) for group in groups}
    assert len(styles) == 30
    assert fits_on_the_page(figure)


@pytest.mark.usefixtures("quick_layout")
def test_types_beyond_the_styles_share_one_entry():
    labels = np.array([f"type {i:02d}" for i in range(50)] * 2)
    figure = plots.plot_umap(np.random.default_rng(0).normal(size=(100, 2)), labels, "title")
    assert read_legend(figure)[-1] == "8 rarer types (16)"
    assert sum(len(group.get_offsets()) for group in figure.axes[0].collections) == 100


@pytest.mark.usefixtures("quick_layout")
def test_cells_that_are_not_coloured_are_grey_and_carry_no_label():
    labels, coloured = np.array(["a", "b"] * 10), np.arange(20) < 6
    figure = plots.plot_umap(np.random.default_rng(0).normal(size=(20, 2)), labels, "title", coloured)
    assert read_legend(figure) == ["other cells (14)", "a (3)", "b (3)"]


@pytest.mark.usefixtures("quick_layout")
def test_of_many_cells_a_sample_is_drawn(monkeypatch):
    monkeypatch.setattr(plots, "MAX_UMAP_CELLS", 50)
    figure = plots.plot_umap(np.random.default_rng(0).normal(size=(200, 2)), np.array(["a", "b"] * 100), "title")
    assert sum(len(group.get_offsets()) for group in figure.axes[0].collections) == 50


def test_an_embedding_and_labels_of_different_cells_are_refused():
    with pytest.raises(ValueError, match="must be of one length, got 5, 4 and 4"):
        plots.plot_umap(np.zeros((5, 2)), np.array(list("abab")), "title")


def test_confusions_show_counts_and_shares_of_the_true_type():
    labels, predicted = np.array(list("aaaabb")), np.array(list("aaabxb"))
    figure = plots.plot_confusion(labels, predicted)
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a (4)", "b (2)"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "x"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0.5, 0.5]])
    assert read_texts(figure) == ["3", "1", "1", "1"]


def test_long_names_and_dollar_signs_stay_inside_the_picture():
    names = np.array([f"a very long name of a cell type, number {i} of many" for i in range(25)] + ["$_^$"])
    figure = plots.plot_confusion(names, names)
    assert fits_on_the_page(figure)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert max(map(len, ticks)) <= 28
    assert len(set(ticks)) == 26


@pytest.mark.parametrize(("n_proteins", "shown"), [(1, 1), (2, 2), (4, 4), (6, 6), (46, 6), (120, 6)])
def test_proteins_are_shown_from_best_to_worst(n_proteins, shown):
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(50, n_proteins))
    predicted = measured * np.linspace(0, 2, n_proteins) + rng.normal(size=measured.shape)
    scores = protein_scores(measured, predicted, np.ones_like(measured, bool))[0]
    names = [f"CD{i}" for i in range(n_proteins)]
    figure = plots.plot_proteins(measured, predicted, names, scores, scores["pearson"].rename("PCA + ridge"))
    panels = [axes for axes in figure.axes[:6] if axes.get_title()]
    assert len(panels) == shown
    ranking = scores["pearson"].sort_values(ascending=False)
    assert panels[0].get_title() == f"CD{ranking.index[0]}   (best, r = {ranking.iloc[0]:.2f})"
    if n_proteins > 2:
        assert panels[-1].get_title() == f"CD{ranking.index[-1]}   (worst, r = {ranking.iloc[-1]:.2f})"
    bars = figure.axes[-1].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], ranking)
    assert fits_on_the_page(figure)


def test_best_middle_and_worst_never_repeat_a_protein():
    for n in range(1, 12):
        chosen = plots.choose_best_middle_worst(np.arange(n)[::-1])
        positions = [position for position, _ in chosen]
        assert positions == sorted(set(positions), reverse=True)
        assert len(chosen) == min(n, 6)


def test_unmeasured_values_and_undefined_correlations_are_left_out():
    rng = np.random.default_rng(0)
    measured, predicted = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    measured[:10, 0], measured[:, 1] = np.nan, 1.0
    scores = protein_scores(np.nan_to_num(measured), predicted, np.isfinite(measured))[0]
    figure = plots.plot_proteins(measured, predicted, ["a", "b", "c"], scores)
    panels = {axes.get_title()[0]: axes for axes in figure.axes[:6] if axes.get_title()}
    assert set(panels) == {"a", "c"}
    assert len(panels["a"].collections[0].get_offsets()) == 20


def test_proteins_that_do_not_fit_are_refused():
    scores = pd.DataFrame({"pearson": [0.5, 0.6]})
    with pytest.raises(ValueError, match=r"must be \(cells, 2 proteins\), got \(5, 3\) and \(5, 3\)"):
        plots.plot_proteins(np.zeros((5, 3)), np.zeros((5, 3)), ["a", "b"], scores)
    with pytest.raises(ValueError, match="`scores` must hold a Pearson correlation, got none"):
        plots.plot_proteins(np.zeros((5, 2)), np.zeros((5, 2)), ["a", "b"], scores * np.nan)
