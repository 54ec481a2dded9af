"""
The variants of `benchmarks/ablations.py`: what each changes in a recipe, in the order of tokens, or in the model.

Letters: B cells, N tokens of a modality, L selected tokens, D hidden_size, G genes, P proteins.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pretrain_model import AttentionLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BatchFeature

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.model.blocks_scfusion_ttt import ScFusionTTTBlock
from scfusion_fm.model.outputs_scfusion_ttt import ScFusionTTTForPreTrainingOutput
from scfusion_fm.model.sparse_scfusion_ttt import SparsePatches
from scfusion_fm.model.tokens_scfusion_ttt import ModalityTokens
from scfusion_fm.model.ttt_layers import TTTLinear, TTTOutput, TTTProjections, _rotated
from scfusion_fm.model.ttt_linear import TTTNorm, TTTState


@dataclass(frozen=True)
class Variant:
    """
    What is done differently.

    Parameters
    ----------
    overrides
        Settings of the recipe, as on the command line of `pretrain/run.py`.
    order
        In which order genes and proteins stand: genome, reversed or random.
    mixer
        What mixes tokens in every block: TTT, attention or none; or TTT that is `not causal` inside a mini-batch, or
        makes `one update` of its fast weights per cell.
    fusion
        How a modality reads the other one: TTT, sum (of its mean) or none.
    likelihood
        Of RNA: gaussian (squared error of log values) or poisson (of counts scaled to one library size).
    start_means
        Whether what is reconstructed starts from the mean of each feature, for trainings too short to learn it.
    """

    overrides: tuple[str, ...] = ()
    order: str = "genome"
    mixer: str = "TTT"
    fusion: str = "TTT"
    likelihood: str = "gaussian"
    start_means: bool = False


VARIANTS = {
    "recipe": Variant(),
    "causal": Variant(("model.ttt_direction=causal",)),
    "both directions, gated": Variant(("model.ttt_direction=gated",)),
    "genome reversed": Variant(order="reversed"),
    "random order": Variant(order="random"),
    "random order, causal": Variant(("model.ttt_direction=causal",), order="random"),
    "attention for TTT": Variant(mixer="attention"),
    "no mixing of tokens": Variant(mixer="none"),
    "fusion by a sum": Variant(fusion="sum"),
    "no fusion": Variant(fusion="none"),
    "no whole-modality masks": Variant(("masking.hide_rna_probability=0", "masking.hide_adt_probability=0")),
    "15 % masked": Variant(("masking.rna_ratio=0.15", "masking.adt_ratio=0.15")),
    "Poisson likelihood": Variant(likelihood="poisson"),
    "64 genes per token": Variant(("patch_size=64",)),
    "1,024 genes per token": Variant(("patch_size=1024",)),
    "random start": Variant(("start_cells=0",)),
    "128 wide, 4 layers": Variant(
        (
            "model.hidden_size=128",
            "model.num_attention_heads=4",
            "model.intermediate_size=256",
            "model.num_hidden_layers=4",
            "model.num_decoder_layers=2",
        )
    ),
}


class OrderedExtractor(ScFusionTTTFeatureExtractor):
    """
    Prepare cells with genes and proteins in another order than the genome's.

    Parameters
    ----------
    order
        reversed or random.
    seed
        Of the random order.
    **settings
        As of the feature extractor.
    """

    def __init__(self, order: str, seed: int, **settings: object):
        self.order, self.rng = order, np.random.default_rng(seed)
        super().__init__(**settings)
        places = self._patch_genes.reshape(-1)
        self._gene_places = np.argsort(places, kind="stable")[: len(self.gene_ids)]
        proteins = np.arange(self.num_proteins)
        self.protein_places = proteins[::-1].copy() if order == "reversed" else self.rng.permutation(proteins)

    def _arrange(self) -> NDArray[np.int64]:
        if self.order == "reversed":
            return super()._arrange()[::-1, ::-1].copy()
        genes = self.rng.permutation(len(self.gene_ids))
        padded = np.pad(genes, (0, -len(genes) % self.patch_size), constant_values=len(genes))
        return padded.reshape(-1, self.patch_size)

    def prepare(self, **counts: NDArray) -> BatchFeature:
        """Prepare cells as the feature extractor does, then let proteins stand in their order."""
        features = super().prepare(**counts)
        return BatchFeature(
            {name: x[:, self.protein_places] if name.startswith("adt") else x for name, x in features.items()}
        )

    def prepare_sparse(self, rna_counts: sp.csr_matrix, *panels: NDArray) -> SparsePatches:
        """Prepare RNA as the feature extractor does, and put the values of each cell into the order of the tokens."""
        found = super().prepare_sparse(rna_counts, *panels)
        cell = np.repeat(np.arange(rna_counts.shape[0]), np.diff(rna_counts.indptr))
        order = torch.from_numpy(np.lexsort((found.places.numpy(), cell)))
        return replace(found, values=found.values[order], places=found.places[order])


class NoMixing(nn.Module):
    """Nothing in place of a TTT layer: tokens of a block see themselves alone."""

    def forward(self, x: Tensor, mask: Tensor, return_inner_loss: bool = False, is_masked: bool = False) -> TTTOutput:
        """Give zeros for tokens (B, L, D); there is no inner loss."""
        return TTTOutput(torch.zeros_like(x), None)


class NonCausalTTT(TTTLinear):
    """
    TTT-Linear in which all tokens of a mini-batch read the fast weights that the whole mini-batch has made.

    Parameters
    ----------
    config, direction
        As of the layer.
    whole_cell
        Let all tokens of a cell be one mini-batch, in which the order of tokens means nothing.
    """

    def __init__(self, config: ScFusionTTTConfig, direction: str, whole_cell: bool):
        super().__init__(config, direction)
        self.whole_cell = whole_cell

    def scan(
        self, projections: TTTProjections, state: TTTState, norm: TTTNorm, inner_loss: Tensor | None
    ) -> tuple[Tensor, TTTState]:
        """Run the inner model; outputs (B, L, H, K) and the fast weights at the end."""
        q, k, v = projections.qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, K)
        length = q.shape[2]
        size = length if self.whole_cell else self.config.ttt_mini_batch_size
        if not self.whole_cell:
            cos, sin = self.rotation(q).repeat(1, length // size, 1)
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        rate = (projections.inner_lr * projections.token_scale[-1]).transpose(1, 2).unsqueeze(-1)
        weight, bias, parts = state.weight, state.bias, []
        for at in (slice(i, i + size) for i in range(0, length, size)):
            slope = rate[:, :, at] * _inner_slope(k[:, :, at] @ weight + bias, v[:, :, at] - k[:, :, at], norm)
            weight, bias = weight - k[:, :, at].mT @ slope, bias - slope.sum(2, keepdim=True)
            found = F.layer_norm(q[:, :, at] @ weight + bias, q.shape[-1:], eps=norm.eps) * norm.weight + norm.bias
            parts.append(q[:, :, at] + found)
        return torch.cat(parts, 2).transpose(1, 2), TTTState(weight, bias, True)

    def turns(self, qkv: Tensor, token_scale: Tensor) -> bool:
        """Leave it to the layer to turn the tokens around."""
        return False


def _inner_slope(z: Tensor, target: Tensor, norm: TTTNorm) -> Tensor:
    """Give the gradient of 0.5 * |norm(z) - target|^2 by z, for each token."""
    centred = z - z.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps)
    unit = centred * scale
    slope = (unit * norm.weight + norm.bias - target) * norm.weight
    return scale * (slope - slope.mean(-1, keepdim=True) - unit * (slope * unit).mean(-1, keepdim=True))


def build_extractor(
    variant: Variant, vocabulary: Vocabulary, patch_size: int, seed: int
) -> ScFusionTTTFeatureExtractor:
    """Make the feature extractor of a variant."""
    settings = vocabulary.to_dict() | {"patch_size": patch_size}
    if variant.order == "genome":
        return ScFusionTTTFeatureExtractor(**settings)
    return OrderedExtractor(variant.order, seed, **settings)


def change_model(model: ScFusionTTTForPreTraining, variant: Variant) -> None:
    """Replace what the variant replaces, in place; new weights are drawn as the others were."""
    if variant.mixer != "TTT":
        for block in [m for m in model.modules() if isinstance(m, ScFusionTTTBlock)]:
            block.ttt = _build_mixer(variant.mixer, model.config, block.ttt.direction)
            block.ttt.apply(model._init_weights)
    if variant.fusion != "TTT":
        model.model.rna_fusion, model.model.adt_fusion = nn.Identity(), nn.Identity()
        fuse = _add_means if variant.fusion == "sum" else _leave_apart
        model.model._fuse = types.MethodType(fuse, model.model)


def _build_mixer(mixer: str, config: ScFusionTTTConfig, direction: str) -> nn.Module:
    if mixer in ("not causal", "one update"):
        return NonCausalTTT(config, direction, whole_cell=mixer == "one update")
    return AttentionLayer(config) if mixer == "attention" else NoMixing()


@torch.no_grad()
def start_from_means(model: ScFusionTTTForPreTraining, inputs: Mapping[str, Tensor]) -> None:
    """Let the decoders start from the mean of each feature over the cells in which it was measured."""
    for name, decoder in (("rna", model.rna_decoder), ("adt", model.adt_decoder)):
        values, observed = inputs[f"{name}_values"], inputs[f"{name}_observed"]
        means = values.masked_fill(~observed, 0.0).sum(0) / observed.sum(0).clamp_min(1)
        decoder.head_bias.copy_(means.reshape(decoder.head_bias.shape))


def _add_means(
    model: nn.Module, rna: ModalityTokens, adt: ModalityTokens, modalities: tuple[str, ...]
) -> tuple[ModalityTokens, ModalityTokens]:
    weight, means = model.config.fusion_weight, [x.mean().unsqueeze(1) for x in (adt, rna)]
    return tuple(x._replace(latents=x.latents + weight * mean) for x, mean in zip((rna, adt), means, strict=True))


def _leave_apart(
    model: nn.Module, rna: ModalityTokens, adt: ModalityTokens, modalities: tuple[str, ...]
) -> tuple[ModalityTokens, ModalityTokens]:
    return rna, adt


def measure_loss(
    variant: Variant, config: ScFusionTTTConfig, output: ScFusionTTTForPreTrainingOutput, batch: dict[str, Tensor]
) -> Tensor:
    """Give the loss of a batch: the model's own, or with the Poisson deviance of RNA in place of its squared error."""
    if variant.likelihood == "gaussian":
        return output.loss
    target = batch["rna_observed"] & batch["rna_bool_masked_pos"].unsqueeze(-1)
    log_rate = output.rna_reconstruction.float().clamp(max=10.0)
    deviance = (log_rate.exp() - torch.expm1(batch["rna_values"]) * log_rate).masked_fill(~target, 0.0)
    rna = deviance.flatten(1).sum(1) / target.flatten(1).sum(1).clamp_min(1)
    return (config.rna_loss_weight * rna + config.adt_loss_weight * output.adt_loss).mean()


def rna_errors(variant: Variant, output: ScFusionTTTForPreTrainingOutput, batch: dict[str, Tensor]) -> Tensor:
    """Give the mean squared error of the log values of hidden genes of each cell that has some."""
    target = batch["rna_observed"] & batch["rna_bool_masked_pos"].unsqueeze(-1)
    found = output.rna_reconstruction.float()
    found = nn.functional.softplus(found) if variant.likelihood == "poisson" else found  # log1p of the rate
    error = (found - batch["rna_values"]).masked_fill(~target, 0.0).square()
    hidden = target.flatten(1).sum(1)
    return (error.flatten(1).sum(1) / hidden.clamp_min(1))[hidden > 0]
