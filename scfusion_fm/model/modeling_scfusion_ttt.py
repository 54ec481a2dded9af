"""
scFusionTTT: a masked autoencoder over RNA and protein tokens, made of Test-Time-Training blocks.

Letters: B cells, N tokens of a modality, S genes (or proteins) per token, L selected tokens, D hidden_size,
P proteins, K coordinates of a cell. A protein token holds one protein, so that N = P and S = 1 there.

The models take `return_dict`: false for a tuple of what is not None, in place of an output object.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import can_return_tuple

from .blocks_scfusion_ttt import (
    CellCoordinates,
    KernelReadout,
    MissingModalityProjection,
    PatchEmbedding,
    ReconstructionDecoder,
    TTTStack,
    mean_squared_error_per_cell,
)
from .configuration_scfusion_ttt import MODALITIES, ScFusionTTTConfig
from .outputs_scfusion_ttt import (
    OutputParts,
    ScFusionTTTForPreTrainingOutput,
    ScFusionTTTModelOutput,
    ScFusionTTTPredictionOutput,
)
from .pretrained_scfusion_ttt import ScFusionTTTPreTrainedModel
from .studies_scfusion_ttt import StudyReadout
from .tokens_scfusion_ttt import (
    ModalityInput,
    ModalityTokens,
    TokenRoles,
    TokenSubset,
    complete_inputs,
    masked_mean,
    runs_alone,
)

DECODERS = ("rna_decoder", "adt_decoder")
HEADS = (*DECODERS, "classifier", "rna_coordinates", "adt_coordinates", "kernel_readout")


def name_other_heads(*own: str) -> list[str]:
    """Give patterns for the weights of heads that a class does not have: a directory may hold them, and none misses."""
    return [rf"^{head}\." for head in HEADS if head not in own]


class ScFusionTTTModel(ScFusionTTTPreTrainedModel):
    """
    Encode and fuse the visible tokens of each cell.

    A token is visible if something of it was observed and it is not masked. A modality of a cell that is masked
    entirely is *hidden*: its masked tokens get latents projected from the other modality before the fusion. A
    modality that is neither observed nor masked is absent and adds nothing.
    """

    _keys_to_ignore_on_load_unexpected = name_other_heads()

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__(config)
        self.rna_embeddings = PatchEmbedding(config.num_rna_tokens, config.rna_patch_size, config.hidden_size)
        self.adt_embeddings = PatchEmbedding(config.num_proteins, 1, config.hidden_size)
        self.rna_encoder = TTTStack(config, config.num_hidden_layers)
        self.adt_encoder = TTTStack(config, config.num_hidden_layers)
        self.rna_projection = MissingModalityProjection(config, config.num_rna_tokens)
        self.adt_projection = MissingModalityProjection(config, config.num_proteins)
        self.rna_fusion = TTTStack(config, config.num_fusion_layers)
        self.adt_fusion = TTTStack(config, config.num_fusion_layers)
        # Without gain and offset: the reconstruction does not read the pooled embedding, so nothing would train them.
        self.pooler_norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps, elementwise_affine=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        rna_values: Tensor | None = None,
        rna_observed: Tensor | None = None,
        adt_values: Tensor | None = None,
        adt_observed: Tensor | None = None,
        rna_bool_masked_pos: Tensor | None = None,
        adt_bool_masked_pos: Tensor | None = None,
        max_lengths: dict[str, int] | None = None,
        output_inner_loss: bool = False,
        **parts: Any,
    ) -> ScFusionTTTModelOutput | tuple:
        """
        Embed cells.

        Parameters
        ----------
        rna_values
            (B, N, S) log-normalised expression in patches of the vocabulary's genes; None without RNA.
        rna_observed
            (B, N, S) true where a gene was measured; all when None.
        adt_values
            (B, P) normalised protein; None without protein.
        adt_observed
            (B, P) true where a protein was measured; all when None.
        rna_bool_masked_pos, adt_bool_masked_pos
            (B, N) and (B, P) true for tokens hidden from the encoder; none when None.
        max_lengths
            Most tokens that a module reads of a cell of this batch, by its name, as
            `ScFusionTTTFeatureExtractor.find_max_lengths` finds them on the host. What is not there is counted on
            the device, for which the host waits.
        output_inner_loss
            Whether to give the inner losses of the TTT layers; the other outputs are the same.
        **parts
            What is to be calculated, as in `OutputParts`.

        Raises
        ------
        ValueError
            If both modalities are None or shapes do not fit the configuration.
        """
        rna, adt = complete_inputs(
            ModalityInput(rna_values, rna_observed, rna_bool_masked_pos),
            ModalityInput(adt_values, adt_observed, adt_bool_masked_pos),
            self.config,
            self.dtype,
        )
        longest, wanted = max_lengths or {}, OutputParts.of(parts)
        rna = self._encode("rna", rna, longest.get("rna_encoder"), output_inner_loss)
        adt = self._encode("adt", adt, longest.get("adt_encoder"), output_inner_loss)
        rna, adt = self._project(rna, adt)
        fused = self._fuse(rna, adt, wanted.fuse)
        output = self._pool(fused, (rna, adt), wanted.output_tokens)
        if output_inner_loss:
            output.inner_loss, output.modality_inner_loss = self._average_inner_loss(fused)
        return output

    def _encode(self, name: str, given: ModalityInput, longest: int | None, with_inner_loss: bool) -> ModalityTokens:
        """Encode the visible tokens of a modality."""
        embed, encode = getattr(self, f"{name}_embeddings"), getattr(self, f"{name}_encoder")
        roles = TokenRoles.of(given.measured_tokens().unsqueeze(-1), given.masked)
        # Of a hidden modality, the tokens that will be projected take the places of the visible ones.
        subset = TokenSubset.select(roles.read, self.config.ttt_mini_batch_size, longest)
        if runs_alone() and bool(roles.hidden.all()):
            latents = embed.position_embeddings.new_zeros(*subset.mask.shape, self.config.hidden_size)
        else:
            latents = subset.take(embed(given.values, given.observed))
        tokens = ModalityTokens(roles, subset, latents)
        latents, inner_loss = encode(tokens.latents, tokens.encoded, with_inner_loss)
        return tokens._replace(latents=latents, inner_loss=inner_loss)

    def _project(self, rna: ModalityTokens, adt: ModalityTokens) -> tuple[ModalityTokens, ModalityTokens]:
        """Make the latents of hidden modalities from the other one."""
        projected = []
        for own, other, project in ((rna, adt, self.rna_projection), (adt, rna, self.adt_projection)):
            if runs_alone() and not (own.roles.hidden.unsqueeze(1) & own.roles.read).any():
                projected.append(own)
            else:
                projected.append(own.project(project(masked_mean(other.latents, other.encoded))))
        return tuple(projected)

    def _fuse(
        self, rna: ModalityTokens, adt: ModalityTokens, modalities: tuple[str, ...]
    ) -> tuple[ModalityTokens, ModalityTokens]:
        """Let modalities read the other one first: F = E + lambda * FusionTTT([other; own])."""
        fused_rna = self._read_other(self.rna_fusion, rna, adt) if "rna" in modalities else rna
        return fused_rna, self._read_other(self.adt_fusion, adt, rna) if "adt" in modalities else adt

    def _read_other(self, fusion: TTTStack, own: ModalityTokens, other: ModalityTokens) -> ModalityTokens:
        """Fuse one modality; its inner losses are added to those of its encoder."""
        if own.latents.shape[1] == 0:
            return own
        latents = torch.cat((other.latents, own.latents), dim=1)
        mask = torch.cat((other.subset.mask, own.subset.mask), dim=1)
        read, inner_loss = fusion(latents, mask, own.inner_loss is not None)
        start = other.latents.shape[1]
        fused = own._replace(latents=own.latents + self.config.fusion_weight * read[:, start:])
        return fused if inner_loss is None else fused._replace(inner_loss=own.inner_loss + inner_loss[:, start:])

    def _pool(
        self,
        fused: tuple[ModalityTokens, ModalityTokens],
        encoded: tuple[ModalityTokens, ModalityTokens],
        with_tokens: bool,
    ) -> ScFusionTTTModelOutput:
        """Average tokens over each modality and over both."""
        present = torch.stack([x.roles.read.any(1) for x in fused], 1)  # (B, 2)
        means = torch.stack([x.mean() for x in (*fused, *encoded)], 1)  # (B, 4, D)
        return ScFusionTTTModelOutput(
            last_hidden_state=torch.cat([x.subset.put_back(x.latents) for x in fused], 1) if with_tokens else None,
            attention_mask=torch.cat([x.roles.read for x in fused], 1) if with_tokens else None,
            pooler_output=self.pooler_norm(masked_mean(means[:, :2], present)),
            modality_pooler_output=self.pooler_norm(means) * present.repeat(1, 2).unsqueeze(-1),
        )

    def _average_inner_loss(self, fused: tuple[ModalityTokens, ModalityTokens]) -> tuple[Tensor, Tensor]:
        """Average inner losses over the layers; (B, N_rna + P) per token and (B, 2) per modality."""
        num_layers = self.config.num_hidden_layers + self.config.num_fusion_layers
        tokens, means = [], []
        for own in fused:
            loss = own.subset.put_back((own.inner_loss / num_layers).unsqueeze(-1))  # (B, N, 1)
            loss = loss.masked_fill(~own.roles.visible.unsqueeze(-1), 0.0)
            tokens.append(loss.squeeze(-1))
            means.append(masked_mean(loss, own.roles.visible).squeeze(-1))
        return torch.cat(tokens, 1), torch.stack(means, 1)


class ScFusionTTTForPreTraining(ScFusionTTTPreTrainedModel):
    """Reconstruct masked genes and proteins (the paper's first stage)."""

    _keys_to_ignore_on_load_unexpected = name_other_heads(*DECODERS)

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__(config)
        self.model = ScFusionTTTModel(config)
        self.rna_decoder = ReconstructionDecoder(config, config.num_rna_tokens, config.rna_patch_size)
        self.adt_decoder = ReconstructionDecoder(config, config.num_proteins, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        rna_values: Tensor,
        rna_observed: Tensor,
        adt_values: Tensor,
        adt_observed: Tensor,
        rna_bool_masked_pos: Tensor,
        adt_bool_masked_pos: Tensor,
        max_lengths: dict[str, int] | None = None,
    ) -> ScFusionTTTForPreTrainingOutput | tuple:
        """
        Reconstruct; arguments as in `ScFusionTTTModel.forward`.

        Notes
        -----
        The loss of a cell is `rna_loss_weight` times its mean squared error over masked and observed expression
        values plus `adt_loss_weight` times that over proteins; the loss of a batch is the mean over its cells.
        A mean of means of equal parts is the mean of the whole, so the loss does not depend on how a global batch
        is split over ranks and accumulation steps.
        """
        encoded = self.model(
            rna_values,
            rna_observed,
            adt_values,
            adt_observed,
            rna_bool_masked_pos,
            adt_bool_masked_pos,
            max_lengths,
            return_dict=True,
        )
        hidden, read = encoded.last_hidden_state, encoded.attention_mask
        split, longest = self.config.num_rna_tokens, max_lengths or {}
        rna = self.rna_decoder(hidden[:, :split], read[:, :split], rna_bool_masked_pos, longest.get("rna_decoder"))
        adt = self.adt_decoder(hidden[:, split:], read[:, split:], adt_bool_masked_pos, longest.get("adt_decoder"))
        adt = adt.squeeze(-1)
        rna_target = rna_observed & rna_bool_masked_pos.unsqueeze(-1)
        rna_loss = mean_squared_error_per_cell(rna, rna_values, rna_target)
        adt_loss = mean_squared_error_per_cell(adt, adt_values, adt_observed & adt_bool_masked_pos)
        loss = (self.config.rna_loss_weight * rna_loss + self.config.adt_loss_weight * adt_loss).mean()
        return ScFusionTTTForPreTrainingOutput(loss, rna_loss, adt_loss, rna, adt, encoded.pooler_output)


class ScFusionTTTForCellTypeAnnotation(ScFusionTTTPreTrainedModel):
    """
    Classify cells (the paper's second stage).

    The classifier reads both modalities side by side, fused and as they were before the fusion: in their mean, which is
    the embedding, the weaker modality blurs the stronger one. With `config.num_coordinates` it also reads where a cell
    lies along the principal components of its training cells, so that it starts where a linear classifier ends.
    """

    _keys_to_ignore_on_load_unexpected = name_other_heads("classifier", "rna_coordinates", "adt_coordinates")

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = ScFusionTTTModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(4 * config.hidden_size + 2 * config.num_coordinates, config.num_labels)
        if config.num_coordinates:
            self.rna_coordinates = CellCoordinates(config.num_rna_tokens, config.rna_patch_size, config.num_coordinates)
            self.adt_coordinates = CellCoordinates(config.num_proteins, 1, config.num_coordinates)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        rna_values: Tensor | None = None,
        rna_observed: Tensor | None = None,
        adt_values: Tensor | None = None,
        adt_observed: Tensor | None = None,
        rna_bool_masked_pos: Tensor | None = None,
        adt_bool_masked_pos: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ScFusionTTTPredictionOutput | tuple:
        """
        Classify; the inputs as in `ScFusionTTTModel.forward`.

        Parameters
        ----------
        rna_values, rna_observed, adt_values, adt_observed
            What was measured.
        rna_bool_masked_pos, adt_bool_masked_pos
            Tokens of a modality that was not measured which are to be projected from the other one (the paper's third
            stage); none when None. A model with `config.projected_proteins` makes its own.
        labels
            (B,) class indices; -100 for a cell without a label.

        Raises
        ------
        ValueError
            If there is no RNA to project from.
        """
        if self.config.projected_proteins is not None:
            adt_values = adt_observed = None
            adt_bool_masked_pos = self._hide_proteins(rna_values)
        encoded = self.model(
            rna_values,
            rna_observed,
            adt_values,
            adt_observed,
            rna_bool_masked_pos,
            adt_bool_masked_pos,
            output_tokens=False,
            return_dict=True,
        )
        read = self.dropout(encoded.modality_pooler_output.flatten(1))
        if self.config.num_coordinates:
            rna, adt = ModalityInput(rna_values, rna_observed), ModalityInput(adt_values, adt_observed)
            seen = self._find_coordinates(*complete_inputs(rna, adt, self.config, self.dtype))
            read = torch.cat((read, seen.to(read.dtype)), 1)
        logits = self.classifier(read)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ScFusionTTTPredictionOutput(loss, logits, encoded.pooler_output)

    def _find_coordinates(self, rna: ModalityInput, adt: ModalityInput) -> Tensor:
        """
        Find the coordinates (B, 2 K) of both modalities, 0 for one that is missing.

        They are divided by the number of modalities that are not.
        """
        found = torch.cat(
            (self.rna_coordinates(rna.values, rna.observed), self.adt_coordinates(adt.values, adt.observed)), 1
        )
        present = torch.stack([x.measured_tokens().any(1) for x in (rna, adt)], 1).sum(1, keepdim=True)
        return found / present.clamp_min(1)

    def _hide_proteins(self, rna_values: Tensor | None) -> Tensor:
        """Mark the proteins to project, (B, P)."""
        if rna_values is None:
            raise ValueError("`rna_values` must be given to a model that projects proteins from RNA, got None.")
        hidden = torch.zeros(self.config.num_proteins, device=rna_values.device, dtype=torch.bool)
        hidden[self.config.projected_proteins] = True
        return hidden.expand(len(rna_values), -1)


READOUTS = ("rna_coordinates", "kernel_readout", "study_readout")


class ScFusionTTTForCrossModalPrediction(ScFusionTTTPreTrainedModel):
    """
    Predict one modality from the other: the pretraining pass with the target hidden entirely.

    With `config.num_landmarks`, proteins are a mixture of that and of a kernel regression on the principal components
    of the training cells. With `config.study_genes`, they come from genes in units of the study alone, for cells of
    studies that were not trained on.
    """

    _keys_to_ignore_on_load_unexpected = name_other_heads(*DECODERS, *READOUTS)

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__(config)
        self.model = ScFusionTTTModel(config)
        if config.num_landmarks and config.target_modality == "adt":
            self.rna_coordinates = CellCoordinates(config.num_rna_tokens, config.rna_patch_size, config.num_coordinates)
            self.kernel_readout = KernelReadout(config.num_landmarks, config.num_coordinates, config.num_proteins)
        if config.study_genes:
            self.study_readout = StudyReadout(
                config.study_genes,
                config.own_genes,
                config.num_coordinates,
                config.study_hidden_sizes or [],
                config.num_study_members,
            )
        elif config.target_modality == "adt":
            self.adt_decoder = ReconstructionDecoder(config, config.num_proteins, 1)
        else:
            self.rna_decoder = ReconstructionDecoder(config, config.num_rna_tokens, config.rna_patch_size)
        self.register_buffer("target_weight", None, persistent=False)
        self.post_init()

    def adapt(self, means: Tensor, deviations: Tensor) -> None:
        """
        Read genes from now on in the units of a study: around its means, and divided by its deviations.

        Parameters
        ----------
        means, deviations
            (N, S) of the log-normalised expression of the genes over cells of the study; the deviation is 0 for a gene
            that was not measured or is the same in all cells.

        Raises
        ------
        ValueError
            If the model has no such units, or shapes do not fit.
        """
        if not self.config.study_genes:
            raise ValueError(
                "`adapt` must be left out for a model without `config.study_genes`: it has no units to set."
            )
        self.study_readout.coordinates.adapt(means, deviations)

    def weigh_targets(self, weight: Tensor | None) -> None:
        """
        Say how much each target counts in the loss, until told otherwise.

        This belongs to a training, not to the model: it goes to another device with the model, but is not saved.

        Parameters
        ----------
        weight
            (P,) or (N, S) factor of the squared error of each target; None, as at first, for 1.

        Raises
        ------
        ValueError
            If there is not one factor for each target.
        """
        shape = self._target_shape()
        if weight is not None and weight.shape != shape:
            raise ValueError(
                f"`weight` must have the shape {shape} of the targets of this model, got {tuple(weight.shape)}. "
                "Give targets that were not measured the weight 1."
            )
        self.target_weight = weight

    @can_return_tuple
    def forward(
        self,
        rna_values: Tensor | None = None,
        rna_observed: Tensor | None = None,
        adt_values: Tensor | None = None,
        adt_observed: Tensor | None = None,
        output_embedding: bool = True,
    ) -> ScFusionTTTPredictionOutput | tuple:
        """
        Predict the target modality of `config.target_modality`; arguments as in `ScFusionTTTModel.forward`.

        Values of the target modality are labels only: they enter the loss where they were observed and never
        reach the encoder. The embedding, for which the source is fused too, can be left out.

        Raises
        ------
        ValueError
            If the source modality was not given.
        """
        rna, adt = ModalityInput(rna_values, rna_observed), ModalityInput(adt_values, adt_observed)
        source, labels = (rna, adt) if self.config.target_modality == "adt" else (adt, rna)
        if source.values is None:
            name = "rna_values" if source is rna else "adt_values"
            raise ValueError(f"`{name}` must be given to predict {self.config.target_modality!r}, got None.")
        if hasattr(self, "study_readout"):
            logits, pooled = self.study_readout(source.values, source.seen()), None
            if output_embedding:
                pooled = self.model(source.values, source.observed, return_dict=True).pooler_output
        else:
            logits, pooled = self._reconstruct(source, output_embedding)
        loss = None
        if labels.values is not None:
            labels = labels.dense()
            loss = mean_squared_error_per_cell(logits, labels.values, labels.seen(), self.target_weight).mean()
        if hasattr(self, "kernel_readout"):
            logits = self.kernel_readout.blend(logits, self.rna_coordinates(source.values, source.seen()))
        return ScFusionTTTPredictionOutput(loss, logits, pooled)

    def _target_shape(self) -> tuple[int, ...]:
        """Give the shape of the targets of a cell, (P,) or (N, S)."""
        if self.config.target_modality == "adt":
            return (self.config.num_proteins,)
        return self.config.num_rna_tokens, self.config.rna_patch_size

    def _reconstruct(self, source: ModalityInput, with_embedding: bool) -> tuple[Tensor, Tensor | None]:
        """Run the autoencoder with every token of the target masked; (B, P) or (B, N, S), and the embedding."""
        number, split = self._target_shape()[0], self.config.num_rna_tokens
        masked = torch.ones(len(source.values), number, device=source.values.device, dtype=torch.bool)
        if self.config.target_modality == "adt":
            shown = {"rna_values": source.values, "rna_observed": source.observed, "adt_bool_masked_pos": masked}
            decoder, own, known = self.adt_decoder, slice(split, None), {"adt_encoder": number}
        else:
            shown = {"adt_values": source.values, "adt_observed": source.observed, "rna_bool_masked_pos": masked}
            decoder, own, known = self.rna_decoder, slice(split), {"rna_encoder": number}
        fuse = MODALITIES if with_embedding else (self.config.target_modality,)
        encoded = self.model(**shown, max_lengths=known, fuse=fuse, return_dict=True)
        decoded = decoder(encoded.last_hidden_state[:, own], encoded.attention_mask[:, own], masked, number)
        return decoded.view(len(masked), *self._target_shape()), encoded.pooler_output if with_embedding else None
