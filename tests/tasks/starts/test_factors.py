import numpy as np
import pytest

from scfusion_fm.tasks.starts.factors import StudyPart, fit_factors

N, K, C = 400, 30, 3


def make_studies(noise):
    """Make studies of one model of three factors, each of which lacks other genes."""
    rng = np.random.default_rng(0)
    loadings, parts = rng.normal(size=(K, C)), []
    for number in range(4):
        told = np.arange(K) % 4 != number
        cells = rng.normal(size=(N, C)) @ loadings.T + np.sqrt(noise) * rng.normal(size=(N, K))
        parts.append(StudyPart(np.where(told, cells, 0.0).astype(np.float32), told, np.ones(N, np.float32)))
    return loadings, parts


@pytest.mark.parametrize("noise", [np.full(K, 0.25), np.linspace(0.1, 0.5, K)])
@pytest.mark.parametrize("isotropic", [True, False])
def test_factors_are_found_from_studies_that_lack_genes(monkeypatch, noise, isotropic):
    """The maximum of the likelihood is at the truth, with many cells: covariance and noise, for any rotation."""
    monkeypatch.setattr("scfusion_fm.tasks.starts.factors.ITERATIONS", 300)
    truth, parts = make_studies(noise)
    found, rest = fit_factors(parts, C, 1e-3, isotropic)
    np.testing.assert_allclose(found @ found.T, truth @ truth.T, atol=0.15 * np.abs(truth @ truth.T).max())
    expected = np.full(K, noise.mean()) if isotropic else noise
    np.testing.assert_allclose(rest, expected, rtol=0.1 if isotropic else 0.25)


def test_a_weight_counts_as_so_many_cells_and_a_gene_that_nobody_told_has_no_loading():
    _, parts = make_studies(np.full(K, 0.25))
    parts = [StudyPart(np.where(np.arange(K) > 0, p.values, 0), p.told & (np.arange(K) > 0), p.weights) for p in parts]
    single = [StudyPart(p.values[:200], p.told, np.full(200, 2.0, np.float32)) for p in parts]
    twice = [StudyPart(np.repeat(p.values[:200], 2, 0), p.told, np.ones(400, np.float32)) for p in parts]
    (found, noise), (expected, _) = (fit_factors(given, C, 1e-3, False) for given in (single, twice))
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)
    assert (found[0] == 0).all()
    assert noise[0] == 1e-3
    assert [x.tobytes() for x in fit_factors(single, C, 1e-3, False)] == [x.tobytes() for x in (found, noise)]


@pytest.mark.parametrize("cells", [1, 2])
def test_fewer_cells_than_factors_give_fewer(cells):
    _, parts = make_studies(np.full(K, 0.25))
    few = [StudyPart(parts[0].values[:cells], parts[0].told, np.ones(cells, np.float32))]
    assert fit_factors(few, C, 1e-3, True)[0].shape == (K, cells)
