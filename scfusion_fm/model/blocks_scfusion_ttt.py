"""
Parts of scFusionTTT: embeddings, TTT blocks and stacks, projection and decoder.

Letters: B cells, N tokens of a modality, S genes (or proteins) per token, L selected tokens, D hidden_size,
K coordinates of a cell, T targets.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .compiled_scfusion_ttt import normalise
from .configuration_scfusion_ttt import TTT_DIRECTIONS, ScFusionTTTConfig
from .linear_scfusion_ttt import Linear, is_plain, multiply, runs_on_onednn
from .sparse_scfusion_ttt import SparsePatches
from .tokens_scfusion_ttt import TokenSubset, runs_alone
from .ttt_layers import TTT_LAYERS


class PatchEmbedding(nn.Module):
    """
    Embed the values of each token, what of it was observed, and its position.

    Every token has its own projection: place s of one patch is another gene than place s of the next.
    """

    def __init__(self, num_tokens: int, patch_size: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, 2 * patch_size, hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(num_tokens, hidden_size))

    @property
    def value_weights(self) -> list[nn.Parameter]:
        """Give the weights that embed values, which may learn at a rate of their own."""
        return [self.weight]

    @torch.no_grad()
    def start_from(self, directions: Tensor, means: Tensor, values: Tensor, observed: Tensor) -> None:
        """
        Let each token start as its part of the coordinates of a cell along given directions.

        The mean over the tokens of a cell is then proportional to its coordinates: sum over observed genes of
        (value - mean) * direction.

        Parameters
        ----------
        directions
            (N, S, K) loading of each gene on K directions, K at most D; other columns of the weight stay as they are.
        means
            (N, S) mean value of each gene where it was observed.
        values, observed
            Some cells as in `forward`; over these, tokens get a mean square of 1 in the K columns.
        """
        size, count = directions.shape[1:]
        start = torch.cat((directions, -means.unsqueeze(-1) * directions), 1)
        self.weight[:, : 2 * size, :count] = start.to(self.weight)
        tokens = self(values, observed) - self.position_embeddings
        square = tokens[observed.any(-1)][:, :count].square().mean()
        self.weight[:, :, :count] /= square.sqrt().clamp_min(1e-6)

    def forward(self, values: Tensor | SparsePatches, observed: Tensor | None) -> Tensor:
        """Embed values (B, N, S) where observed (B, N, S); what was not observed does not matter."""
        if isinstance(values, SparsePatches):
            size = values.shape[2]
            panels = torch.einsum("qns,nsd->qnd", values.panels.to(self.weight.dtype), self.weight[:, size:])
            return values.sum_tokens(self.weight) + (panels + self.position_embeddings)[values.panel]
        values = values.masked_fill(~observed, 0.0)
        pairs = torch.cat((values, observed.to(values.dtype)), dim=-1).to(self.weight.dtype)
        return torch.einsum("bns,nsd->bnd", pairs, self.weight) + self.position_embeddings


class FixedModule(nn.Module):
    """A module that was fitted in closed form: it stays in float32 at least in a model that is cast to less."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FixedModule":
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        return super()._apply(move, recurse)


class CellCoordinates(FixedModule):
    """
    Coordinates of a cell along fixed directions among the values of one modality.

    Fixed: they are part of what a task head was fitted on, such as the principal components of its training cells.
    """

    def __init__(self, num_tokens: int, patch_size: int, num_coordinates: int):
        super().__init__()
        self.register_buffer("directions", torch.zeros(num_tokens, patch_size, num_coordinates))
        self.register_buffer("means", torch.zeros(num_tokens, patch_size))

    def forward(self, values: Tensor | SparsePatches, observed: Tensor | None) -> Tensor:
        """Give the coordinates (B, K) of values (B, N, S); what was not observed counts as the mean."""
        if isinstance(values, SparsePatches):
            means = torch.einsum("qns,nsk->qk", values.panels * self.means, self.directions)
            return values.sum_cells(self.directions) - means[values.panel]
        centred = (values - self.means).masked_fill(~observed, 0.0)
        return torch.einsum("bns,nsk->bk", centred.to(self.directions.dtype), self.directions)


class KernelReadout(FixedModule):
    """
    Radial basis functions of the coordinates of a cell around those of training cells, and a fixed linear map of them.

    Fixed as the coordinates are: kernel ridge regression has its minimum in closed form. `share` (T,) is how much of
    the prediction of a target comes from here.
    """

    def __init__(self, num_landmarks: int, num_coordinates: int, num_targets: int):
        super().__init__()
        self.register_buffer("landmarks", torch.zeros(num_landmarks, num_coordinates))
        self.register_buffer("weight", torch.zeros(num_landmarks, num_targets))
        self.register_buffer("bias", torch.zeros(num_targets))
        self.register_buffer("share", torch.zeros(num_targets))
        self.register_buffer("inverse_width", torch.zeros(()))

    def kernel(self, coordinates: Tensor) -> Tensor:
        """Give exp(-inverse_width * squared distance) of (B, K) to each landmark, (B, landmarks)."""
        distances = torch.cdist(coordinates, self.landmarks, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-self.inverse_width * distances.square())

    def forward(self, coordinates: Tensor) -> Tensor:
        """Predict the targets (B, T) from coordinates (B, K)."""
        return self.kernel(coordinates) @ self.weight + self.bias

    def blend(self, predicted: Tensor, coordinates: Tensor) -> Tensor:
        """Mix a prediction (B, T) with what is predicted here."""
        return predicted + self.share * (self(coordinates) - predicted)


class GatedMLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of (B, L, D)."""
        if is_plain(self.gate_up_proj) and runs_on_onednn(x, self.gate_up_proj.weight):
            gate, up = self.gate_up_proj.weight.chunk(2)
            return self.down_proj(multiply(x, gate, activation="silu").mul_(multiply(x, up)))
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class MixedTokens(NamedTuple):
    """
    What a block or a stack gives.

    Attributes
    ----------
    tokens
        (B, L, D).
    inner_loss
        (B, L) inner loss of each token, the mean over heads, summed over the layers of a stack, without a gradient;
        None unless asked for.
    """

    tokens: Tensor
    inner_loss: Tensor | None


class ScFusionTTTBlock(GradientCheckpointingLayer):
    """Pre-norm residual block: a TTT layer that reads in a direction, then an MLP."""

    def __init__(self, config: ScFusionTTTConfig, direction: str):
        super().__init__()
        self.ttt_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ttt = TTT_LAYERS[config.ttt_layer_type](config, direction)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, mask: Tensor, with_inner_loss: bool = False) -> MixedTokens:
        """Transform tokens (B, L, D); those where the mask (B, L) is false change nothing elsewhere."""
        shown = normalise(self.ttt_norm, x, mask)
        mixed = self.ttt(shown, mask, return_inner_loss=with_inner_loss, is_masked=True)
        x = x + mixed.tokens
        x = x + self.mlp(normalise(self.mlp_norm, x))
        return MixedTokens(x, mixed.inner_loss.mean(-1) if with_inner_loss else None)


class TTTStack(nn.Module):
    """
    TTT blocks in a row: an encoder, a fusion module or the trunk of a decoder.

    There is no norm behind them: a token keeps its length, so that the mean over tokens weighs what was expressed
    strongly more than what was not.
    """

    def __init__(self, config: ScFusionTTTConfig, num_layers: int):
        super().__init__()
        # The last layer reads forward, so that what comes first in a fused sequence reaches what comes last.
        directions = TTT_DIRECTIONS[config.ttt_direction]
        self.layers = nn.ModuleList(
            ScFusionTTTBlock(config, directions[i % len(directions)]) for i in reversed(range(num_layers))
        )

    def forward(self, x: Tensor, mask: Tensor, with_inner_loss: bool = False) -> MixedTokens:
        """Transform tokens (B, L, D) whose real ones are marked by the mask (B, L)."""
        total = torch.zeros(x.shape[:2], device=x.device) if with_inner_loss else None
        if runs_alone() and not mask.any():
            return MixedTokens(x, total)
        for layer in self.layers:
            x, inner_loss = layer(x, mask, with_inner_loss)
            if with_inner_loss:
                total = total + inner_loss.detach()  # reentrant checkpointing gives all that it returns a gradient
        return MixedTokens(x, total)


class MissingModalityProjection(nn.Module):
    """Make the latents of a hidden modality from the mean latent of the other one (the paper's third stage)."""

    def __init__(self, config: ScFusionTTTConfig, num_tokens: int):
        super().__init__()
        self.source_proj = Linear(config.hidden_size, config.hidden_size)
        self.position_embeddings = nn.Parameter(torch.empty(num_tokens, config.hidden_size))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, source: Tensor) -> Tensor:
        """Project mean latents (B, D) to one latent per token of the other modality (B, N, D)."""
        x = self.source_proj(source).unsqueeze(1) + self.position_embeddings
        return x + self.mlp(self.norm(x))


class ReconstructionDecoder(nn.Module):
    """Reconstruct the values of visible and masked tokens of one modality from fused visible tokens."""

    def __init__(self, config: ScFusionTTTConfig, num_tokens: int, patch_size: int):
        super().__init__()
        self.mini_batch_size = config.ttt_mini_batch_size
        self.mask_token = nn.Parameter(torch.empty(config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(num_tokens, config.hidden_size))
        self.stack = TTTStack(config, config.num_decoder_layers)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head_weight = nn.Parameter(torch.empty(num_tokens, config.hidden_size, patch_size))
        self.head_bias = nn.Parameter(torch.empty(num_tokens, patch_size))

    def forward(self, fused: Tensor, read: Tensor, masked: Tensor, longest: int | None = None) -> Tensor:
        """
        Predict values (B, N, S).

        Parameters
        ----------
        fused
            (B, N, D) fused tokens.
        read
            (B, N) where `fused` holds a token.
        masked
            (B, N) which tokens to reconstruct.
        longest
            Most tokens of a cell that are read or to be reconstructed; counted when None.
        """
        tokens = torch.where(read.unsqueeze(-1), fused, self.mask_token) + self.position_embeddings
        subset = TokenSubset.select(read | masked, self.mini_batch_size, longest)
        decoded = self.norm(self.stack(subset.take(tokens), subset.mask).tokens)
        return torch.einsum("bnd,nds->bns", subset.put_back(decoded), self.head_weight) + self.head_bias


def mean_squared_error_per_cell(
    predicted: Tensor, values: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Average the squared error of each cell, weighted by feature, where target is true; (B,), 0 without any."""
    error = (predicted.float() - values.float()).masked_fill(~target, 0.0).square()
    if weight is not None:
        error = error * weight.to(error)
    return error.flatten(1).sum(1) / target.flatten(1).sum(1).clamp_min(1)
