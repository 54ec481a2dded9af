"""
The variants of `benchmarks/ablations.py`: what each changes in a recipe, in the order of tokens, or in the model.

Letters: B cells, N tokens of a modality, L selected tokens, D hidden_size, G genes, P proteins.
"""

import types
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pretrain_model import AttentionLayer
from torch import Tensor, nn

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.model.blocks_scfusion_ttt import ScFusionTTTBlock
from scfusion_fm.model.outputs_scfusion_ttt import ScFusionTTTForPreTrainingOutput
from scfusion_fm.model.tokens_scfusion_ttt import ModalityTokens
from scfusion_fm.model.ttt_layers import TTTOutput


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
        What mixes tokens in every block: TTT, attention or none.
    fusion
        How a modality reads the other one: TTT, sum (of its mean) or none.
    likelihood
        Of RNA: gaussian (squared error of log values) or poisson (of counts scaled to one library size).
    """

    overrides: tuple[str, ...] = ()
    order: str = "genome"
    mixer: str = "TTT"
    fusion: str = "TTT"
    likelihood: str = "gaussian"


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
        proteins = np.arange(self.num_proteins)
        self.protein_places = proteins[::-1].copy() if order == "reversed" else self.rng.permutation(proteins)

    def _arrange(self) -> NDArray[np.int64]:
        if self.order == "reversed":
            return super()._arrange()[::-1, ::-1].copy()
        genes = self.rng.permutation(len(self.gene_ids))
        padded = np.pad(genes, (0, -len(genes) % self.patch_size), constant_values=len(genes))
        return padded.reshape(-1, self.patch_size)

    def __call__(self, **counts: NDArray) -> dict[str, Tensor]:
        """Prepare cells as the feature extractor does, then let proteins stand in their order."""
        features = dict(super().__call__(**counts))
        return {name: x[:, self.protein_places] if name.startswith("adt") else x for name, x in features.items()}


class NoMixing(nn.Module):
    """Nothing in place of a TTT layer: tokens of a block see themselves alone."""

    def forward(self, x: Tensor, mask: Tensor, return_inner_loss: bool = False, is_masked: bool = False) -> TTTOutput:
        """Give zeros for tokens (B, L, D); there is no inner loss."""
        return TTTOutput(torch.zeros_like(x), None)


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
            block.ttt = AttentionLayer(model.config) if variant.mixer == "attention" else NoMixing()
            block.ttt.apply(model._init_weights)
    if variant.fusion != "TTT":
        model.model.rna_fusion, model.model.adt_fusion = nn.Identity(), nn.Identity()
        fuse = _add_means if variant.fusion == "sum" else _leave_apart
        model.model._fuse = types.MethodType(fuse, model.model)


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
