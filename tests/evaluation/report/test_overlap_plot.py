"""The picture of shared panels: shares of the row's panel, numbers, and names as long as they are readable."""

import numpy as np
import pytest

from scfusion_fm.evaluation.report.overlap_plot import MAX_NAMED, MAX_NUMBERED, plot_overlap

GENES = np.array([[100, 50, 0], [50, 12_345, 0], [0, 0, 0]])


def test_colour_is_the_share_of_the_panel_of_the_row():
    figure = plot_overlap(["a", "b", "c"], GENES, np.diag([3, 0, 5]))
    genes, proteins = figure.axes[:2]
    shares = genes.images[0].get_array()
    np.testing.assert_allclose(shares[0], [1, 0.5, np.nan])
    np.testing.assert_allclose(shares[1], [50 / 12_345, 1, np.nan])
    assert np.isnan(np.asarray(shares[2], float)).all()  # a data set without genes
    assert [text.get_text() for text in genes.texts] == ["100", "50", "50", "12k"]
    assert [text.get_text() for text in proteins.texts] == ["3", "0", "0", "5"]


@pytest.mark.parametrize("size", [1, MAX_NUMBERED, MAX_NUMBERED + 1, MAX_NAMED, MAX_NAMED + 1])
def test_names_and_numbers_are_shown_while_there_is_room(size):
    names = [f"data set {i} {'x' * 30}" for i in range(size)]
    figure = plot_overlap(names, np.eye(size), np.eye(size))
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == (size if size <= MAX_NAMED else 0)
    assert all(len(label.get_text()) <= 28 for label in axes.get_yticklabels())
    assert len(axes.texts) == (size**2 if size <= MAX_NUMBERED else 0)
    figure.canvas.draw()


def test_shapes_belong_to_the_names():
    with pytest.raises(ValueError, match=r"`shared_proteins` must have the shape \(3, 3\), got \(2, 2\)"):
        plot_overlap(["a", "b", "c"], GENES, np.eye(2))
