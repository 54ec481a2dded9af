"""Made-up cells for benchmarks and tests: any number of them, each a function of (seed, row).

Counts look like those of droplet experiments: gene means are log-normal over four decades, cell types differ in some
genes, seven in ten non-zero counts are 1 and nearly all are below 16. Data sets stand one after the other, each with
its own panel of genes; every third has no proteins.

Letters: B cells, G genes, P proteins, E data sets, K cell types.
"""

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from scfusion_fm.data.hashing import hash_keys, uniform
from scfusion_fm.data.vocabulary.reference import load_antibody_table, load_gene_table
from scfusion_fm.data.vocabulary.vocabulary import order_vocabulary

_GENE, _SHIFT, _MARKER, _PROTEIN, _RNA_PANEL, _ADT_PANEL, _DATASET, _MIXTURE, _KIND, _LIBRARY, _DRAWS = range(31, 42)
_LIBRARY_SPREAD = 0.5  # of the log of the library size


@dataclass(frozen=True)
class SyntheticSettings:
    """
    How many cells to make up, and of what kind.

    Parameters
    ----------
    n_obs
        Cells.
    n_genes
        Genes: the first current ones of the gene table, in genome order.
    density
        Share of non-zero RNA counts, in (0, 0.5].
    n_proteins
        Proteins of the antibody table; 0 for none.
    n_datasets, n_cell_types
        Data sets of different sizes, and cell types whose mixture differs between them.
    seed
        Another seed gives other cells.
    """

    n_obs: int
    n_genes: int = 20_000
    density: float = 0.07
    n_proteins: int = 140
    n_datasets: int = 24
    n_cell_types: int = 40
    seed: int = 0


