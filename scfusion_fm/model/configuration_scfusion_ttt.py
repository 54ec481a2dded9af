"""Configuration of the scFusionTTT models."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

TTT_LAYER_TYPES = ("linear", "mlp")
TTT_DIRECTIONS = {"causal": ("forward",), "alternating": ("forward", "reverse"), "gated": ("both",)}  # from the last
MODALITIES = ("rna", "adt")


@strict
class ScFusionTTTConfig(PreTrainedConfig):
    """
    Hold the architecture of a scFusionTTT model.

    Parameters
    ----------
    num_rna_tokens
        Number of RNA tokens: patches of neighbouring genes, as the feature extractor cuts them.
    rna_patch_size
        Genes per RNA token.
    num_proteins
        Number of protein tokens; one token per protein.
    hidden_size
        Width of a token (D).
    num_hidden_layers
        TTT blocks of each modality's encoder.
    num_fusion_layers
        TTT blocks of each fusion module.
    num_decoder_layers
        TTT blocks of each decoder.
    num_attention_heads
        Heads (H) of a TTT layer; each has its own fast weights of width `hidden_size / num_attention_heads`.
    intermediate_size
        Width of the gated MLP of a block.
    fusion_weight
        The lambda in `F = E + lambda * FusionTTT([other; own])`.
    rna_loss_weight, adt_loss_weight
        The alpha and beta of the reconstruction loss.
    ttt_layer_type
        The inner model: `linear`, or `mlp`, a two-layer network four times as wide inside.
    ttt_mini_batch_size
        Tokens per inner mini-batch (M). Part of the model: the same weights at another M are another model.
    ttt_base_lr
        Base inner learning rate; 1 is usual for `linear`, 0.1 for `mlp`. At 20 times that, outputs and gradients of
        `linear` over 20,000 random tokens stay finite, but the fast weights overshoot: they grow to more than twice the
        size, and the first tokens are learned worse.
    ttt_direction
        `causal` reads every layer forward, as in the paper; `alternating` reads every second layer in
        reverse; `gated` reads every layer both ways, with one set of weights.
    ttt_use_gate
        Whether a GELU gate multiplies the output of a TTT layer.
    rope_theta
        Base of the rotary position embedding inside a mini-batch.
    rms_norm_eps
        Epsilon of the norms of a block; also of the norm inside the TTT layer.
    initializer_range
        Standard deviation of the initial weights.
    classifier_dropout
        Dropout before the classification head, in [0, 1).
    num_coordinates
        Principal components of the fine-tuning cells, of each modality, that the heads of fine-tuned models read beside
        the tokens; 0 for none.
    num_landmarks
        Fine-tuning cells around which the kernel regression of a fine-tuned predictor of proteins has its functions; 0
        for none. Needs `num_coordinates`.
    study_genes
        Places n * S + s of the genes that a predictor of proteins reads in units of the study of a cell (see `adapt`),
        since it was trained on several. It then predicts levels of proteins, from which the mean over a panel is still
        to be taken (see `centre_over`), from `num_coordinates` coordinates and not from the tokens. None: no units.
    own_genes
        Which of `study_genes` codes for each protein, -1 where none does; needed with them.
    study_hidden_sizes, num_study_members
        Widths of the hidden layers, and number, of the small networks that read these coordinates.
    projected_proteins
        Places of the proteins whose latents `ScFusionTTTForCellTypeAnnotation` projects from the RNA (the paper's third
        stage); a classifier with such a list, even an empty one, reads no measured protein. None reads what is given.
    target_modality
        What `ScFusionTTTForCrossModalPrediction` predicts, `adt` or `rna`.
    predicted_features
        Names of the features of the target that were measured in training; None when nothing was trained yet.

    Raises
    ------
    ValueError
        If widths, heads, ranges or names do not fit together.
    """

    model_type = "scfusion_ttt"

    num_rna_tokens: int = 400
    rna_patch_size: int = 10
    num_proteins: int = 64
    hidden_size: int = 128
    num_hidden_layers: int = 6
    num_fusion_layers: int = 1
    num_decoder_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 256
    fusion_weight: float = 1.0
    rna_loss_weight: float = 0.7
    adt_loss_weight: float = 0.3
    ttt_layer_type: str = "linear"
    ttt_mini_batch_size: int = 16
    ttt_base_lr: float = 1.0
    ttt_direction: str = "causal"
    ttt_use_gate: bool = True
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    classifier_dropout: float = 0.1
    num_coordinates: int = 0
    num_landmarks: int = 0
    study_genes: list[int] | None = None
    own_genes: list[int] | None = None
    study_hidden_sizes: list[int] | None = None
    num_study_members: int = 3
    projected_proteins: list[int] | None = None
    target_modality: str = "adt"
    predicted_features: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not self.is_remote_code():  # then the package has registered its own pipelines
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check that the fields describe a model that can be built."""
        for name in (
            "num_rna_tokens",
            "rna_patch_size",
            "num_proteins",
            "hidden_size",
            "num_hidden_layers",
            "num_fusion_layers",
            "num_decoder_layers",
            "num_attention_heads",
            "intermediate_size",
            "ttt_mini_batch_size",
            "num_study_members",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                "`hidden_size` must be `num_attention_heads` times an even head width, got "
                f"{self.hidden_size} and {self.num_attention_heads} heads."
            )
        for name, allowed in (
            ("ttt_layer_type", TTT_LAYER_TYPES),
            ("ttt_direction", TTT_DIRECTIONS),
            ("target_modality", MODALITIES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {tuple(allowed)}, got {getattr(self, name)!r}.")
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(self, name, False):
                raise ValueError(f"`{name}` must be False, got True: two encoders and a fusion have no such list.")
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"`problem_type` must be single_label_classification or None, got {self.problem_type!r}.")
        for name in ("num_coordinates", "num_landmarks"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.num_landmarks and not self.num_coordinates:
            raise ValueError(f"`num_coordinates` must be at least 1 with `num_landmarks` {self.num_landmarks}, got 0.")
        self._validate_study_genes()
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"`classifier_dropout` must lie in [0, 1), got {self.classifier_dropout}.")

    def _validate_study_genes(self) -> None:
        if not self.study_genes:
            return
        if not self.num_coordinates or self.num_landmarks or self.target_modality != "adt":
            raise ValueError(
                "`study_genes` must be None without `num_coordinates`, with `num_landmarks`, or for another target "
                f"than 'adt', got {len(self.study_genes)} genes with {self.num_coordinates}, {self.num_landmarks} and "
                f"{self.target_modality!r}."
            )
        places = self.num_rna_tokens * self.rna_patch_size
        if min(self.study_genes) < 0 or max(self.study_genes) >= places:
            raise ValueError(f"`study_genes` must be places below {places}, got {max(self.study_genes)}.")
        own, number = self.own_genes or [], len(self.study_genes)
        if len(own) != self.num_proteins or min(own) < -1 or max(own) >= number:
            raise ValueError(
                f"`own_genes` must be -1 or below {number} for each of {self.num_proteins} proteins, got {len(own)} "
                f"up to {max(own, default=-1)}."
            )

    @property
    def head_dim(self) -> int:
        """Width of one head (K)."""
        return self.hidden_size // self.num_attention_heads
