"""
The two modalities of a batch: what is given, which tokens are read, and how these move to the front of a sequence.

Letters: B cells, N tokens of a modality, S genes (or proteins) per token, L selected tokens, D hidden_size,
M mini-batch, P proteins.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_scfusion_ttt import MODALITIES, ScFusionTTTConfig
from .sparse_scfusion_ttt import SparsePatches


def runs_alone() -> bool:
    """
    Tell whether what has no tokens in a batch may be left out: in inference mode.

    Elsewhere this may be one of several ranks, which must all call the same modules (ZeRO-3 gathers weights then).
    """
    return torch.is_inference_mode_enabled()


class ModalityInput(NamedTuple):
    """
    What is given of one modality of a batch; None for what is not.

    Attributes
    ----------
    values
        (B, N, S), or (B, P) as proteins come in.
    observed
        Which of the values were measured; None where the values tell it themselves.
    masked
        (B, N) tokens hidden from the encoder.
    """

    values: Tensor | SparsePatches | None
    observed: Tensor | None
    masked: Tensor | None = None

    def dense(self) -> "ModalityInput":
        """Give all values, and which of them were measured."""
        if isinstance(self.values, SparsePatches):
            return ModalityInput(*self.values.dense(), self.masked)
        return self

    def measured_tokens(self) -> Tensor:
        """Tell of which tokens something was measured, (B, N)."""
        if isinstance(self.values, SparsePatches):
            return self.values.measured_tokens()
        return self.observed.any(-1)

    def seen(self) -> Tensor | None:
        """Tell which values were measured: all, if nothing else was said."""
        if isinstance(self.values, SparsePatches):
            return None
        return torch.ones_like(self.values, dtype=torch.bool) if self.observed is None else self.observed


def complete_inputs(
    rna: ModalityInput, adt: ModalityInput, config: ScFusionTTTConfig, dtype: torch.dtype
) -> tuple[ModalityInput, ModalityInput]:
    """
    Fill in what was not given, and bring both modalities to (B, N, S); a missing one was observed nowhere.

    Raises
    ------
    ValueError
        If both modalities are None or shapes do not fit the configuration.
    """
    given = next((x for x in (rna.values, adt.values, rna.masked, adt.masked) if x is not None), None)
    if given is None:
        raise ValueError("`rna_values` and `adt_values` are both None; give at least one modality.")
    cells, device = given.shape[0], given.device
    shapes = ((cells, config.num_rna_tokens, config.rna_patch_size), (cells, config.num_proteins))
    complete = []
    for name, shape, modality in zip(MODALITIES, shapes, (rna, adt), strict=True):
        values, observed, masked = modality
        if values is None:
            values = torch.zeros(shape, device=device, dtype=dtype)
            observed = torch.zeros(shape, device=device, dtype=torch.bool)
        observed = ModalityInput(values, observed).seen()
        masked = torch.zeros(shape[:2], device=device, dtype=torch.bool) if masked is None else masked
        _check_shape(f"{name}_values", values, shape)
        _check_shape(f"{name}_bool_masked_pos", masked, shape[:2])
        if isinstance(values, SparsePatches):
            complete.append(ModalityInput(values, None, masked))
            continue
        _check_shape(f"{name}_observed", observed, shape)
        rows = (shape[0], shape[1], -1)
        complete.append(ModalityInput(values.reshape(rows), observed.reshape(rows), masked))
    return tuple(complete)


def _check_shape(name: str, tensor: Tensor | SparsePatches, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(
            f"`{name}` must have the shape {tuple(shape)} of this model, got {tuple(tensor.shape)}. "
            "Prepare the cells with the feature extractor that was saved with the model."
        )


class TokenRoles(NamedTuple):
    """
    What the tokens of one modality are there for.

    Attributes
    ----------
    visible
        (B, N) something of the token was observed, and it is not masked: the encoder sees it.
    hidden
        (B,) nothing of the modality is visible in this cell.
    read
        (B, N) what the fusion reads: the visible tokens, or, of a hidden modality, the masked ones, whose latents are
        projected from the other modality.
    """

    visible: Tensor
    hidden: Tensor
    read: Tensor

    @classmethod
    def of(cls, observed: Tensor, masked: Tensor) -> "TokenRoles":
        """Find the roles from what was observed (B, N, S) and what is masked (B, N)."""
        visible = observed.any(-1) & ~masked
        hidden = ~visible.any(1)
        return cls(visible, hidden, torch.where(hidden.unsqueeze(1), masked, visible))


class TokenSubset(NamedTuple):
    """
    Kept tokens of every cell, moved to the front in their order.

    Attributes
    ----------
    index
        (B, min(L, N)) places of the tokens; None where all are kept.
    mask
        (B, L) true where there is one.
    num_tokens
        Places that there are (N).
    """

    index: Tensor | None
    mask: Tensor
    num_tokens: int

    @classmethod
    def select(cls, keep: Tensor, mini_batch_size: int, longest: int | None = None) -> "TokenSubset":
        """
        Select tokens by a mask.

        L is rounded up to whole mini-batches, so that what follows the subset starts on the same place of a mini-batch
        whatever the other cells of the batch are. It is at least one, or none in inference mode.

        Parameters
        ----------
        keep
            (B, N) tokens to select.
        mini_batch_size
            Tokens of a mini-batch (M).
        longest
            Most tokens that are selected of a cell, at least. When None they are counted, for which the host waits
            for the device.

        Raises
        ------
        RuntimeError
            If more than `longest` tokens of a cell are to be selected; on a GPU, later and by the device.
        """
        count = keep.sum(1, keepdim=True)
        if longest is None:
            longest = int(count.max())
        else:
            torch._assert_async((count <= longest).all(), "`max_lengths` are smaller than what is to be read.")
        least = 0 if runs_alone() else 1
        length = -(-max(longest, least) // mini_batch_size) * mini_batch_size
        index = None
        if not (runs_alone() and keep.all()):
            index = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :length]
        return cls(index, torch.arange(length, device=keep.device) < count, keep.shape[1])

    def take(self, tokens: Tensor) -> Tensor:
        """Pick the subset (B, L, D) of (B, N, D); 0 where the mask is false."""
        if self.index is None:
            return F.pad(tokens, (0, 0, 0, self.mask.shape[1] - tokens.shape[1]))
        picked = tokens.gather(1, self.index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        picked = F.pad(picked, (0, 0, 0, self.mask.shape[1] - self.index.shape[1]))
        return picked.masked_fill(~self.mask.unsqueeze(-1), 0.0)

    def put_back(self, picked: Tensor) -> Tensor:
        """Lay (B, L, D) out on all places, (B, N, D); 0 elsewhere."""
        if self.index is None:
            return picked[:, : self.num_tokens]
        picked = picked.masked_fill(~self.mask.unsqueeze(-1), 0.0)[:, : self.index.shape[1]]
        grid = picked.new_zeros(picked.shape[0], self.num_tokens, picked.shape[-1])
        return grid.scatter(1, self.index.unsqueeze(-1).expand_as(picked), picked)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Average (B, L, D) over the tokens where the mask (B, L) is true; 0 where there are none."""
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(1) / weight.sum(1).clamp_min(1.0)