class SyntheticSource:
    """
    Generate cells by row number.

    Parameters
    ----------
    settings
        How many cells, and of what kind.

    Attributes
    ----------
    vocabulary
        Genes and proteins of the columns.
    dataset_names
        Names of the data sets, in the order of rows.
    rna_panel, adt_panel
        (G, E) and (P, E) what each data set measured.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(self, settings: SyntheticSettings):
        genes = load_gene_table()
        genes = genes.index[genes.status == "current"]
        proteins = sorted(set(load_antibody_table().protein) - {""})
        for name, low, high in (
            ("n_datasets", 1, np.inf),
            ("n_obs", settings.n_datasets, np.inf),
            ("n_genes", 1, len(genes)),
            ("n_proteins", 0, len(proteins)),
            ("n_cell_types", 1, np.inf),
        ):
            if not low <= getattr(settings, name) <= high:
                raise ValueError(f"`{name}` must lie in [{low}, {high}], got {getattr(settings, name)}.")
        if not 0 < settings.density <= 0.5:
            raise ValueError(f"`density` must lie in (0, 0.5], got {settings.density}.")
        n_obs, n_genes, n_proteins = settings.n_obs, settings.n_genes, settings.n_proteins
        n_datasets, self._kinds = settings.n_datasets, settings.n_cell_types
        self.n_obs, self.density, self.seed = n_obs, settings.density, settings.seed
        self.vocabulary = order_vocabulary(set(genes[:n_genes]), set(proteins[:n_proteins]))
        self.dataset_names = [f"synthetic{i:03d}" for i in range(n_datasets)]
        dataset = np.arange(n_datasets)
        coverage = np.where(dataset % 3 == 1, 0.85, 1.0)
        self.rna_panel = self._uniform(_RNA_PANEL, np.arange(n_genes)[:, None], dataset) < coverage
        share = np.where(dataset % 3 == 2, 0.0, np.where(dataset % 2 == 0, 1.0, 0.6))
        self.adt_panel = self._uniform(_ADT_PANEL, np.arange(n_proteins)[:, None], dataset) < share
        size = 0.3 - np.log(self._uniform(_DATASET, dataset))
        ends = np.cumsum(size) / size.sum() * (n_obs - n_datasets)
        self._ends = np.round(ends).astype(np.int64) + dataset + 1  # at least one cell each

    def obs(self, start: int, stop: int) -> pd.DataFrame:
        """Describe the cells of a range of rows: data set, plate, cell type, and which modalities were measured."""
        row = np.arange(start, stop)
        dataset, plate = self._place(row)
        kind = self._kind(row, dataset, plate)
        return pd.DataFrame(
            {
                "dataset": pd.Categorical.from_codes(dataset, self.dataset_names),
                "plate": [f"{self.dataset_names[d]}-{p}" for d, p in zip(dataset, plate, strict=True)],
                "cell_type": pd.Categorical.from_codes(kind, [f"type{k:02d}" for k in range(self._kinds)]),
                "rna_present": True,
                "adt_present": self.adt_panel.any(0)[dataset],
            },
            index=[f"cell{r}" for r in row],
        )

    def read(self, rows: ArrayLike) -> tuple[sp.csr_matrix, NDArray[np.uint16]]:
        """Generate the RNA counts (B, G) and protein counts (B, P) of some rows, as uint16."""
        row = np.asarray(rows, dtype=np.int64)
        dataset, plate = self._place(row)
        kind = self._kind(row, dataset, plate)
        library = self._median_library * np.exp(_LIBRARY_SPREAD * self._normal(_LIBRARY, row))
        molecules = np.clip(np.round(library), 1, 60_000).astype(np.int64)
        indptr = np.zeros(len(row) + 1, np.int64)
        genes = np.empty(molecules.sum(), np.int32)
        counts = np.empty(molecules.sum(), np.uint16)
        states = hash_keys(self.seed, _DRAWS, row)
        measured = np.ascontiguousarray(self.rna_panel.T)
        _draw_cells((states, kind, molecules, dataset), self._alias, measured, (indptr, genes, counts))
        end = indptr[-1]
        shape = (len(row), self.vocabulary.num_genes)
        return sp.csr_matrix((counts[:end].copy(), genes[:end].copy(), indptr), shape=shape), self._proteins(
            row, dataset, kind
        )

    def _uniform(self, *keys: ArrayLike) -> NDArray[np.float64]:
        return uniform(self.seed, *keys)

    def _normal(self, *keys: ArrayLike) -> NDArray[np.float64]:
        return ndtri(np.clip(self._uniform(*keys), 1e-12, 1 - 1e-12))

    def _place(self, row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the data set of each row, and which of its four plates, which follow each other too."""
        dataset = np.searchsorted(self._ends, row, side="right")
        begins = np.concatenate([[0], self._ends[:-1]])
        return dataset, 4 * (row - begins[dataset]) // (self._ends - begins)[dataset]

    def _kind(self, row: NDArray[np.int64], dataset: NDArray[np.int64], plate: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw cell types from the mixture of each plate, in which few types are common."""
        places, which = np.unique(4 * dataset + plate, return_inverse=True)
        mixture = self._uniform(_MIXTURE, places[:, None], np.arange(self._kinds)) ** 12.0 + 1e-3
        below = np.cumsum(mixture / mixture.sum(1, keepdims=True), 1)[:, :-1]
        return (self._uniform(_KIND, row)[:, None] >= below[which]).sum(1)

    @cached_property
    def _profiles(self) -> NDArray[np.float64]:
        """Share of each gene in the molecules of a cell type, (K, G)."""
        gene, kind = np.arange(self.vocabulary.num_genes), np.arange(self._kinds)[:, None]
        shifted = self._uniform(_SHIFT, kind, gene) < 0.25
        shift = 0.7 * self._normal(_SHIFT, kind, gene, 1) * shifted
        marker = 3.0 * (self._uniform(_MARKER, kind, gene) < 0.01)
        profile = np.exp(2.05 * self._normal(_GENE, gene) + shift + marker)
        return profile / profile.sum(1, keepdims=True)

    @cached_property
    def _alias(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        tables = [_build_alias(profile) for profile in self._profiles]
        accept, other = zip(*tables, strict=True)
        return np.stack(accept), np.stack(other)

    @cached_property
    def _median_library(self) -> float:
        """Find the molecules per cell that give the wanted density, by bisection in their logarithm."""
        profiles = self._profiles[: min(self._kinds, 8)]
        spread = np.exp(_LIBRARY_SPREAD * ndtri((np.arange(8) + 0.5) / 8))
        wanted = self.density / self.rna_panel.mean()
        low, high = 0.0, np.log(60_000)
        for _ in range(30):
            middle = (low + high) / 2
            found = np.mean([1 - np.exp(-np.exp(middle) * s * profiles) for s in spread])
            low, high = (middle, high) if found < wanted else (low, middle)
        return float(np.exp(low))

    def _proteins(
        self, row: NDArray[np.int64], dataset: NDArray[np.int64], kind: NDArray[np.int64]
    ) -> NDArray[np.uint16]:
        """Draw protein counts: log-normal around the mean of protein and cell type, with a factor per cell."""
        protein = np.arange(self.vocabulary.num_proteins)
        level = 3.0 + self._normal(_PROTEIN, protein) + 1.2 * self._normal(_PROTEIN, kind[:, None], protein, 1)
        noise = 0.5 * self._normal(_PROTEIN, row, 2)[:, None] + 0.4 * self._normal(_PROTEIN, row[:, None], protein, 3)
        counts = np.minimum(np.exp(level + noise), 60_000).astype(np.uint16)
        return counts * self.adt_panel.T[dataset]


@numba.njit(nogil=True, cache=True)
def _build_alias(share):
    """Build the table of Walker and Vose: draw an index, then keep it with its probability or take the other one."""
    number = share.size
    accept = share / share.sum() * number
    other = np.zeros(number, np.int32)
    small, large = np.flatnonzero(accept < 1), np.flatnonzero(accept >= 1)
    stack = np.empty(number, np.int64)
    left = small.size
    stack[:left] = small
    k = 0
    while left > 0 and k < large.size:
        low, high = stack[left - 1], large[k]
        other[low] = high
        accept[high] -= 1 - accept[low]
        left -= 1
        if accept[high] < 1:
            stack[left] = high
            left += 1
            k += 1
    for i in stack[:left]:
        accept[i] = 1
    return accept.astype(np.float32), other


@numba.njit(nogil=True, cache=True)
def _draw_cells(cells, alias, measured, out):
    """Draw the molecules of each cell with splitmix64 and count them by gene."""
    states, kinds, molecules, dataset = cells
    accept, other = alias
    indptr, genes, counts = out
    number = accept.shape[1]
    tally = np.zeros(number, np.uint16)
    end = 0
    for i in range(states.size):
        state, kind = states[i], kinds[i]
        for _ in range(molecules[i]):
            state += np.uint64(0x9E3779B97F4A7C15)
            z = state
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
            gene = np.int64(((z >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32))
            if np.float64(z & np.uint64(0xFFFFFFFF)) >= accept[kind, gene] * 4294967296.0:
                gene = np.int64(other[kind, gene])
            tally[gene] += np.uint16(1)
        for gene in range(number):
            if tally[gene] and measured[dataset[i], gene]:
                genes[end], counts[end] = gene, tally[gene]
                end += 1
            tally[gene] = 0
        indptr[i + 1] = end
