"""Principal components of cells, which parts of a model start from instead of from random weights.

Letters: n cells, N tokens of S features (genes or proteins), F = N * S, K components.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits
from torch import nn

from scfusion_fm.training.parted import held_whole

Batch = Mapping[str, torch.Tensor]

PART_CELLS = 512  # prepared at a time
SAMPLE_CELLS = 512  # that embeddings are brought to their scale by, about
ITERATIONS = 5  # of the search for components
OVERSAMPLING = 20  # components that are searched for beyond those that are asked for
SPREAD = 10.0  # of the coordinates of a modality: the root of the sum of their variances


@dataclass
class Panels:
    """
    Values of cells of which different features were measured.

    Attributes
    ----------
    values
        (n, F) normalised values; 0 where not measured.
    measured
        (panels, F) 1 where a panel has a feature.
    panel
        (n,) panel of each cell.
    """

    values: sparse.csr_matrix
    measured: NDArray[np.float64]
    panel: NDArray[np.int64]

    def means(self) -> NDArray[np.float64]:
        """Give the mean of each feature over the cells in which it was measured, (F,)."""
        cells = np.bincount(self.panel, minlength=len(self.measured)) @ self.measured
        return np.asarray(self.values.sum(0)).ravel() / np.maximum(cells, 1)

    def deviations(self) -> NDArray[np.float64]:
        """Give the standard deviation of each feature over the cells in which it was measured, (F,); 1 for 0."""
        cells = np.maximum(np.bincount(self.panel, minlength=len(self.measured)) @ self.measured, 1)
        squares = np.asarray(self.values.multiply(self.values).sum(0)).ravel() / cells
        variance = np.maximum(squares - self.means() ** 2, 0.0)
        return np.where(variance > 1e-12, np.sqrt(variance), 1.0)

    def in_units(self, unit: NDArray[np.float64]) -> "Panels":
        """Divide each feature by a unit, (F,)."""
        return Panels((self.values @ sparse.diags(1 / unit)).tocsr(), self.measured, self.panel)

    def coordinates(self, directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the coordinates of the cells around the means, (n, K), along directions (F, K)."""
        return self.values @ directions - (self.measured @ (self.means()[:, None] * directions))[self.panel]

    def components(self, number: int, seed: int) -> NDArray[np.float64]:
        """
        Find the directions of largest variance around the means, (F, K).

        What was not measured counts as the mean. K is at most the number, the cells and the features.

        Notes
        -----
        Randomised subspace iteration (Halko, Martinsson and Tropp 2011), on one thread, so that the result does not
        depend on how many there are.
        """
        means, members = self.means(), sparse.csr_matrix(np.eye(len(self.measured))[self.panel])

        def transposed_times(y: NDArray) -> NDArray:  # (n, k) -> (F, k)
            return self.values.T @ y - means[:, None] * (self.measured.T @ (members.T @ y))

        number = min(number, *self.values.shape)
        width = min(number + OVERSAMPLING, *self.values.shape)
        basis = np.random.default_rng(seed).normal(size=(self.values.shape[1], width))
        with threadpool_limits(1):
            for _ in range(ITERATIONS):
                basis = np.linalg.qr(transposed_times(np.linalg.qr(self.coordinates(basis))[0]))[0]
            rotation = np.linalg.svd(self.coordinates(basis), full_matrices=False)[2]
            return (basis @ rotation.T)[:, :number]


def prepare_parts(prepare: Callable[[NDArray[np.int64]], Batch], rows: NDArray[np.int64]) -> Iterator[Batch]:
    """Prepare cells part by part, since all of them together may not fit in memory."""
    for start in range(0, len(rows), PART_CELLS):
        yield prepare(rows[start : start + PART_CELLS])


