"""A readout of proteins from genes in units of the study, fitted on several studies.

Letters: n cells, S studies, K genes that are read, C coordinates, M members, P proteins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator
from scfusion_fm.inference.study_units import StudyUnits, average_units
from scfusion_fm.model.studies_scfusion_ttt import StudyReadout
from scfusion_fm.tasks.starts.classifier import choose_cells
from scfusion_fm.tasks.starts.factors import StudyPart, fit_factors
from scfusion_fm.training.components import prepare_parts

VARYING_GENES, HIDDEN_SIZES, NUM_MEMBERS = 2000, (256, 128), 3
LEAST_NOISE = 1e-3
BATCH_SIZE, LEARNING_RATE, OWN_LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 128, 1e-3, 1e-2, 0.01, 0.3
MOST_EPOCHS, PATIENCE = 100, 5


@dataclass(frozen=True)
class Studies:
    """Names of the studies of all cells (n,), and the units of each study."""

    names: NDArray[np.str_]
    units: dict[str, StudyUnits]


@dataclass(frozen=True)
class StudyTargets:
    """
    What is learned of all cells.

    Attributes
    ----------
    values, observed
        (n, P) in the units that studies share, and where they were measured.
    levels, deviations
        (P,) of each protein in the average study; 0 for one that no study measured.
    """

    values: NDArray[np.float32]
    observed: NDArray[np.bool_]
    levels: NDArray[np.float32]
    deviations: NDArray[np.float32]


def choose_study_genes(units: list[StudyUnits], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """
    Choose the places of the genes that vary most within studies, and those of the own genes of proteins.

    Parameters
    ----------
    units
        Of the studies that are trained on.
    own
        Places of own genes, -1 for none.

    Notes
    -----
    Of each study the genes are ranked, from 1 for the one that varies most to 0 for that after the last of
    `VARYING_GENES`; the sum over studies decides, so that a gene of many studies comes before one of few.
    """
    points = np.zeros(units[0].deviations.numel())
    for unit in units:
        spread = unit.deviations.flatten().numpy()
        order = np.argsort(-spread, kind="stable")[:VARYING_GENES]
        points[order] += np.where(spread[order] > 0, 1 - np.arange(len(order)) / VARYING_GENES, 0.0)
    chosen = np.argsort(-points, kind="stable")[:VARYING_GENES]
    varies = np.stack([unit.deviations.flatten().numpy() > 0 for unit in units]).any(0)
    wanted = own[own >= 0]
    return np.union1d(chosen[points[chosen] > 0], wanted[varies[wanted]])


def fit_study_readout(
    model: PreTrainedModel,
    collator: CellCollator,
    targets: StudyTargets,
    partition: Partition,
    studies: Studies,
    seed: int,
    epochs: float | None = None,
) -> float:
    """
    Fit the readout of a model, in place; the networks stop by the validation cells.

    Parameters
    ----------
    model
        Model with `study_readout`.
    collator
        How to prepare cells, whole and without random choices.
    targets
        Of all cells.
    partition
        Which cells train, and which stop the training; without these, it is as long as `epochs`.
    studies
        Of which study each cell is.
    seed
        Of weights, order and dropout.
    epochs
        Passes over the training cells where there are no validation cells.

    Returns
    -------
    Passes over the training cells after which the networks were best, the mean over them.
    """
    readout, train = model.study_readout, choose_cells(partition.train, seed)
    units = [studies.units[name] for name in np.unique(studies.names[train])]
    readout.levels.copy_(torch.from_numpy(targets.levels))
    readout.deviations.copy_(torch.from_numpy(targets.deviations))
    scaled, told = _read_by_study(model, collator, train, studies, readout.coordinates.standardise)
    groups = [np.flatnonzero(studies.names[train] == name) for name in np.unique(studies.names[train])]
    parts = [StudyPart(scaled[rows].numpy(), told[rows[0]].numpy(), np.ones(len(rows), np.float32)) for rows in groups]
    number = min(readout.coordinates.loadings.shape[1], len(train) - 1, scaled.shape[1])
    loadings, noise = fit_factors(parts, number, LEAST_NOISE, isotropic=True)
    readout.coordinates.loadings[:, :number] = torch.from_numpy(loadings).float()
    readout.coordinates.noise.fill_(float(noise[0]))
    del scaled, told, parts
    cells = _read_cells(model, collator, train, studies, targets)
    val = None if epochs is not None else _read_cells(model, collator, partition.val, studies, targets)
    best = _train_networks(readout, cells, val, seed, epochs)
    usual = average_units(units)
    model.adapt(usual.means, usual.deviations)
    return best


def _read_by_study(
    model: PreTrainedModel, collator: CellCollator, rows: NDArray[np.int64], studies: Studies, read: Callable
) -> tuple[Tensor, ...]:
    """Give what `read` makes of genes and where they were observed, for cells in the units of their studies."""
    names, found, order = studies.names[rows], [], []
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        order.append(own)
        with torch.no_grad(), studies.units[name].hold(model):
            for batch in prepare_parts(collator, rows[own]):
                found.append(read(*(batch[key].to(model.device) for key in ("rna_values", "rna_observed"))))
    back = torch.from_numpy(np.argsort(np.concatenate(order), kind="stable"))
    return tuple(torch.cat(parts).cpu()[back] for parts in zip(*found, strict=True))


def _read_cells(
    model: PreTrainedModel, collator: CellCollator, rows: NDArray[np.int64], studies: Studies, targets: StudyTargets
) -> tuple[Tensor, ...]:
    """Give coordinates (n, C), own genes (n, P), targets in deviations of each protein, and where they are, (n, P)."""
    observed = targets.observed[rows] & (targets.deviations > 0)
    scaled = (targets.values[rows] - targets.levels) / np.where(targets.deviations > 0, targets.deviations, 1.0)
    known = (torch.from_numpy(np.where(observed, scaled, 0.0)).float(), torch.from_numpy(observed))
    return (*_read_by_study(model, collator, rows, studies, model.study_readout.read), *known)


def _train_networks(
    readout: StudyReadout, cells: tuple[Tensor, ...], val: tuple[Tensor, ...] | None, seed: int, epochs: float | None
) -> float:
    """Train all members at once, each with cells in its own order; give after how many passes they were best."""
    device, readout = readout.own_weight.device, readout.cpu()
    generator = torch.Generator().manual_seed(seed)
    _draw_weights(readout, generator)
    readout.requires_grad_(True)
    networks = [*readout.weights, *readout.biases]
    groups = [{"params": networks}, {"params": [readout.own_weight], "lr": OWN_LEARNING_RATE, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    trained = [*networks, readout.own_weight]
    members = len(readout.own_weight)
    best = [parameter.detach().clone() for parameter in trained]
    lowest, waited, reached = (torch.full((members,), x) for x in (torch.inf, 0.0, 0.0))
    for epoch in range(1, MOST_EPOCHS + 1 if epochs is None else round(epochs) + 1):
        _train_epoch(readout, optimizer, cells, generator)
        with torch.no_grad():
            now = -torch.full((members,), float(epoch)) if val is None else _measure(readout, val, None)
        better = now < lowest
        lowest, waited = torch.where(better, now, lowest), torch.where(better, 0.0, waited + 1)
        reached[better] = float(epoch)
        for kept, parameter in zip(best, trained, strict=True):
            kept[better] = parameter.detach()[better]
        if (waited >= PATIENCE).all():
            break
    with torch.no_grad():
        for kept, parameter in zip(best, trained, strict=True):
            parameter.copy_(kept)
    readout.requires_grad_(False)
    readout.to(device)
    return float(reached.mean())


def _draw_weights(readout: StudyReadout, generator: torch.Generator) -> None:
    with torch.no_grad():
        for start in (*readout.biases, readout.own_weight):
            start.zero_()
        for weight in readout.weights:
            bound = weight.shape[1] ** -0.5
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)


def _train_epoch(
    readout: StudyReadout, optimizer: torch.optim.Optimizer, cells: tuple[Tensor, ...], generator: torch.Generator
) -> None:
    """Pass once over the cells."""
    members = len(readout.own_weight)
    orders = torch.stack([torch.randperm(len(cells[0]), generator=generator) for _ in range(members)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # of dropout
        for rows in orders.split(BATCH_SIZE, dim=1):
            optimizer.zero_grad()
            _measure(readout, cells, rows, DROPOUT).sum().backward()
            optimizer.step()


def _measure(readout: StudyReadout, cells: tuple[Tensor, ...], rows: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Give the mean squared error of each member (M,) over what was observed of its rows (M, B), or of all cells."""
    members = len(readout.own_weight)
    coordinates, own, targets, observed = (
        part.expand(members, *part.shape) if rows is None else part[rows] for part in cells
    )
    error = torch.square(readout.predict(coordinates, own, dropout) - targets) * observed
    return error.sum((1, 2)) / observed.sum((1, 2)).clamp_min(1)
