"""Deviations from the mean of a file: stainings do not matter, and files that tell little get wide intervals."""

import numpy as np
import pytest

from scfusion_fm.evaluation.calibration.deviations import (
    LEAST_REST,
    FileScale,
    measure_deviations,
    relative_errors,
    relative_quantiles,
)


def make_group(seed, explained=0.5, level=0.0, scale=1.0, n=2000):
    """Two proteins of which a share of the variance is explained, stained at some level and scale."""
    rng = np.random.default_rng(seed)
    known, rest = rng.normal(size=(2, n, 2)) * np.sqrt([[[explained]], [[1 - explained]]])
    return (known + rest) * scale + level, known


def test_neither_level_nor_scale_of_a_staining_matters():
    plain, other = make_group(0), make_group(0, level=3.0, scale=1.7)
    ones = np.ones(2)
    for found, expected in zip(relative_errors(*other, ones), relative_errors(*plain, ones), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    shifted = relative_errors(plain[0], plain[1] + 5.0, ones)
    np.testing.assert_allclose(shifted[0], relative_errors(*plain, ones)[0], atol=1e-9)


@pytest.mark.parametrize("explained", [0.1, 0.4, 0.7])
def test_intervals_from_other_groups_hold_where_rna_tells_more_or_less(explained):
    parts = [make_group(seed, share, seed % 3) for seed, share in enumerate((0.2, 0.4, 0.6, 0.5))]
    quantiles, deviations = relative_quantiles(parts, (0.5, 0.9))
    measured, predicted = make_group(9, explained, level=-2.0, scale=1.7)
    errors, rest = relative_errors(measured, predicted * deviations, deviations)
    np.testing.assert_allclose((errors <= (quantiles * rest)[:, None]).mean(1), [[0.5] * 2, [0.9] * 2], atol=0.035)
    np.testing.assert_allclose(rest, np.sqrt(1 - explained), atol=0.02)


def test_deviations_are_those_of_groups_in_which_a_protein_varies():
    (first, known), (second, _) = make_group(0, scale=1.0), make_group(1, scale=3.0)
    second[:, 1] = 4.0
    third = np.full_like(first, np.nan)
    found = measure_deviations([(first, known), (second, known), (third, known)])
    np.testing.assert_allclose(found, [(first[:, 0].std() + second[:, 0].std()) / 2, first[:, 1].std()])
    assert np.isnan(measure_deviations([(third, known)])).all()
    quantiles, _ = relative_quantiles([(first, known), (second, known), (third, known)], (0.9,))
    assert np.isfinite(quantiles[0, 0])
    assert np.isinf(quantiles[0, 1])  # varies in one group alone


def test_no_prediction_is_trusted_to_leave_nothing():
    scale = FileScale.of(np.array([1.0, 1.0]), np.array([9.0, 0.5]), np.array([2.0, 1.0]))
    np.testing.assert_allclose(scale.rest, np.sqrt([LEAST_REST, 0.5]))
    np.testing.assert_allclose(scale.apply(np.array([[3.0, 0.0]])), [[1.0, -1.0]])
