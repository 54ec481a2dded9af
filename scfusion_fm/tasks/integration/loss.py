"""What brings partners together, among all cells of a step, on whichever ranks they are.

Letters: B cells of a step on this rank, C on all ranks, D hidden_size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scfusion_fm.training.collectives import add_up, count_ranks, gather, own_rank


@dataclass(frozen=True)
class PairLoss:
    """
    Bring partners together and keep other cells of the partner's batch away, beside the loss of pretraining.

    Parameters
    ----------
    temperature
        By which similarities are divided.
    weight
        Of the comparison.

    Notes
    -----
    The cross-entropy of picking the partner (InfoNCE; van den Oord et al. 2018) among cells of the partner's batch
    alone: what tells batches apart is of no use for it. Cells of the same known type are not kept apart.
    """

    temperature: float
    weight: float

    def __call__(self, outputs: Any, labels: Tensor) -> Tensor:
        """Average over the cells of a step; `labels` are batch, type and row, (2 B, 3), of cells and partners."""
        unit = F.normalize(outputs["pooler_output"].float(), dim=1).unflatten(0, (2, -1))
        (one, other), labels, scale = join_ranks(unit, labels.unflatten(0, (2, -1)))
        (batch, types, _), (other_batch, other_types, _) = (part.unbind(1) for part in labels)
        similar = one @ other.T / self.temperature
        forth = self._pick(similar, other_batch, types, other_types)
        back = self._pick(similar.T, batch, other_types, types)
        loss = (forth + back) / 2
        if scale != 1:
            loss = loss.detach() + scale * (loss - loss.detach())
        return outputs["loss"] + self.weight * loss

    @staticmethod
    def _pick(similar: Tensor, batch: Tensor, own_type: Tensor, other_type: Tensor) -> Tensor:
        """Give the cross-entropy of the diagonal (C, C) among candidates of the same batch as the right one."""
        same_type = (own_type[:, None] == other_type[None]) & (own_type[:, None] >= 0)
        allowed = (batch[None] == batch[:, None]) & ~same_type
        allowed = allowed | torch.eye(len(batch), dtype=torch.bool, device=batch.device)
        return F.cross_entropy(similar.masked_fill(~allowed, -torch.inf), torch.arange(len(batch), device=batch.device))


def join_ranks(unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """
    Put the cells of all ranks side by side.

    Parameters
    ----------
    unit, labels
        (2, B, D) embeddings and (2, B, 3) labels of the cells of this rank and their partners. A row that another rank
        has, too, is there only so that this rank has one, and is left out.

    Returns
    -------
    Both for all ranks, (2, C, D) and (2, C, 3), and a factor of the gradient.

    Notes
    -----
    The embeddings of other ranks are constants here: each rank gives the gradient of the whole loss through its own
    cells. Ranks are weighted by their cells, as is right for a mean over them; for a loss that each of them has whole,
    the factor takes this back.
    """
    if count_ranks() == 1:
        return unit, labels, 1.0
    parts = gather(labels.cpu())
    start, own = sum(part.shape[1] for part in parts[: own_rank()]), unit.shape[1]
    together = torch.cat(parts, 1)
    every = unit.new_zeros(2, together.shape[1], unit.shape[2])
    every[:, start : start + own] = unit.detach()
    every = add_up(every)
    every = torch.cat([every[:, :start], unit, every[:, start + own :]], 1)
    kept = np.sort(np.unique(together[0, :, 2].numpy(), return_index=True)[1])
    mine = int(((kept >= start) & (kept < start + own)).sum())
    return every[:, kept], together[:, kept].to(labels.device), len(kept) / max(mine, 1)
