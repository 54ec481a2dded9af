"""What training cells lose by chance, drawn from (seed, epoch, cell): the same whatever ranks and interruptions.

Letters: B cells, N tokens of a modality, F features that a head reads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scfusion_fm.data.hashing import uniform

_ORDER, _MODALITY, _SHARE, _TOKEN, _FEATURE = range(1, 6)  # streams of random numbers
_NAMES = ("rna_observed", "adt_observed")


def order_cells(rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Give the rows of training cells in the order of an epoch."""
    return rows[np.argsort(uniform(seed, _ORDER, epoch, rows), kind="stable")]


@dataclass(frozen=True)
class InputDropout:
    """
    Hide parts of what training cells show.

    Parameters
    ----------
    seed
        Seed of the choices.
    modality_dropout
        Probability that a paired cell loses one of its modalities, in [0, 1].
    token_dropout
        Largest share of its tokens that a cell loses, in [0, 1): each draws its share between 0 and this.
    spared
        What loses no tokens, as it is learned: `rna_observed` or `adt_observed`.

    Raises
    ------
    ValueError
        If `modality_dropout` is out of range.
    """

    seed: int = 0
    modality_dropout: float = 0.0
    token_dropout: float = 0.0
    spared: str | None = None

    def __post_init__(self):
        check_modality_dropout(self.modality_dropout)

    def hide(self, batch: dict[str, Tensor], rows: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Give the arguments of the model with less of the cells of some rows, (B,), shown."""
        batch = dict(batch)
        if self.modality_dropout > 0 and set(_NAMES) <= batch.keys():
            self._drop_modalities(batch, rows, epoch)
        if self.token_dropout > 0:
            self._drop_tokens(batch, rows, epoch)
        return batch

    def _drop_modalities(self, batch: dict[str, Tensor], rows: NDArray[np.int64], epoch: int) -> None:
        rna, adt = (batch[name] for name in _NAMES)
        paired = rna.flatten(1).any(1) & adt.any(1)
        draw = torch.from_numpy(uniform(self.seed, _MODALITY, epoch, rows))
        batch["rna_observed"] = rna & ~(paired & (draw < self.modality_dropout / 2))[:, None, None]
        drop_adt = paired & (draw >= self.modality_dropout / 2) & (draw < self.modality_dropout)
        batch["adt_observed"] = adt & ~drop_adt[:, None]

    def _drop_tokens(self, batch: dict[str, Tensor], rows: NDArray[np.int64], epoch: int) -> None:
        for number, name in enumerate(_NAMES):
            if name in batch and name != self.spared:
                observed = batch[name]
                keys = (self.seed, number, epoch, rows[:, None])
                share = self.token_dropout * uniform(_SHARE, *keys)
                kept = torch.from_numpy(uniform(_TOKEN, *keys, np.arange(observed.shape[1])) >= share)
                batch[name] = observed & kept.reshape(kept.shape + (1,) * (observed.ndim - 2))


class FeatureDropout(nn.Module):
    """
    Do what `nn.Dropout` does, but for the source of its chance.

    Parameters
    ----------
    share
        Probability that a feature is 0.
    seed
        Seed of the choices.

    Attributes
    ----------
    cells
        Epoch, and rows (B,) of the cells that come next; set before each step.
    """

    def __init__(self, share: float, seed: int):
        super().__init__()
        self.share, self.seed = share, seed
        self.cells: tuple[int, NDArray[np.int64]] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Drop features (B, F) of training cells, and scale the others."""
        if not self.training or self.share == 0:
            return features
        epoch, rows = self.cells
        draw = uniform(self.seed, _FEATURE, epoch, rows[:, None], np.arange(features.shape[1]))
        kept = torch.from_numpy((draw >= self.share).astype(np.float32)).to(features)
        return features * kept / (1 - self.share)


def draw_features(model: nn.Module, seed: int) -> None:
    """Put `FeatureDropout` where a model to be trained has `nn.Dropout`, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, FeatureDropout(module.p, seed))


def tell_cells(model: nn.Module, rows: NDArray[np.int64], epoch: int) -> None:
    """Tell a model of which training cells its next batch is."""
    for module in model.modules():
        if isinstance(module, FeatureDropout):
            module.cells = (epoch, rows)


def check_modality_dropout(probability: float) -> None:
    """
    Refuse what is no probability.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"`modality_dropout` must lie in [0, 1], got {probability}.")