class ModalityTokens(NamedTuple):
    """
    One modality of a batch on its way through the model.

    Attributes
    ----------
    roles
        Which of its tokens are visible, and which are read.
    subset
        The tokens that are read.
    latents
        (B, L, D) what the last stack made of them.
    inner_loss
        (B, L) inner losses of the layers so far, summed; None unless asked for.
    """

    roles: TokenRoles
    subset: TokenSubset
    latents: Tensor
    inner_loss: Tensor | None = None

    @property
    def encoded(self) -> Tensor:
        """Which latents come from the encoder, (B, L)."""
        return self.subset.mask & ~self.roles.hidden.unsqueeze(1)

    def mean(self) -> Tensor:
        """Average the latents of each cell, (B, D)."""
        return masked_mean(self.latents, self.subset.mask)

    def project(self, projected: Tensor) -> "ModalityTokens":
        """Let the latents of hidden cells be those of all tokens (B, N, D) that were projected for them."""
        hidden = self.roles.hidden[:, None, None]
        return self._replace(latents=torch.where(hidden, self.subset.take(projected), self.latents))


def find_max_lengths(inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """
    Find how many tokens the encoders and decoders of a model read of the cell of which they read most.

    Parameters
    ----------
    inputs
        Arguments of the model, not yet on the device; a modality that is missing there has no tokens.

    Returns
    -------
    By the name of the module: `rna_encoder`, `rna_decoder`, `adt_encoder` and `adt_decoder`.
    """
    found = {}
    for name in MODALITIES:
        encoded = decoded = 0
        if f"{name}_observed" in inputs:
            observed = inputs[f"{name}_observed"]
            observed = observed if observed.ndim == 3 else observed.unsqueeze(-1)
            masked = inputs.get(f"{name}_bool_masked_pos", torch.zeros(observed.shape[:2], dtype=torch.bool))
            read = TokenRoles.of(observed, masked).read
            encoded, decoded = (int(x.sum(1).max()) for x in (read, read | masked))
        found |= {f"{name}_encoder": encoded, f"{name}_decoder": decoded}
    return found
