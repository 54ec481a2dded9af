"""Deviations from the mean of a file: stainings do not matter, and files that tell little get wide intervals."""

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.deviations import (
    LEAST_REST,
    SHARE,
    FileScale,
    find_ends,
    measure_deviations,
    relative_quantiles,
    standardise_group,
)


def make_group(seed, explained=0.5, level=0.0, scale=1.0, n=2000):
    """Two proteins of which a share of the variance is explained, stained at some level and scale."""
    rng = np.random.default_rng(seed)
    known, rest = rng.normal(size=(2, n, 2)) * np.sqrt([[[explained]], [[1 - explained]]])
    return (known + rest) * scale + level, known


def test_neither_level_nor_scale_of_a_staining_matters():
    plain, other = make_group(0), make_group(0, level=3.0, scale=1.7)
    ones = np.ones(2)
    shifted = (other[0], other[1] + 5.0)
    for given in (other, shifted):
        for found, expected in zip(standardise_group(*given, ones), standardise_group(*plain, ones), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("explained", [0.1, 0.4, 0.7])
def test_intervals_from_other_groups_hold_where_rna_tells_more_or_less(explained):
    parts = [make_group(seed, share, seed % 3) for seed, share in enumerate((0.2, 0.4, 0.6, 0.5))]
    quantiles, deviations = relative_quantiles(parts, (0.5, 0.9))
    measured, predicted = make_group(9, explained, level=-2.0, scale=1.7)
    truth, guess, rest = standardise_group(measured, predicted * deviations, deviations)
    lower, upper = find_ends(guess, (quantiles * rest)[:, None])
    held = (truth >= lower) & (truth <= upper)
    np.testing.assert_allclose(held.mean(1), [[0.5] * 2, [0.9] * 2], atol=0.05)
    np.testing.assert_allclose(rest, (truth - SHARE * guess).std(0), atol=0.02)


def test_deviations_are_those_of_groups_in_which_a_protein_varies():
    (first, known), (second, _) = make_group(0, scale=1.0), make_group(1, scale=3.0)
    second[:, 1] = 4.0
    third = np.full_like(first, np.nan)
    found = measure_deviations([first, second, third])
    np.testing.assert_allclose(found, [(first[:, 0].std() + second[:, 0].std()) / 2, first[:, 1].std()])
    assert np.isnan(measure_deviations([third])).all()
    quantiles, _ = relative_quantiles([(first, known), (second, known), (third, known)], (0.9,))
    assert np.isfinite(quantiles[0, 0])
    assert np.isinf(quantiles[0, 1])  # varies in one group alone


def test_no_prediction_is_trusted_to_leave_nothing():
    scale = FileScale.of(np.array([1.0, 1.0]), np.array([9.0, 0.5]), np.array([2.0, 1.0]))
    np.testing.assert_allclose(scale.rest, np.sqrt([LEAST_REST, 1 - 0.5 * (2 * SHARE - SHARE**2)]))
    np.testing.assert_allclose(scale.apply(np.array([[3.0, 0.0]])), [[1.0, -1.0]])
    lower, upper = find_ends(np.array([[3.0, 0.5]]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(lower, [[3 * SHARE - 1, 0.5 * SHARE - 1]])
    np.testing.assert_allclose(upper, [[3.0, 0.5 * SHARE + 1]])  # the prediction itself is always in
