"""
RNA of cells as the values that are not 0: of 256 genes of a token, few are expressed.

Letters: B cells, N tokens, S genes per token, V values, Q panels, K columns of a weight.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class SparsePatches:
    """
    Values of some cells where they are not 0, and what was measured: cells of a panel measured the same.

    Models take it in place of `rna_values`, without `rna_observed`.

    Attributes
    ----------
    values
        (V,) of one token after the other, cell by cell.
    places
        (V,) where in a cell they stand: n * S + s.
    starts
        (B * N + 1,) where the values of each token start, and the end of the last.
    panels
        (Q, N, S) whether cells of a panel measured a gene.
    panel
        (B,) the panel of each cell.
    """

    values: Tensor
    places: Tensor
    starts: Tensor
    panels: Tensor
    panel: Tensor

    @property
    def shape(self) -> torch.Size:
        """Give (B, N, S)."""
        return torch.Size((len(self.panel), *self.panels.shape[1:]))

    @property
    def device(self) -> torch.device:
        """Tell where the values are."""
        return self.values.device

    def __len__(self) -> int:
        return len(self.panel)

    def to(self, *args, **kwargs) -> "SparsePatches":
        """Move all of it to a device."""
        return SparsePatches(*(getattr(self, field.name).to(*args, **kwargs) for field in fields(self)))

    def dense(self) -> tuple[Tensor, Tensor]:
        """Give all values and whether they were measured, (B, N, S)."""
        cells, tokens, size = self.shape
        row = torch.repeat_interleave(self.starts[::tokens].diff()) * (tokens * size)
        values = self.values.new_zeros(cells * tokens * size).index_put((row + self.places,), self.values)
        return values.view(self.shape), self.panels[self.panel]

    def measured_tokens(self) -> Tensor:
        """Tell of which tokens something was measured, (B, N)."""
        return self.panels.any(-1)[self.panel]

    def select(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Give the values at some places n * S + s (K,), and whether they were measured, (B, K)."""
        cells, tokens, size = self.shape
        column = torch.full((tokens * size,), -1, device=self.device)
        column[places] = torch.arange(len(places), device=self.device)
        column = column[self.places]
        row = torch.repeat_interleave(self.starts[::tokens].diff())
        kept = column >= 0
        values = self.values.new_zeros(cells, len(places))
        values[row[kept], column[kept]] = self.values[kept]
        return values, self.panels.flatten(1)[:, places][self.panel]

    def sum_tokens(self, weight: Tensor) -> Tensor:
        """Sum values times their row of a weight (N, T, K), T at least S, over each token; (B, N, K)."""
        return self._sum(weight, self.starts).view(*self.shape[:2], -1)

    def sum_cells(self, weight: Tensor) -> Tensor:
        """Sum values times their row of a weight (N, S, K) over each cell; (B, K)."""
        return self._sum(weight, self.starts[:: self.shape[1]].contiguous())

    def _sum(self, weight: Tensor, starts: Tensor) -> Tensor:
        tokens, rows, size = *weight.shape[:2], self.shape[2]
        places = self.places
        if rows > size:
            places = places + (places // size) * (rows - size)
        flat, values = weight.reshape(tokens * rows, -1), self.values.to(weight.dtype)
        return F.embedding_bag(places, flat, starts, mode="sum", per_sample_weights=values, include_last_offset=True)