def start_from_components(
    model: nn.Module, prepare: Callable[[NDArray[np.int64]], Batch], rows: NDArray[np.int64], seed: int
) -> None:
    """
    Let the mean over the tokens of each modality start as the principal components of a cell, in place.

    Parameters
    ----------
    model
        Base model with random weights.
    prepare
        Gives some cells as the feature extractor prepares them.
    rows
        Training cells to find the components of.
    seed
        Of the search for the components.

    Notes
    -----
    Random weights that embed 20,000 genes, most of them hardly ever expressed, need far more steps than a small atlas
    gives; docs/experiments.md has the comparison. Guarded by tests/training/test_components.py.
    """
    sample = prepare(rows[:: max(1, len(rows) // SAMPLE_CELLS)])
    for name, panels in read_panels(prepare_parts(prepare, rows)).items():
        embedding = getattr(model, f"{name}_embeddings")
        with held_whole(embedding.parameters()):
            shape = (len(embedding.weight), embedding.weight.shape[1] // 2)  # N, S
            observed = sample[f"{name}_observed"].unflatten(1, shape) if name == "adt" else sample[f"{name}_observed"]
            if not panels.measured.any() or not observed.any():
                continue
            embedding.start_from(
                torch.from_numpy(panels.components(model.config.hidden_size, seed)).float().unflatten(0, shape),
                torch.from_numpy(panels.means()).float().unflatten(0, shape),
                sample[f"{name}_values"].reshape(observed.shape),
                observed,
            )


@torch.no_grad()
def start_coordinates(model: nn.Module, batches: Iterable[Batch], seed: int) -> None:
    """
    Let the coordinates that a head reads be those along the principal components of its training cells, in place.

    Parameters
    ----------
    model
        Model with `rna_coordinates`, `adt_coordinates` or both.
    batches
        The training cells, as the feature extractor prepares them.
    seed
        Of the search for the components.

    Notes
    -----
    Proteins are scaled to one variance first: they are few, and each was chosen for what it tells. Genes are not, most
    are noise. The variances of the coordinates of a modality add up to a square of 10: small enough for the usual
    penalties of a linear head, and not whitened, for the last components are mostly noise.
    """
    for name, panels in read_panels(batches).items():
        module = getattr(model, f"{name}_coordinates", None)
        if module is None or not panels.measured.any():
            continue
        unit = panels.deviations() if name == "adt" else np.ones(panels.values.shape[1])
        found = panels.in_units(unit).components(module.directions.shape[-1], seed) / unit[:, None]
        spread = np.sqrt(panels.coordinates(found)[panels.measured.any(1)[panels.panel]].var(0).sum())
        found = torch.from_numpy(found * SPREAD / max(spread, 1e-12)).unflatten(0, module.means.shape)
        module.directions.zero_()
        module.directions[..., : found.shape[-1]] = found.to(module.directions)
        module.means.copy_(torch.from_numpy(panels.means()).unflatten(0, module.means.shape))


def read_panels(batches: Iterable[Batch]) -> dict[str, Panels]:
    """Gather the modalities of prepared cells, with features in the order of the tokens."""
    values: dict[str, list] = {"rna": [], "adt": []}
    panels: dict[str, dict[bytes, int]] = {"rna": {}, "adt": {}}
    numbers: dict[str, list[int]] = {"rna": [], "adt": []}
    for batch in batches:
        for name in values:
            if f"{name}_values" not in batch:
                continue
            observed = batch[f"{name}_observed"].flatten(1)
            values[name].append(
                sparse.csr_matrix(batch[f"{name}_values"].flatten(1).masked_fill(~observed, 0.0).double().numpy())
            )
            for row in np.packbits(observed.numpy(), axis=1):
                numbers[name].append(panels[name].setdefault(row.tobytes(), len(panels[name])))
    found = {}
    for name, parts in values.items():
        if parts:
            count = parts[0].shape[1]
            measured = np.array([np.unpackbits(np.frombuffer(p, np.uint8), count=count) for p in panels[name]])
            found[name] = Panels(sparse.vstack(parts).tocsr(), measured.astype(np.float64), np.array(numbers[name]))
    return found
