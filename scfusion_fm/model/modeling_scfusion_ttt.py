"""scFusionTTT: a masked autoencoder over RNA and protein tokens, made of Test-Time-Training blocks.

Letters: B cells, N tokens of a modality, S genes (or proteins) per token, L selected tokens, D hidden_size,
P proteins. A protein token holds one protein, so that N = P and S = 1 there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from .blocks_scfusion_ttt import (
    CellCoordinates,
    KernelReadout,
    MissingModalityProjection,
    PatchEmbedding,
    ReconstructionDecoder,
    TokenSubset,
    TTTStack,
    masked_mean,
    mean_squared_error_per_cell,
)
from .configuration_scfusion_ttt import MODALITIES, ScFusionTTTConfig
from .outputs_scfusion_ttt import ScFusionTTTForPreTrainingOutput, ScFusionTTTModelOutput, ScFusionTTTPredictionOutput
from .ttt_layers import TTTLayer


class ScFusionTTTPreTrainedModel(PreTrainedModel):
    """Base of all scFusionTTT models: initial weights, loading and saving."""

    config_class = ScFusionTTTConfig
    config: ScFusionTTTConfig
    base_model_prefix = "model"
    main_input_name = "rna_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ("ScFusionTTTBlock",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
            if module.weight is not None:
                init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, TTTLayer):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight"):
                    init.normal_(parameter, std=std)
                else:
                    init.constant_(parameter, {"norm_weight": 1.0, "direction_gate": 0.1}.get(name, 0.0))
        elif isinstance(module, PatchEmbedding):
            init.normal_(module.weight, std=std)
            init.normal_(module.position_embeddings, std=std)
        elif isinstance(module, (CellCoordinates, KernelReadout)):
            for _, buffer in module.named_buffers():
                init.zeros_(buffer)
        elif isinstance(module, MissingModalityProjection):
            init.normal_(module.position_embeddings, std=std)
        elif isinstance(module, ReconstructionDecoder):
            init.normal_(module.mask_token, std=std)
            init.normal_(module.position_embeddings, std=std)
            init.normal_(module.head_weight, std=std)
            init.zeros_(module.head_bias)


class ScFusionTTTModel(ScFusionTTTPreTrainedModel):
    """
    Encode and fuse the visible tokens of each cell.

    A token is visible if something of it was observed and it is not masked. A modality of a cell that is masked
    entirely is *hidden*: its masked tokens get latents projected from the other modality before the fusion. A
    modality that is neither observed nor masked is absent and adds nothing.
    """

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

    def forward(
        self,
        rna_values: Tensor | None = None,
        rna_observed: Tensor | None = None,
        adt_values: Tensor | None = None,
        adt_observed: Tensor | None = None,
        rna_bool_masked_pos: Tensor | None = None,
        adt_bool_masked_pos: Tensor | None = None,
        return_dict: bool | None = None,
        output_inner_loss: bool = False,
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
        return_dict
            Whether to return an output object instead of a tuple.
        output_inner_loss
            Whether to give the inner losses of the TTT layers; the other outputs are the same.

        Raises
        ------
        ValueError
            If both modalities are None or shapes do not fit the configuration.
        """
        values, observed, masked = self._complete_inputs(
            (rna_values, adt_values),
            (rna_observed, adt_observed),
            (rna_bool_masked_pos, adt_bool_masked_pos),
        )
        losses = [] if output_inner_loss else None
        reads, subsets, latents = self._encode(values, observed, masked, losses)
        fused = self._fuse(subsets, latents, losses)
        present = torch.stack([read.any(1) for read in reads], 1)  # (B, 2)
        means = torch.stack([masked_mean(t, s.mask) for t, s in zip(fused + latents, subsets * 2, strict=True)], 1)
        output = ScFusionTTTModelOutput(
            last_hidden_state=torch.cat(
                [s.put_back(f, v.shape[1]) for f, s, v in zip(fused, subsets, values, strict=True)], 1
            ),
            attention_mask=torch.cat(reads, 1),
            pooler_output=self.pooler_norm(masked_mean(means[:, :2], present)),
            modality_pooler_output=self.pooler_norm(means) * present.repeat(1, 2).unsqueeze(-1),
        )
        if losses is not None:
            visible = [o.any(-1) & ~m for o, m in zip(observed, masked, strict=True)]
            output.inner_loss, output.modality_inner_loss = self._gather_inner_loss(losses, subsets, visible)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    def _complete_inputs(
        self,
        values: tuple[Tensor | None, Tensor | None],
        observed: tuple[Tensor | None, Tensor | None],
        masked: tuple[Tensor | None, Tensor | None],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Bring both modalities to (B, N, S) values and observations and (B, N) masks."""
        given = next((x for x in (*values, *masked) if x is not None), None)
        if given is None:
            raise ValueError("`rna_values` and `adt_values` are both None; give at least one modality.")
        shapes = (
            (given.shape[0], self.config.num_rna_tokens, self.config.rna_patch_size),
            (given.shape[0], self.config.num_proteins),
        )
        complete = ([], [], [])
        for name, shape, value, seen, hidden in zip(MODALITIES, shapes, values, observed, masked, strict=True):
            if value is None:
                value = torch.zeros(shape, device=given.device, dtype=self.dtype)
                seen = torch.zeros(shape, device=given.device, dtype=torch.bool)
            seen = torch.ones_like(value, dtype=torch.bool) if seen is None else seen
            hidden = torch.zeros(shape[:2], device=given.device, dtype=torch.bool) if hidden is None else hidden
            self._check_shape(f"{name}_values", value, shape)
            self._check_shape(f"{name}_observed", seen, shape)
            self._check_shape(f"{name}_bool_masked_pos", hidden, shape[:2])
            rows = (shape[0], shape[1], -1)
            for kept, x in zip(complete, (value.reshape(rows), seen.reshape(rows), hidden), strict=True):
                kept.append(x)
        return complete

    @staticmethod
    def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise ValueError(
                f"`{name}` must have the shape {tuple(shape)} of this model, got {tuple(tensor.shape)}. "
                "Prepare the cells with the feature extractor that was saved with the model."
            )

    def _encode(
        self,
        values: list[Tensor],
        observed: list[Tensor],
        masked: list[Tensor],
        losses: list[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[TokenSubset], list[Tensor]]:
        """Encode the visible tokens of each modality; project the latents of hidden modalities; note inner losses."""
        embeddings, encoders = (
            (self.rna_embeddings, self.adt_embeddings),
            (self.rna_encoder, self.adt_encoder),
        )
        visible = [o.any(-1) & ~m for o, m in zip(observed, masked, strict=True)]
        hidden = [~v.any(1) for v in visible]
        # Of a hidden modality, the tokens that will be projected take the places of the visible ones.
        reads = [torch.where(h.unsqueeze(1), m, v) for h, m, v in zip(hidden, masked, visible, strict=True)]
        subsets = [TokenSubset.select(read, self.config.ttt_mini_batch_size) for read in reads]
        encoded = [
            _run_stack(encoder, subset.take(embed(v, o)), subset.mask & ~h.unsqueeze(1), losses)
            for embed, encoder, subset, v, o, h in zip(
                embeddings, encoders, subsets, values, observed, hidden, strict=True
            )
        ]
        means = [masked_mean(e, s.mask & ~h.unsqueeze(1)) for e, s, h in zip(encoded, subsets, hidden, strict=True)]
        # Both projections always run, needed or not: under ZeRO-3 every rank must call the same modules.
        projected = [self.rna_projection(means[1]), self.adt_projection(means[0])]
        latents = [
            torch.where(h[:, None, None], s.take(p), e)
            for h, s, p, e in zip(hidden, subsets, projected, encoded, strict=True)
        ]
        return reads, subsets, latents

    def _fuse(
        self, subsets: list[TokenSubset], latents: list[Tensor], losses: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Let each modality read the other one first: F = E + lambda * FusionTTT([other; own])."""
        fused = []
        for own, fusion in enumerate((self.rna_fusion, self.adt_fusion)):
            other = 1 - own
            sequence = torch.cat((latents[other], latents[own]), dim=1)
            mask = torch.cat((subsets[other].mask, subsets[own].mask), dim=1)
            read = _run_stack(fusion, sequence, mask, losses)[:, latents[other].shape[1] :]
            fused.append(latents[own] + self.config.fusion_weight * read)
        return fused

    def _gather_inner_loss(
        self, losses: list[Tensor], subsets: list[TokenSubset], visible: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Average what the encoders and then the fusions gave; (B, N_rna + P) per token and (B, 2) per modality."""
        num_layers = self.config.num_hidden_layers + self.config.num_fusion_layers
        tokens, means = [], []
        for own, (encoder, fusion) in enumerate(zip(losses[:2], losses[2:], strict=True)):
            loss = (encoder + fusion[:, -encoder.shape[1] :]) / num_layers
            loss = subsets[own].put_back(loss.unsqueeze(-1), visible[own].shape[1])
            tokens.append(loss.squeeze(-1).masked_fill(~visible[own], 0.0))
            means.append(masked_mean(tokens[own].unsqueeze(-1), visible[own]).squeeze(-1))
        return torch.cat(tokens, 1), torch.stack(means, 1)


def _run_stack(stack: TTTStack, x: Tensor, mask: Tensor, losses: list[Tensor] | None) -> Tensor:
    """Transform tokens; append the inner loss of each, summed over the layers, to `losses` if it is a list."""
    if losses is None:
        return stack(x, mask)
    x, loss = stack.forward_with_inner_loss(x, mask)
    losses.append(loss)
    return x


class ScFusionTTTForPreTraining(ScFusionTTTPreTrainedModel):
    """Reconstruct masked genes and proteins (the paper's first stage)."""

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__(config)
        self.model = ScFusionTTTModel(config)
        self.rna_decoder = ReconstructionDecoder(config, config.num_rna_tokens, config.rna_patch_size)
        self.adt_decoder = ReconstructionDecoder(config, config.num_proteins, 1)
        self.post_init()

    def forward(
        self,
        rna_values: Tensor,
        rna_observed: Tensor,
        adt_values: Tensor,
        adt_observed: Tensor,
        rna_bool_masked_pos: Tensor,
        adt_bool_masked_pos: Tensor,
        return_dict: bool | None = None,
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
            return_dict=True,
        )
        hidden, read = encoded.last_hidden_state, encoded.attention_mask
        split = self.config.num_rna_tokens
        rna = self.rna_decoder(hidden[:, :split], read[:, :split], rna_bool_masked_pos)
        adt = self.adt_decoder(hidden[:, split:], read[:, split:], adt_bool_masked_pos).squeeze(-1)
        rna_target = rna_observed & rna_bool_masked_pos.unsqueeze(-1)
        rna_loss = mean_squared_error_per_cell(rna, rna_values, rna_target)
        adt_loss = mean_squared_error_per_cell(adt, adt_values, adt_observed & adt_bool_masked_pos)
        loss = (self.config.rna_loss_weight * rna_loss + self.config.adt_loss_weight * adt_loss).mean()
        output = ScFusionTTTForPreTrainingOutput(loss, rna_loss, adt_loss, rna, adt, encoded.pooler_output)
        return output if self.model._wants_dict(return_dict) else output.to_tuple()


class ScFusionTTTForCellTypeAnnotation(ScFusionTTTPreTrainedModel):
    """
    Classify cells (the paper's second stage).

    The classifier reads both modalities side by side, fused and as they were before the fusion: in their mean, which is
    the embedding, the weaker modality blurs the stronger one. With `config.num_coordinates` it also reads where a cell
    lies along the principal components of its training cells, so that it starts where a linear classifier ends.
    """

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

    def forward(
        self,
        rna_values: Tensor | None = None,
        rna_observed: Tensor | None = None,
        adt_values: Tensor | None = None,
        adt_observed: Tensor | None = None,
        rna_bool_masked_pos: Tensor | None = None,
        adt_bool_masked_pos: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
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
        return_dict
            Whether to return an output object instead of a tuple.

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
            return_dict=True,
        )
        read = self.dropout(encoded.modality_pooler_output.flatten(1))
        if self.config.num_coordinates:
            seen = self._find_coordinates((rna_values, adt_values), (rna_observed, adt_observed))
            read = torch.cat((read, seen.to(read.dtype)), 1)
        logits = self.classifier(read)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        output = ScFusionTTTPredictionOutput(loss, logits, encoded.pooler_output)
        return output if self.model._wants_dict(return_dict) else output.to_tuple()

    def _find_coordinates(
        self, values: tuple[Tensor | None, Tensor | None], observed: tuple[Tensor | None, Tensor | None]
    ) -> Tensor:
        """Give the coordinates of each modality, 0 for one that is missing, over the number of those that are not."""
        values, observed, _ = self.model._complete_inputs(values, observed, (None, None))
        modules = (self.rna_coordinates, self.adt_coordinates)
        found = torch.cat([module(v, o) for module, v, o in zip(modules, values, observed, strict=True)], 1)
        present = torch.stack([o.flatten(1).any(1) for o in observed], 1).sum(1, keepdim=True)
        return found / present.clamp_min(1)

    def _hide_proteins(self, rna_values: Tensor | None) -> Tensor:
        """Mark the proteins to project, (B, P)."""
        if rna_values is None:
            raise ValueError("`rna_values` must be given to a model that projects proteins from RNA, got None.")
        hidden = torch.zeros(self.config.num_proteins, device=rna_values.device, dtype=torch.bool)
        hidden[self.config.projected_proteins] = True
        return hidden.expand(len(rna_values), -1)


class ScFusionTTTForCrossModalPrediction(ScFusionTTTPreTrainedModel):
    """
    Predict one modality from the other: the pretraining pass with the target hidden entirely.

    With `config.num_landmarks`, proteins are a mixture of that and of a kernel regression on the principal components
    of the training cells. `target_weight` (T,), if set, says how much each target counts in the loss.
    """

    target_weight: Tensor | None = None

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__(config)
        self.model = ScFusionTTTModel(config)
        if config.num_landmarks and config.target_modality == "adt":
            self.rna_coordinates = CellCoordinates(config.num_rna_tokens, config.rna_patch_size, config.num_coordinates)
            self.kernel_readout = KernelReadout(config.num_landmarks, config.num_coordinates, config.num_proteins)
        if config.target_modality == "adt":
            self.adt_decoder = ReconstructionDecoder(config, config.num_proteins, 1)
        else:
            self.rna_decoder = ReconstructionDecoder(config, config.num_rna_tokens, config.rna_patch_size)
        self.post_init()

    def forward(
        self,
        rna_values: Tensor | None = None,
        rna_observed: Tensor | None = None,
        adt_values: Tensor | None = None,
        adt_observed: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ScFusionTTTPredictionOutput | tuple:
        """
        Predict the target modality of `config.target_modality`.

        Values of the target modality are labels only: they enter the loss where they were observed and never
        reach the encoder.

        Raises
        ------
        ValueError
            If the source modality was not given.
        """
        to_adt = self.config.target_modality == "adt"
        source = (rna_values, rna_observed) if to_adt else (adt_values, adt_observed)
        labels, labelled = (adt_values, adt_observed) if to_adt else (rna_values, rna_observed)
        if source[0] is None:
            name = "rna_values" if to_adt else "adt_values"
            raise ValueError(f"`{name}` must be given to predict {self.config.target_modality!r}, got None.")
        logits, pooled = self._decode(source, to_adt)
        loss = None
        if labels is not None:
            labelled = torch.ones_like(labels, dtype=torch.bool) if labelled is None else labelled
            loss = mean_squared_error_per_cell(logits, labels, labelled, self.target_weight).mean()
        if hasattr(self, "kernel_readout"):
            observed = torch.ones_like(source[0], dtype=torch.bool) if source[1] is None else source[1]
            logits = self.kernel_readout.blend(logits, self.rna_coordinates(source[0], observed))
        output = ScFusionTTTPredictionOutput(loss, logits, pooled)
        return output if self.model._wants_dict(return_dict) else output.to_tuple()

    def _decode(self, source: tuple[Tensor, Tensor | None], to_adt: bool) -> tuple[Tensor, Tensor]:
        """Run the autoencoder with every token of the target masked; (B, P) or (B, N, S), and the embedding."""
        num_rna, num_adt = self.config.num_rna_tokens, self.config.num_proteins
        num_target = num_adt if to_adt else num_rna
        masked = torch.ones(source[0].shape[0], num_target, device=source[0].device, dtype=torch.bool)
        names = ("rna_values", "rna_observed") if to_adt else ("adt_values", "adt_observed")
        target = "adt" if to_adt else "rna"
        encoded = self.model(
            **dict(zip(names, source, strict=True)), **{f"{target}_bool_masked_pos": masked}, return_dict=True
        )
        own = slice(num_rna, None) if to_adt else slice(num_rna)
        decoder = self.adt_decoder if to_adt else self.rna_decoder
        decoded = decoder(encoded.last_hidden_state[:, own], encoded.attention_mask[:, own], masked)
        return decoded.squeeze(-1) if to_adt else decoded, encoded.pooler_output
