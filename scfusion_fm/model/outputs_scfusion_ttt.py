"""What the scFusionTTT models return.

Letters: B cells, N RNA tokens, S genes per token, P proteins, D hidden_size.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from transformers.utils import ModelOutput

from .configuration_scfusion_ttt import MODALITIES


class OutputParts(NamedTuple):
    """
    What of its output `ScFusionTTTModel` calculates.

    Attributes
    ----------
    output_tokens
        Whether to give `last_hidden_state` and `attention_mask`.
    fuse
        Modalities that are fused with the other one; tokens of one that is not stay as they were encoded.
    """

    output_tokens: bool = True
    fuse: tuple[str, ...] = MODALITIES

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> "OutputParts":
        """Take what was given to `forward` beside its own arguments; a TypeError if there is no such part."""
        for name in arguments:
            if name not in cls._fields:
                raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
        return cls(**arguments)


@dataclass
class ScFusionTTTModelOutput(ModelOutput):
    """
    Fused representation of a batch of cells.

    Attributes
    ----------
    last_hidden_state
        (B, N_rna + P, D) fused tokens in the order of the vocabulary, RNA first; 0 where no token was read.
    attention_mask
        (B, N_rna + P) true where a token was read.
    pooler_output
        (B, D) cell embedding: the normed mean of the means over the tokens of each modality that was read.
    modality_pooler_output
        (B, 4, D) normed means over the fused tokens of RNA and of protein, then over their encodings before the
        fusion; 0 for a modality that was not read.
    inner_loss
        (B, N_rna + P) how badly the fast weights of the TTT layers predicted each visible token, the mean over heads
        and over layers of encoder and fusion, without gradient; 0 for tokens that are not visible. Only if asked for.
    modality_inner_loss
        (B, 2) its mean over the visible tokens of RNA and of protein; 0 for a modality without any. Layers learn while
        they read, so that it depends on how many tokens were read: compare cells of one panel. Only if asked for.
    """

    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None
    pooler_output: Tensor | None = None
    modality_pooler_output: Tensor | None = None
    inner_loss: Tensor | None = None
    modality_inner_loss: Tensor | None = None


@dataclass
class ScFusionTTTForPreTrainingOutput(ModelOutput):
    """
    Reconstruction of masked values.

    Attributes
    ----------
    loss
        Scalar: mean over cells of the weighted errors of the modalities.
    rna_loss, adt_loss
        (B,) mean squared error over masked and observed values of each cell; 0 for a cell without any.
    rna_reconstruction
        (B, N, S) predicted normalised expression of every patch.
    adt_reconstruction
        (B, P) predicted normalised protein.
    pooler_output
        (B, D) cell embedding of what was visible.
    """

    loss: Tensor | None = None
    rna_loss: Tensor | None = None
    adt_loss: Tensor | None = None
    rna_reconstruction: Tensor | None = None
    adt_reconstruction: Tensor | None = None
    pooler_output: Tensor | None = None


@dataclass
class ScFusionTTTPredictionOutput(ModelOutput):
    """Output of the task heads: loss (scalar), logits ((B, num_labels) or (B, features)), pooler_output (B, D)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    pooler_output: Tensor | None = None
