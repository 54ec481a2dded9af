"""How many tokens the stacks of the model read of a cell, by how cells are masked."""

import math
from dataclasses import dataclass

from scfusion_fm.config.pretrain import MaskingConfig
from scfusion_fm.model.configuration_scfusion_ttt import ScFusionTTTConfig


@dataclass(frozen=True)
class TokenCounts:
    """
    Tokens of one cell, or their mean over cells.

    Attributes
    ----------
    rna_visible, adt_visible
        Tokens that encoder, fusion and decoder read.
    rna_masked, adt_masked
        Tokens that only the decoder sees, to reconstruct them.
    """

    rna_visible: float
    rna_masked: float
    adt_visible: float
    adt_masked: float

    def sequences(self, config: ScFusionTTTConfig) -> list[tuple[int, float]]:
        """Give the number of blocks and the tokens (L) that each of them reads, of every stack of the model."""
        fused = self.rna_visible + self.adt_visible
        return [
            (config.num_hidden_layers, self.rna_visible),
            (config.num_hidden_layers, self.adt_visible),
            (2 * config.num_fusion_layers, fused),
            (config.num_decoder_layers, self.rna_visible + self.rna_masked),
            (config.num_decoder_layers, self.adt_visible + self.adt_masked),
        ]


def longest_tokens(config: ScFusionTTTConfig, masking: MaskingConfig) -> TokenCounts:
    """Count the tokens of the longest cell that can be: of a hidden modality, every token is read."""
    return _count(config, masking, masking.hide_rna_probability > 0, masking.hide_adt_probability > 0)


def mean_tokens(config: ScFusionTTTConfig, masking: MaskingConfig, cells: int) -> TokenCounts:
    """
    Count the tokens that are computed per cell, on average over micro-batches of so many paired cells.

    All cells of a micro-batch are filled up to the longest: where one of them has a hidden modality, all are as long
    as if they had.
    """
    hidden = (1 - (1 - p) ** cells for p in (masking.hide_rna_probability, masking.hide_adt_probability))
    return _count(config, masking, *hidden)


def _count(config: ScFusionTTTConfig, masking: MaskingConfig, hide_rna: float, hide_adt: float) -> TokenCounts:
    """Count tokens, in whole mini-batches, where a share of the cells counts as having a hidden modality."""
    counts, size = [], config.ttt_mini_batch_size
    for number, ratio, hide in (
        (config.num_rna_tokens, masking.rna_ratio, hide_rna),
        (config.num_proteins, masking.adt_ratio, hide_adt),
    ):
        whole, visible = (math.ceil(n / size) * size for n in (number, number - round(ratio * number)))
        read = hide * whole + (1 - hide) * visible
        counts += [read, whole - read]
    return TokenCounts(*counts)
