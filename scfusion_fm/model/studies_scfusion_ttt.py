"""
Proteins from genes that are read in units of the study: what a cell has more or less of than others of its study.

Letters: B cells, N tokens, S genes per token, K genes that are read, C coordinates, M members, P proteins.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks_scfusion_ttt import FixedModule
from .sparse_scfusion_ttt import SparsePatches


class StudyCoordinates(FixedModule):
    """
    Coordinates of a cell from the genes that it measured, in units of its study.

    Probabilistic principal components: each gene is a sum of the coordinates times its loadings, and noise. The
    coordinates are their mean given the genes that were measured, so that a study with few genes is read by these, and
    the others are not taken for zeros.

    Parameters
    ----------
    genes
        (K,) places n * S + s of the genes.
    num_coordinates
        C.

    Notes
    -----
    Tipping and Bishop 1999, equation 9 of section 3.2, with the loadings of the measured genes alone.
    """

    FARTHEST = 10.0  # deviations from the mean: a rare gene in a single cell shall not decide where the cell lies

    def __init__(self, genes: list[int], num_coordinates: int):
        super().__init__()
        self.genes = genes
        self.register_buffer("means", torch.zeros(len(genes)))
        self.register_buffer("deviations", torch.zeros(len(genes)))
        self.register_buffer("loadings", torch.zeros(len(genes), num_coordinates))
        self.register_buffer("noise", torch.ones(()))

    def adapt(self, means: Tensor, deviations: Tensor) -> None:
        """
        Take other units, (N, S) of the genes in patches.

        Raises
        ------
        ValueError
            If they are not of one shape that has the genes.
        """
        if means.shape != deviations.shape or means.numel() <= max(self.genes):
            raise ValueError(
                f"`means` and `deviations` must have the shape of the genes in patches, (N, S), got "
                f"{tuple(means.shape)} and {tuple(deviations.shape)}."
            )
        self.means.copy_(means.flatten()[self.genes])
        self.deviations.copy_(deviations.flatten()[self.genes])

    def standardise(self, values: Tensor | SparsePatches, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """
        Give the genes in units of the study, (B, K), 0 where there is nothing to tell, and where there is, (B, K).

        Parameters
        ----------
        values, observed
            (B, N, S), or values alone where they know what was observed.
        """
        places = torch.tensor(self.genes, device=values.device)
        if isinstance(values, SparsePatches):
            found, seen = values.select(places)
        else:
            found, seen = values.flatten(1)[:, places], observed.flatten(1)[:, places]
        told = seen & (self.deviations > 0)
        scaled = (found.to(self.means) - self.means) / torch.where(self.deviations > 0, self.deviations, 1.0)
        return scaled.clamp_max(self.FARTHEST).masked_fill(~told, 0.0), told

    def forward(self, scaled: Tensor, told: Tensor) -> Tensor:
        """Give the coordinates (B, C) of genes in units of the study, where they tell something."""
        panels, panel = told.unique(dim=0, return_inverse=True)
        loadings = panels.unsqueeze(-1) * self.loadings
        eye = torch.eye(loadings.shape[-1]).to(loadings)
        systems = torch.einsum("qkc,qkd->qcd", loadings, loadings) + self.noise * eye
        sums = scaled @ self.loadings  # genes that tell nothing are 0
        if len(panels) == 1:
            return torch.linalg.solve(systems[0], sums.T).T
        return torch.linalg.solve(systems[panel], sums.unsqueeze(-1)).squeeze(-1)


class StudyReadout(FixedModule):
    """
    Proteins, in units of the study, from coordinates of a cell and from each protein's own gene.

    The mean of small networks of the coordinates, which differ in where they started, plus a weight times the gene that
    codes for the protein. A gene that the study did not measure is taken as the coordinates let expect it.

    Parameters
    ----------
    genes
        (K,) places n * S + s of the genes.
    own_genes
        (P,) which of these codes for each protein, -1 where none does.
    num_coordinates, hidden_sizes, num_members
        C, the widths of the hidden layers, and M.
    """

    def __init__(
        self,
        genes: list[int],
        own_genes: list[int],
        num_coordinates: int,
        hidden_sizes: list[int],
        num_members: int,
    ):
        super().__init__()
        num_proteins, self.own_genes = len(own_genes), own_genes
        self.coordinates = StudyCoordinates(genes, num_coordinates)
        sizes = [num_coordinates, *hidden_sizes, num_proteins]
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(num_members, a, b)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(num_members, 1, b)) for _, b in pairs)
        self.own_weight = nn.Parameter(torch.zeros(num_members, 1, num_proteins))
        self.register_buffer("levels", torch.zeros(num_proteins))
        self.register_buffer("deviations", torch.zeros(num_proteins))
        self.requires_grad_(False)

    def read(self, values: Tensor | SparsePatches, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the coordinates (B, C), and the own gene of each protein in units of the study (B, P)."""
        scaled, told = self.coordinates.standardise(values, observed)
        coordinates = self.coordinates(scaled, told)
        own = torch.tensor(self.own_genes, device=coordinates.device)
        known, gene = own >= 0, own.clamp_min(0)
        expected = coordinates @ self.coordinates.loadings[gene].T
        return coordinates, torch.where(told[:, gene], scaled[:, gene], expected).masked_fill(~known, 0.0)

    def predict(self, coordinates: Tensor, own: Tensor, dropout: float = 0.0) -> Tensor:
        """Give the prediction of each member (M, B, P), in deviations of each protein, from cells (M, B, ...)."""
        x, last = coordinates, len(self.weights) - 1
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if number < last:
                x = F.dropout(F.relu(x), dropout, dropout > 0)
        return x + self.own_weight * own

    def forward(self, values: Tensor | SparsePatches, observed: Tensor | None) -> Tensor:
        """Give the level of each protein (B, P) around that of the average study; 0 for one that was never learned."""
        coordinates, own = (x.expand(len(self.own_weight), -1, -1) for x in self.read(values, observed))
        return self.levels + self.deviations * self.predict(coordinates, own).mean(0)


def centre_over(levels: Tensor, panel: Tensor) -> Tensor:
    """
    Take the mean over a panel from levels that a model with `config.study_genes` predicted: the CLR over that panel.

    Parameters
    ----------
    levels
        (B, P).
    panel
        (P,) or (B, P) true for the proteins of the panel; nothing is taken where there is none.
    """
    panel = panel.expand_as(levels)
    return levels - levels.masked_fill(~panel, 0.0).sum(1, keepdim=True) / panel.sum(1, keepdim=True).clamp_min(1)
