"""The readout in units of the study: its components, its genes and its networks."""

import numpy as np
import torch

from scfusion_fm.inference.study_units import StudyUnits
from scfusion_fm.model.studies_scfusion_ttt import StudyCoordinates, StudyReadout
from scfusion_fm.tasks.starts.studies import _train_networks, choose_study_genes

N, K, C = 400, 30, 3


def make_studies(seed=0):
    """Make studies of one model of three coordinates, each of which lacks other genes."""
    rng = np.random.default_rng(seed)
    loadings, parts, told = rng.normal(size=(K, C)), [], []
    for number in range(4):
        seen = np.arange(K) % 4 != number
        cells = rng.normal(size=(N, C)) @ loadings.T + 0.5 * rng.normal(size=(N, K))
        parts.append(np.where(seen, cells, 0.0).astype(np.float32))
        told.append(seen)
    return loadings, parts, told


def test_coordinates_are_their_mean_given_the_measured_genes():
    """As in the joint normal distribution of genes and coordinates."""
    truth, parts, told = make_studies()
    module = StudyCoordinates(list(range(K)), C).double()
    module.loadings.copy_(torch.from_numpy(truth))
    module.noise.fill_(0.25)
    scaled = torch.from_numpy(np.concatenate([parts[0][:5], parts[1][:5]])).double()
    seen = torch.from_numpy(np.repeat(np.stack(told[:2]), 5, 0))
    for cell, own, found in zip(scaled.numpy(), seen.numpy(), module(scaled, seen).numpy(), strict=True):
        covariance = truth[own] @ truth[own].T + 0.25 * np.eye(own.sum())
        np.testing.assert_allclose(found, truth[own].T @ np.linalg.solve(covariance, cell[own]), atol=1e-9)
    torch.testing.assert_close(module(scaled[:5], seen[:5]), module(scaled, seen)[:5])


def test_genes_that_vary_in_many_studies_and_own_genes_are_read(monkeypatch):
    monkeypatch.setattr("scfusion_fm.tasks.starts.studies.VARYING_GENES", 2)
    units = [
        StudyUnits(torch.zeros(2, 3), torch.tensor(x).view(2, 3))
        for x in ([3.0, 2, 1, 0.5, 0, 0], [0, 2.0, 1, 0.5, 0, 0])
    ]
    np.testing.assert_array_equal(choose_study_genes(units, np.array([3, 4, -1])), [0, 1, 3])


def test_networks_learn_from_coordinates_and_own_genes_and_ignore_what_was_not_measured():
    torch.manual_seed(0)
    readout = StudyReadout(list(range(8)), [0, 1, 2], C, [16], 3)
    coordinates, own = torch.randn(600, C), torch.randn(600, 3)
    targets = torch.stack([coordinates[:, 0], torch.zeros(600), torch.zeros(600)], 1) + own * torch.tensor([0, 0.8, 0])
    observed = torch.ones_like(targets, dtype=torch.bool)
    observed[::2, 0] = False
    targets[::2, 0] = 1e3
    cells = (coordinates, own, targets, observed)
    train, val = (tuple(part[rows] for part in cells) for rows in (slice(500), slice(500, None)))
    epochs = _train_networks(readout, train, val, 0, None)
    assert epochs > 1
    with torch.no_grad():
        found = readout.predict(coordinates.expand(3, -1, -1), own.expand(3, -1, -1))
    assert not torch.equal(found[0], found[1])
    error = (found.mean(0) - targets)[501::2].square().mean(0)
    assert (error < torch.tensor([0.1, 0.05, 0.05])).all()
    before = [p.clone() for p in readout.parameters()]
    _train_networks(readout, train, val, 0, None)
    assert all(torch.equal(a, b) for a, b in zip(before, readout.parameters(), strict=True))
    assert _train_networks(readout, train, None, 0, 2.0) == 2.0
