"""From cells of an atlas to the arguments of the model: features and masks.

Letters: B cells, N tokens of a modality.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfusion_fm.config.pretrain import MaskingConfig
from scfusion_fm.data.atlas.atlas import AtlasRows
from scfusion_fm.data.hashing import uniform

_RNA, _ADT, _CELL = 1, 2, 3  # streams of random numbers
_MODALITIES = (("rna", _RNA), ("adt", _ADT))


class FeatureExtractor(Protocol):
    """Prepares cells for a model; see `scfusion_fm.model.ScFusionTTTFeatureExtractor`."""

    def prepare(self, *args: Any, **kwargs: Any) -> Mapping[str, Tensor]:
        """Turn counts into `rna_values`, `rna_observed`, `adt_values`, `adt_observed`."""

    def find_max_lengths(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Find how many tokens the model reads of the cell of which it reads most."""


@dataclass(frozen=True)
class MaskingCollator:
    """
    Prepare rows and draw masks that depend on (seed, epoch, row of the atlas) alone.

    Parameters
    ----------
    feature_extractor
        Prepares the cells.
    masking
        How many tokens are masked, and how often whole modalities.
    seed
        Seed of the masks.
    """

    feature_extractor: FeatureExtractor
    masking: MaskingConfig
    seed: int = 0

    def __call__(self, rows: AtlasRows, epoch: NDArray[np.int64] | int) -> dict[str, Any]:
        """Give the arguments of `ScFusionTTTForPreTraining.forward`; `epoch` per cell or for all."""
        batch: dict[str, Any] = dict(self.feature_extractor.prepare(**rows.as_counts()))
        epoch = np.broadcast_to(np.asarray(epoch), rows.row.shape)
        tokens = {"rna_observed": batch["rna_observed"].any(-1), "adt_observed": batch["adt_observed"]}
        seen = {name: tokens[f"{name}_observed"].numpy() for name, _ in _MODALITIES}
        hidden = self._draw_hidden(rows.row, epoch, seen)
        for name, stream in _MODALITIES:
            draw = uniform(self.seed, stream, epoch[:, None], rows.row[:, None], np.arange(seen[name].shape[1]))
            masked = smallest_share(draw, seen[name], getattr(self.masking, f"{name}_ratio"))
            masked = np.where(hidden[name][:, None], seen[name], masked)
            tokens[f"{name}_bool_masked_pos"] = batch[f"{name}_bool_masked_pos"] = torch.from_numpy(masked)
        # Known here: to count it later, a step would have to wait for its device.
        batch["max_lengths"] = self.feature_extractor.find_max_lengths(tokens)
        return batch

    def _draw_hidden(
        self, row: NDArray[np.int64], epoch: NDArray[np.int64], seen: dict[str, NDArray[np.bool_]]
    ) -> dict[str, NDArray[np.bool_]]:
        paired = seen["rna"].any(1) & seen["adt"].any(1)
        draw = uniform(self.seed, _CELL, epoch, row)
        hide_rna, hide_adt = self.masking.hide_rna_probability, self.masking.hide_adt_probability
        rna = paired & (draw < hide_rna)
        adt = paired & ~rna & (draw < hide_rna + hide_adt)
        return {"rna": rna, "adt": adt}


def smallest_share(draw: NDArray, seen: NDArray[np.bool_], ratio: float) -> NDArray[np.bool_]:
    """
    Mark the smallest draws of each row among the seen tokens.

    The number is ratio times the seen tokens, rounded, at least one if the ratio is positive and two tokens are
    seen, and never all of them. Draws of a row must differ.
    """
    tokens = seen.sum(1)
    number = np.round(ratio * tokens).astype(int)
    number = np.clip(number, 1 if ratio > 0 else 0, np.maximum(tokens - 1, 0))
    draw = np.where(seen, draw, np.inf)
    # The draw of the last one that is marked; -inf, below all draws, where none is.
    ordered = np.pad(np.sort(draw, axis=1), ((0, 0), (1, 0)), constant_values=-np.inf)
    return seen & (draw <= np.take_along_axis(ordered, number[:, None], axis=1))
