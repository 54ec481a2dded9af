"""Regression of any proteins on any others: least squares where nothing is missing, and a file that is checked."""

import numpy as np
import pytest
import safetensors.numpy

from scfusion_fm.inference.panel_regression import PanelRegression

PROTEINS, COORDINATES = 5, 2


def make_regression(**changes):
    """Coordinates and proteins that vary together, and the cells of which they are."""
    rng = np.random.default_rng(0)
    coordinates = rng.normal(size=(400, COORDINATES))
    logs = coordinates @ rng.normal(size=(COORDINATES, PROTEINS)) + 0.3 * rng.normal(size=(400, PROTEINS))
    coordinates -= coordinates.mean(0)
    levels = logs.mean(0)
    joined = np.hstack([coordinates, logs - levels])
    parts = {
        "rna_means": np.zeros(3, np.float32),
        "directions": np.ones((3, COORDINATES), np.float32),
        "levels": levels,
        "covariance": joined.T @ joined / len(joined),
        "known": np.ones(PROTEINS, dtype=bool),
        "penalty": 1e-9,
        "share": 0.5,
    }
    return PanelRegression(**(parts | changes)), coordinates, logs


@pytest.mark.parametrize("visible", [[0, 1, 3], [2], []])
def test_predictions_are_those_of_least_squares_for_any_panel(visible):
    regression, coordinates, logs = make_regression()
    shown = np.zeros(logs.shape, dtype=bool)
    shown[:, visible] = True
    found = regression.predict(coordinates, np.where(shown, logs, np.nan), shown)
    centre = logs[:, visible].mean(1, keepdims=True) if visible else logs.mean(1, keepdims=True)
    inputs = np.hstack([np.ones((len(logs), 1)), coordinates, (logs - centre)[:, visible]])
    expected = inputs @ np.linalg.lstsq(inputs, logs - centre, rcond=None)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_cells_of_several_panels_give_what_each_gives_alone():
    regression, coordinates, logs = make_regression(known=np.arange(PROTEINS) < 4)
    shown = np.random.default_rng(1).random(logs.shape) < 0.5
    found = regression.predict(coordinates[:20], logs[:20], shown[:20])
    alone = [regression.predict(*(x[[i]] for x in (coordinates, logs, shown)))[0] for i in range(20)]
    np.testing.assert_allclose(found, alone, atol=1e-8)


def test_a_file_gives_the_same_and_a_damaged_one_is_refused(tmp_path):
    regression, coordinates, logs = make_regression(penalty=0.3)
    path = tmp_path / "panel_regression.safetensors"
    path.write_bytes(regression.to_bytes())
    again = PanelRegression.load(path)
    shown = np.arange(PROTEINS) < np.full((len(logs), 1), 3)
    before, after = (x.predict(coordinates, logs, shown) for x in (regression, again))
    np.testing.assert_allclose(before, after, atol=1e-4)
    assert again.share == 0.5
    arrays = safetensors.numpy.load(path.read_bytes())
    for changes, message in (
        ({"levels": np.zeros(4, np.float32)}, "must hold finite arrays that fit together"),
        ({"levels": np.full(PROTEINS, np.nan, np.float32)}, "must hold finite arrays that fit together"),
        ({"penalty_and_share": np.array([1.0, 2.0], np.float32)}, "must have a positive penalty and a share in"),
        ({"directions": np.zeros(3, np.float32)}, r"must hold \['covariance', "),
    ):
        path.write_bytes(safetensors.numpy.save(arrays | changes))
        with pytest.raises(ValueError, match=message):
            PanelRegression.load(path)
    with pytest.raises(ValueError, match="must be for the 4 genes and 5 proteins of its model"):
        regression.check_size(4, PROTEINS)
